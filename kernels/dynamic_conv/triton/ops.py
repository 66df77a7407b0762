"""The op bodies on a GPU: each regime as a few launches. They take and return what their namesakes in `eager` do."""

import torch
from torch import Tensor

from polychrome.kernels.dynamic_conv.configs import HOPPER, DepthwiseConfig, device_of, own_dtype, own_parts
from polychrome.kernels.dynamic_conv.eager.mixing import add_to_rows, from_rows, mixer, rows_of
from polychrome.kernels.dynamic_conv.plan import Plan, plan
from polychrome.kernels.dynamic_conv.problem import Geometry, problem_of
from polychrome.kernels.dynamic_conv.triton.contraction import contract, contract_few
from polychrome.kernels.dynamic_conv.triton.convolution import convolve
from polychrome.kernels.dynamic_conv.triton.depthwise import convolve_depthwise, depthwise_gradients, holds_weights
from polychrome.kernels.dynamic_conv.triton.mixing import mix_into
from polychrome.kernels.dynamic_conv.triton.reorder import channels_first, channels_last
from polychrome.kernels.dynamic_conv.triton.splits import NOTHING, Epilogue
from polychrome.kernels.dynamic_conv.triton.weight_gradient import expert_gradients, sample_gradients
from polychrome.kernels.sums import sum_outer_and_inner
from polychrome.kernels.tensors import allows_tf32, empty_as, not_asked


def per_sample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve sample b with `weight[b]`."""
    return _forward(x, weight, None, geometry, Epilogue(bias))


def dynamic_conv2d(
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Convolve each sample with its mix of the experts; then scale, shift and ReLU where given.

    mixing is [batch, experts] or [batch, experts, taps].
    """
    if mixing.dim() == 3:
        return _forward(x, mixer(experts, mixing, False)[:], None, geometry, Epilogue(None, scale, shift, relu))
    mixed_bias = None if bias is None else mixing.float() @ bias.float()
    return _forward(x, experts, mixing, geometry, Epilogue(mixed_bias, scale, shift, relu))


def per_sample_conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the adjoint of `per_sample_conv2d`, plus a bias."""
    return _transposed(x, weight, None, geometry, bias)


def dynamic_conv_transpose2d(
    x: Tensor, experts: Tensor, mixing: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Return the adjoint of `dynamic_conv2d`, plus a mixed bias."""
    mixed_bias = None if bias is None else mixing.float() @ bias.float()
    return _transposed(x, experts, mixing.float().contiguous(), geometry, mixed_bias)


def per_sample_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias; one not needed is an empty placeholder."""
    if x.shape[0] == 0:
        return tuple(
            x.new_zeros(shape) if need else not_asked(x)
            for shape, need in zip((x.shape, weight.shape, weight.shape[:2]), needed, strict=True)
        )
    how = _plan(x, weight, geometry, per_sample=True)
    grad_last = grad.contiguous(memory_format=torch.channels_last)
    dx, dweight = not_asked(x), not_asked(x)
    if needed[0]:
        dx = empty_as(x, x.shape)
        _input_gradient(how, grad_last, dx, weight, None, geometry)
    if needed[1]:
        dweight = _sample_weight_gradient(how, grad_last, x, weight, geometry)
    return dx, dweight, _over_pixels(grad).to(x.dtype) if needed[2] else not_asked(x)


def dynamic_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    experts: Tensor,
    mixing: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, experts, mixing and bias; one not needed is an empty placeholder."""
    for_x, for_experts, for_mixing, for_bias = needed
    if x.shape[0] == 0:
        return tuple(
            x.new_zeros(like.shape, dtype=like.dtype) if need else not_asked(x)
            for like, need in zip((x, experts, mixing, bias), needed, strict=True)
        )
    if mixing.dim() == 3:
        return _backward_by_tap(grad, x, experts, mixing, geometry, needed)
    how = _plan(x, experts, geometry, per_sample=False)
    mixing32 = mixing.float().contiguous()
    grad_last, source = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x))
    dx, dexperts, dmixing, dbias = (not_asked(x) for _ in needed)  # outputs of an op must not share memory
    products = None
    if for_x:
        probe = source if for_mixing and how.regime == "stacked" else None
        dx = empty_as(x, x.shape)
        products = _input_gradient(how, grad_last, dx, experts, mixing32, geometry, probe)
    if for_experts or (for_mixing and products is None):
        gradient, from_weights = _expert_gradient(
            how, grad_last, source, experts, mixing32, geometry, for_mixing and products is None
        )
        products = from_weights if products is None else products
        if for_experts:
            dexperts = gradient
    if for_bias or (for_mixing and bias is not None):
        sums = _over_pixels(grad)
        if for_bias:
            dbias = (mixing32.T @ sums).to(bias.dtype)
        if for_mixing:
            products = products + sums @ bias.float().T
    if for_mixing:
        dmixing = products.to(mixing.dtype).contiguous()
    return dx, dexperts, dmixing, dbias


