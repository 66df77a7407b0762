"""Dynamic convolution that mixes the experts first, a few samples at a time, then convolves each with its mix."""

from torch import Tensor

from polychrome.kernels.dynamic_conv.eager import columns
from polychrome.kernels.dynamic_conv.eager.forms import Forms
from polychrome.kernels.dynamic_conv.eager.mixing import Gradients, mixer, sample_slices
from polychrome.kernels.dynamic_conv.eager.per_sample import convolve, convolve_backward
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.reference import mix
from polychrome.kernels.tensors import empty_as, is_channels_last, laid_out_as


def forward(form: str, x, experts, mixing, bias, geometry: Geometry) -> Tensor:
    """Return each sample convolved with its mix, laid out as x."""
    if form == "columns":
        return columns.forward(x, experts, mixing, bias, geometry)
    weights = mixer(experts, mixing, form == "loop" and is_channels_last(x))
    biases = mix(mixing, bias)
    slices = sample_slices(len(x), experts)
    if len(slices) == 1:
        return laid_out_as(x, convolve(form, x, weights[slices[0]], biases, geometry))
    y = empty_as(x, geometry.output_shape(x, experts))
    for part in slices:
        some = None if bias is None else biases[part]
        convolve(form, x[part], weights[part], some, geometry, y[part])
    return y


def backward(
    forms: Forms, grad, x, experts, mixing, dmixing, geometry: Geometry, for_x, for_experts
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x, in x's layout, and experts, None where not needed; add to dmixing if not None."""
    arguments = (grad, x, experts, mixing)
    by_input, by_weight = forms.input_gradient.form, forms.weight_gradient.form
    for_weights = for_experts or dmixing is not None
    dx = dexperts = None
    if by_input == by_weight:
        dx, dexperts = _gradients(by_input, *arguments, dmixing, geometry, for_x, for_experts)
    else:
        if for_x and by_input.startswith("swapped"):
            dx = _swapped_input_gradient(by_input.removeprefix("swapped "), *arguments, geometry)
        elif for_x:
            dx, _ = _gradients(by_input, *arguments, None, geometry, True, False)
        if for_weights and by_weight == "columns":
            dexperts = columns.expert_gradient(*arguments, dmixing, for_experts, geometry)
        elif for_weights:
            _, dexperts = _gradients(by_weight, *arguments, dmixing, geometry, False, for_experts)
    return laid_out_as(x, dx) if for_x else None, dexperts


def _gradients(form, grad, x, experts, mixing, dmixing, geometry: Geometry, for_x, for_experts):
    """Return the gradients of x and experts, None where not needed; add to dmixing if not None."""
    needed = [for_x, dmixing is not None or for_experts]
    last = form == "loop" and is_channels_last(x)
    weights = mixer(experts, mixing, last) if for_x else None
    slices = sample_slices(len(x), experts, at_least=2 if needed[1] else 1)
    gradients = Gradients(experts, mixing, dmixing, for_experts, len(slices), last) if needed[1] else None
    dx = empty_as(x, x.shape) if for_x and (len(slices) > 1 or form == "loop") else None
    for part in slices:
        samples = x[part]
        some = weights[part] if for_x else experts[:1].expand(len(samples), -1, -1, -1, -1)
        into = None if dx is None else dx[part]
        found, gradient = convolve_backward(form, grad[part], samples, some, geometry, needed, into)
        if for_x and dx is None:
            dx = found
        if needed[1]:
            gradients.add(part, gradient)
    return dx, gradients.experts if needed[1] else None


def _swapped_input_gradient(form, grad, x, experts, mixing, geometry: Geometry) -> Tensor:
    """Return the gradient of x as grad convolved, at stride 1, with flipped kernels of swapped in and out channels."""
    _, padding, dilation, groups = geometry
    swapped = experts.unflatten(1, (groups, -1)).transpose(2, 3).flatten(1, 2).flip(3, 4)
    before = [d * (k - 1) - p for d, k, p in zip(dilation, experts.shape[3:], padding[::2], strict=True)]
    after = [x.shape[2 + i] - grad.shape[2 + i] + padding[2 * i] for i in (0, 1)]
    around = geometry._replace(padding=[before[0], after[0], before[1], after[1]])
    return forward(form, grad, swapped, mixing if mixing.dim() == 2 else mixing.flip(2), None, around)