def _backward_by_tap(grad, x, experts, mixing, geometry: Geometry, needed: list[bool]) -> tuple[Tensor, ...]:
    """Return the gradients of `dynamic_conv2d` for a mix for each tap: those of the mixed weights, then of the mix."""
    for_x, for_experts, for_mixing, _ = needed
    weight = mixer(experts, mixing, False)[:] if for_x else experts[:1].expand(len(x), -1, -1, -1, -1)
    wanted = [for_x, for_experts or for_mixing, False]
    dx, dweight, nothing = per_sample_conv2d_backward(grad, x, weight, geometry, wanted)
    dexperts, dmixing = not_asked(x), not_asked(x)
    if wanted[1]:
        mixing32, rows = mixing.float(), rows_of(experts, mixing)
        found = torch.empty_like(rows, dtype=torch.float32) if for_experts else None
        products = torch.zeros_like(mixing32) if for_mixing else None
        add_to_rows(dweight, rows, mixing32, products, found)
        if for_experts:
            dexperts = from_rows(found, experts.shape).to(experts.dtype).contiguous()
        if for_mixing:
            dmixing = products.to(mixing.dtype).contiguous()
    return dx, dexperts, dmixing, nothing


def _forward(x, weight, mixing, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    """Convolve with `weight` per sample, or with the mix of the experts `weight` where `mixing` is given."""
    y = empty_as(x, geometry.output_shape(x, weight))
    if x.shape[0] == 0:
        return y
    how = _plan(x, weight, geometry, per_sample=mixing is None)
    kernel = tuple(weight.shape[3:])
    source = x.contiguous(memory_format=torch.channels_last)
    mixing, *vectors = (None if t is None else t.contiguous() for t in (mixing, *epilogue[:3]))
    epilogue = Epilogue(*vectors, epilogue.relu)
    if how.regime == "depthwise":
        rest = (geometry, kernel, how.forward, False)
        for part, weights, shares in _depthwise_weights(how.forward, weight, mixing, x.shape[0], how.chunk):
            convolve_depthwise(source[part], weights, y[part], *rest, shares, epilogue.of(part))
        return y
    rest = (geometry, kernel, how.forward, _precision(x))
    if how.regime == "stacked":
        convolve(source, channels_last(weight), y, *rest, mixing=mixing, epilogue=epilogue)
        return y
    for part, weights in _weights(weight, mixing, x.shape[0], how.chunk):
        then = epilogue.of(part)
        if how.regime == "pointwise" and not then.is_affine and _is_channels_last(y):
            _multiply(source[part], weights.squeeze(2).mT, then.bias, y[part])
        else:
            convolve(source[part], weights, y[part], *rest, epilogue=then)
    return y


def _transposed(x, weight, mixing, geometry: Geometry, bias: Tensor | None) -> Tensor:
    """Return the gradient of an image whose output has the gradient x, plus bias [batch, channels]."""
    y = empty_as(x, geometry.input_shape(x, weight))
    if x.shape[0]:
        how = _plan(y, weight, geometry, per_sample=mixing is None)
        source = x.contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.contiguous()
        _input_gradient(how, source, y, weight, mixing, geometry, epilogue=Epilogue(bias))
    return y


def _input_gradient(how, grad, dx, weight, mixing, geometry: Geometry, probe=None, epilogue: Epilogue = NOTHING):
    """Fill dx with the gradient of x; return `<probe_b, gradient through expert k>` [batch, experts] where given x."""
    kernel, batch = tuple(weight.shape[3:]), len(dx)
    if how.regime == "depthwise":
        rest = (geometry, kernel, how.input_gradient, True)
        chunk = min(how.backward_chunk, batch)
        for part, weights, shares in _depthwise_weights(how.input_gradient, weight, mixing, batch, chunk):
            convolve_depthwise(grad[part], weights, dx[part], *rest, shares, epilogue.of(part))
        return None
    rest = (geometry, kernel, how.input_gradient, _precision(dx), True)
    if how.regime == "stacked":
        products = None
        if probe is not None:
            blocks = geometry.groups * -(-dx.shape[1] // geometry.groups // how.input_gradient.block_n)
            # zeros: a stride larger than the kernel leaves pixels that no tap reaches
            products = grad.new_zeros((blocks, len(weight), batch, dx.shape[2] * dx.shape[3]), dtype=torch.float32)
        stacked = {"mixing": mixing, "epilogue": epilogue, "probe": probe, "products": products}
        convolve(grad, channels_last(weight), dx, *rest, **stacked)
        return None if products is None else sum_outer_and_inner(products).T
    for part, weights in _weights(weight, mixing, batch, min(how.backward_chunk, batch)):
        then = epilogue.of(part)
        if how.regime == "pointwise" and _is_channels_last(dx):
            _multiply(grad[part], weights.squeeze(2), then.bias, dx[part])
        else:
            convolve(grad[part], weights, dx[part], *rest, epilogue=then)
    return None


def _expert_gradient(how, grad, x, experts, mixing, geometry: Geometry, for_mixing):
    """Return the gradients of experts, in their shape and dtype, and of mixing in float32; x is channels_last."""
    given = _as_one_output(experts) if how.regime == "depthwise" else experts
    kernel, config = tuple(experts.shape[3:]), how.weight_gradient
    rest = (geometry, kernel, config, _precision(x))
    if how.regime != "depthwise" and config.apart and config.few:
        parts = own_parts(tuple(grad.shape[2:]), config)
        shape = (x.shape[0] * parts, experts.shape[1], kernel[0] * kernel[1], experts.shape[2])
        own = sample_gradients(grad, x, grad.new_empty(shape, dtype=own_dtype(x.dtype)), *rest)
        return contract_few(own, experts.contiguous(), mixing, for_mixing)
    last = channels_last(given) if for_mixing else None
    if how.regime != "depthwise" and not config.apart:
        gradient, products = expert_gradients(grad, x, last, mixing, *rest)
        del last
        return channels_first(gradient, experts), products
    batch, shape = x.shape[0], (given.shape[1], kernel[0] * kernel[1], given.shape[2])
    whole = how.own_chunk >= batch
    gradient = grad.new_empty((experts.shape[0], *shape), dtype=x.dtype if whole else torch.float32)
    products = []
    dtype = own_dtype(x.dtype)
    for part, own in _own_gradients(how, grad, x, shape, dtype, geometry, kernel):
        parts = len(own) // (part.stop - part.start)
        products.append(contract(own, last, mixing[part], gradient, part.start > 0, parts))
    gradient = channels_first(gradient, given).reshape(experts.shape)
    if last is None:
        return gradient, None
    return gradient, products[0] if len(products) == 1 else torch.cat(products)


def _sample_weight_gradient(how, grad, x, weight, geometry: Geometry):
    """Return the gradient of weights given per sample, in their shape and dtype."""
    source = x.contiguous(memory_format=torch.channels_last)
    if how.regime == "pointwise":
        return torch.bmm(_as_matrix(grad).mT, _as_matrix(source)).reshape(weight.shape)
    kernel = tuple(weight.shape[3:])
    dweight = weight.new_empty(weight.shape)
    given = _as_one_output(dweight) if how.regime == "depthwise" else dweight
    shape = (given.shape[1], kernel[0] * kernel[1], given.shape[2])
    if how.regime != "depthwise" and 1 in shape[1:]:  # lies as it is made
        rest = (geometry, kernel, how.weight_gradient, _precision(x))
        return sample_gradients(grad, source, dweight.view(-1, *shape), *rest).view(weight.shape)
    dtype = torch.float32 if how.regime == "depthwise" else weight.dtype
    for part, own in _own_gradients(how, grad, source, shape, dtype, geometry, kernel):
        own = own.unflatten(0, (part.stop - part.start, -1))
        own = own[:, 0] if own.shape[1] == 1 else own.sum(1)
        given[part].flatten(3).copy_(own.transpose(2, 3))
    return dweight


def _own_gradients(how, grad, x, shape, dtype, geometry: Geometry, kernel):
    """Yield slices of the batch and their samples' own weight gradients [samples * parts, *shape], in a buffer."""
    config, batch, chunk = how.weight_gradient, x.shape[0], min(how.own_chunk, x.shape[0])
    parts = own_parts(tuple(grad.shape[2:]), config)
    buffer = grad.new_empty((chunk * parts, *shape), dtype=dtype)
    for begin in range(0, batch, chunk):
        part = slice(begin, min(begin + chunk, batch))
        own = buffer[: (part.stop - begin) * parts]
        if how.regime == "depthwise":
            depthwise_gradients(grad[part], x[part], own.squeeze(1), geometry, kernel, config)
        else:
            sample_gradients(grad[part], x[part], own, geometry, kernel, config, _precision(x))
        yield part, own


def _weights(weight: Tensor, mixing: Tensor | None, batch: int, chunk: int, dtype: torch.dtype | None = None):
    """Yield slices of the batch and their weights [samples, out, taps, in/groups], in a buffer used again.

    They have weight's dtype where none is given.
    """
    dtype = dtype or weight.dtype
    last = None if mixing is not None else weight.flatten(3).transpose(2, 3)
    if last is not None and last.is_contiguous() and last.dtype == dtype:
        yield slice(0, batch), last
        return
    taps = weight.shape[3] * weight.shape[4]
    buffer = weight.new_empty((chunk, weight.shape[1], taps, weight.shape[2]), dtype=dtype)
    experts = weight.contiguous()
    for begin in range(0, batch, chunk):
        part = slice(begin, min(begin + chunk, batch))
        own = buffer[: part.stop - begin]
        yield part, mix_into(own, experts, mixing[part]) if last is None else own.copy_(last[part])


def _as_one_output(weight: Tensor) -> Tensor:
    """View a depthwise weight [.., out, 1, kh, kw] as [.., 1, out, kh, kw]."""
    return weight.transpose(1, 2)


def _depthwise_weights(config: DepthwiseConfig, weight: Tensor, mixing: Tensor | None, batch: int, chunk: int):
    """Yield slices of the batch, their weights as `convolve_depthwise` takes them, and the mixing it is to do."""
    if holds_weights(config, weight.shape[3] * weight.shape[4]):
        yield slice(0, batch), weight.flatten(2).contiguous(), mixing
        return
    for part, own in _weights(_as_one_output(weight), mixing, batch, chunk, torch.float32):
        yield part, own.squeeze(1), None


def _multiply(source: Tensor, weights: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Fill `out` with the channels of each pixel of `source` times weights [batch, in, out], plus bias [batch, out]."""
    matrices = _as_matrix(source), weights
    if bias is None:
        torch.bmm(*matrices, out=_as_matrix(out))
    else:
        torch.baddbmm(bias[:, None].to(out.dtype), *matrices, out=_as_matrix(out))


def _is_channels_last(x: Tensor) -> bool:
    """Return whether `_as_matrix` can view x."""
    return x.is_contiguous(memory_format=torch.channels_last)


def _as_matrix(x: Tensor) -> Tensor:
    """View channels_last [batch, channels, height, width] as [batch, pixels, channels]."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _over_pixels(grad: Tensor) -> Tensor:
    """Return the sum over pixels [batch, out], float32."""
    return grad.sum((2, 3), dtype=torch.float32)


def _precision(x: Tensor) -> str:
    """Return the precision of float32 products: TF32 where torch allows it to its own convolutions."""
    return "tf32" if x.dtype == torch.float32 and x.is_cuda and allows_tf32() else "ieee"


def _plan(x, weight, geometry: Geometry, per_sample) -> Plan:
    problem = problem_of(x, weight, geometry, per_sample)
    return plan(problem, device_of(x.device.index) if x.is_cuda else HOPPER)
