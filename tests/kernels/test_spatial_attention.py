import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from polychrome.kernels import channel_stats, spatial_attention, use_backend
from tests.grids import grid
from tests.kernels.oracle import (
    TOLERANCES,
    assert_near_exact,
    assert_one_compilation,
    exact_outcome,
    outcome,
    randn,
    rms_ratio,
)

DTYPES = list(TOLERANCES)
ids = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get
SHAPES = [(3, 5, 9, 8), (2, 1, 7, 7), (2, 2, 6, 5), (1, 3, 4, 9), (2, 16, 3, 3), (2, 4, 1, 1)]
MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()


def attention_arguments(shape=SHAPES[0], kernel=7, dtype=torch.float32, with_bias=True):
    weight = randn(1, 2, kernel, kernel, seed=1) / kernel
    return [randn(*shape, dtype=dtype), weight, randn(1, seed=2) if with_bias else None]


def arguments_of(function, shape=SHAPES[0], dtype=torch.float32):
    return [randn(*shape, dtype=dtype), None] if function is channel_stats else attention_arguments(shape, dtype=dtype)


both = pytest.mark.parametrize("function", [channel_stats, spatial_attention], ids=lambda f: f.__name__)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@both
def test_output_and_gradients_are_near_the_exact_ones(function, shape, dtype):
    assert_near_exact(function, arguments_of(function, shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
def test_masked_stats_are_near_the_exact_ones(dtype):
    assert_near_exact(channel_stats, [randn(*SHAPES[0], dtype=dtype), MASK])


@pytest.mark.parametrize("kernel", [3, 5, 7, 11])
@pytest.mark.parametrize("with_bias", [True, False])
def test_attention_of_every_kernel_size(kernel, with_bias):
    assert_near_exact(spatial_attention, attention_arguments(kernel=kernel, with_bias=with_bias))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_masked_stats_equal_those_of_the_present_channels_alone(backend):
    x = randn(*SHAPES[0]).requires_grad_()
    with use_backend(backend):
        masked = channel_stats(x, MASK)
        alone = torch.cat([channel_stats(x[b : b + 1, MASK[b]]) for b in range(3)])
        every = channel_stats(x, torch.ones_like(MASK))
    torch.testing.assert_close(masked, alone, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(every, channel_stats(x), rtol=1e-6, atol=1e-6)
    grad = randn(*masked.shape)
    (one,) = torch.autograd.grad(masked, x, grad)
    (other,) = torch.autograd.grad(alone, x, grad)
    torch.testing.assert_close(one, other)
    assert not one[~MASK].any()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_absent_channels_may_hold_anything(backend):
    x = randn(*SHAPES[0])
    poisoned = x.clone()
    poisoned[~MASK] = torch.nan
    with use_backend(backend):
        for one, other in zip(outcome(channel_stats, [x, MASK]), outcome(channel_stats, [poisoned, MASK]), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["auto", "reference", "triton"])
def test_an_absent_channel_gets_no_gradient_where_all_present_ones_are_minus_infinity(backend):
    x = torch.tensor([5.0, -torch.inf, -torch.inf])[None, :, None, None].requires_grad_()
    with use_backend(backend):
        channel_stats(x, torch.tensor([[False, True, True]])).sum().backward()
    assert x.grad.flatten().tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("channels", [2, 5, 64])
def test_the_max_sends_its_gradient_to_one_channel_as_torch_max_does(backend, channels):
    x = torch.zeros(2, channels, 4, 3, requires_grad=True)
    with use_backend(backend):
        channel_stats(x)[:, 1].sum().backward()
    index = x.detach().max(1, keepdim=True).indices
    assert torch.equal(x.grad, torch.zeros_like(x).scatter(1, index, 1))
    assert x.grad.sum() == 2 * 4 * 3


def test_an_absent_channel_has_no_part_in_the_second_derivative_either():
    x = torch.tensor([[[[0.0]], [[-torch.inf]]]], dtype=torch.float64, requires_grad=True)
    mask, found = torch.tensor([[False, True]]), []
    for function in (channel_stats, channel_stats.reference):
        y = function(x, mask)
        grad = torch.ones_like(y, requires_grad=True)
        (dx,) = torch.autograd.grad(y, x, grad, create_graph=True)
        change = torch.tensor([5.0, 7.0], dtype=torch.float64).reshape(dx.shape)
        found.append(torch.autograd.grad(dx, grad, change)[0].flatten().tolist())
    assert found == [[7, 0]] * 2


def test_attention_on_ties_equals_the_reference():
    x = randn(2, 8, 6, 5).relu() * torch.tensor([0.0, 1.0])[:, None, None, None]
    arguments = [x, *attention_arguments()[1:]]
    op, definition = outcome(spatial_attention, arguments), outcome(spatial_attention.reference, arguments)
    for one, other in zip(op, definition, strict=True):
        torch.testing.assert_close(one, other)


def test_stats_and_attention_by_hand():
    x = torch.tensor([1.0, 2.0, 6.0])[None, :, None, None]
    assert channel_stats(x).flatten().tolist() == [3, 6]
    weight = torch.zeros(1, 2, 3, 3)
    weight[0, :, 1, 1] = torch.tensor([1.0, -0.5])
    assert torch.equal(spatial_attention(x, weight, torch.zeros(1)), x * 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ids)
def test_weights_in_low_precision_are_allowed_and_get_gradients_in_it(dtype):
    arguments = [a.to(dtype) for a in attention_arguments()]
    assert_near_exact(spatial_attention, arguments)
    assert [g.dtype for g in outcome(spatial_attention, arguments)] == [dtype] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ids)
def test_error_is_at_most_twice_that_of_the_definition_in_the_same_dtype(dtype):
    arguments = attention_arguments(dtype=dtype)
    exact = exact_outcome(spatial_attention, arguments)
    op, definition = (outcome(f, arguments) for f in (spatial_attention, spatial_attention.reference))
    for got, naive, truth in zip(op, definition, exact, strict=True):
        assert rms_ratio(got, truth) <= 2 * rms_ratio(naive, truth) + 1e-6


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradcheck(backend):
    x, weight, bias = (a.double().requires_grad_() for a in attention_arguments((2, 3, 4, 3), kernel=3))
    with use_backend(backend):
        assert torch.autograd.gradcheck(spatial_attention, (x, weight, bias), check_batched_grad=False)
        assert torch.autograd.gradcheck(channel_stats, (x, None))
        assert torch.autograd.gradcheck(channel_stats, (x, MASK[:2, :3]))


@both
def test_channels_last_is_kept_and_changes_no_number(function):
    x, *rest = arguments_of(function)
    plain = outcome(function, [x, *rest])
    last = outcome(function, [x.to(memory_format=torch.channels_last), *rest])
    for one, other in zip(last, plain, strict=True):
        torch.testing.assert_close(one, other)
    for got in last[:2]:
        assert got.is_contiguous(memory_format=torch.channels_last)
    for got in plain[:2]:
        assert got.is_contiguous()


@both
def test_x_of_any_stride(function):
    x, *rest = arguments_of(function)
    plain = outcome(function, [x, *rest])
    wide = torch.cat([x, x], 3)
    for same in (x.transpose(2, 3).contiguous().transpose(2, 3), wide[..., : x.shape[3]], torch.cat([x, x], 1)[:, :5]):
        leaf = same.detach().requires_grad_()
        y = function(leaf, *rest)
        y.backward(randn(*y.shape, seed=7))
        torch.testing.assert_close(y.detach(), plain[0])
        torch.testing.assert_close(leaf.grad, plain[1])


@both
def test_gradients_of_any_stride(function):
    arguments = arguments_of(function)
    shape = function(*arguments).shape
    assert_near_exact(function, arguments, torch.tensor(0.5).expand(shape))
    assert_near_exact(function, arguments, torch.cat([randn(*shape), randn(*shape, seed=1)], 1)[:, : shape[1]])
    assert_near_exact(function, arguments, randn(*shape).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])
def test_frozen_arguments_get_no_gradient_and_change_no_other(frozen):
    assert_near_exact(spatial_attention, attention_arguments(), frozen=frozen)


def test_autocast_keeps_x_dtype_and_float32_inside():
    x, weight, bias = attention_arguments()
    with torch.autocast("cpu", torch.bfloat16):
        for arguments in ([x, weight, bias], [x.bfloat16(), weight, bias]):
            got = spatial_attention(*arguments)
            assert got.dtype == arguments[0].dtype
            with use_backend("reference"):
                torch.testing.assert_close(spatial_attention(*arguments), got)
            exact = spatial_attention.reference(*(a.double() for a in arguments))
            assert rms_ratio(got, exact) <= TOLERANCES[got.dtype][0]
        assert channel_stats(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        y = spatial_attention(*(leaves := [a.clone().requires_grad_() for a in (x, weight, bias)]))
        y.backward(randn(*y.shape, seed=7))
    for leaf, exact in zip(leaves, exact_outcome(spatial_attention, [x, weight, bias])[1:], strict=True):
        assert rms_ratio(leaf.grad, exact) <= 1e-5


@both
def test_nan_passes_through(function):
    x, *rest = arguments_of(function)
    x[1, 2, 3, 4] = torch.nan
    y = function(x, *rest)
    assert y[1, :, 3, 4].isnan().all()
    assert not y[[0, 2]].isnan().any()


@grid(
    strength=1, shape=[(3, 5, 9, 8), (2, 1, 4, 3), (2, 5, 1, 1)], layout=[torch.contiguous_format, torch.channels_last]
)
def test_opcheck(shape, layout):
    x, weight, bias = attention_arguments(shape)
    x = x.to(memory_format=layout).requires_grad_()
    mask = torch.ones(shape[:2]).bool()
    ops = torch.ops.polychrome
    torch.library.opcheck(ops.channel_stats.default, (x, None))
    torch.library.opcheck(ops.channel_stats.default, (x, mask))
    torch.library.opcheck(ops.spatial_attention.default, (x, weight.requires_grad_(), bias.requires_grad_()))
    x, weight, bias = (a.detach() for a in (x, weight, bias))
    stats, argmax = ops.channel_stats(x, mask)
    torch.library.opcheck(ops.channel_stats_backward.default, (stats, mask, argmax, shape[1], False))
    torch.library.opcheck(ops.channel_stats_backward.default, (stats, None, argmax, shape[1], True))
    y, *saved = ops.spatial_attention(x, weight, bias)
    # A model in channels_last has its weights so, too.
    for kernel in (weight, weight.to(memory_format=torch.channels_last)):
        for needed in ([True, True, True], [True, False, False], [False, False, True]):
            torch.library.opcheck(ops.spatial_attention_backward.default, (y, x, kernel, bias, *saved, needed))


def test_one_compilation_serves_every_batch_size():
    _, weight, bias = attention_arguments()
    assert_one_compilation(spatial_attention, lambda b: [randn(b, 5, 9, 8), weight, bias], [0, None, None])
    assert_one_compilation(channel_stats, lambda b: [randn(b, 5, 9, 8), MASK[:1].expand(b, -1).clone()], [0, 0])


def test_one_compilation_serves_every_image_size():
    _, weight, bias = attention_arguments()
    layout = torch.channels_last
    assert_one_compilation(
        spatial_attention, lambda size: [randn(2, 5, size, 9).to(memory_format=layout), weight, bias], [2, None, None]
    )


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_flops_are_those_of_the_convolution_of_two_maps(backend):
    x, weight, bias = (a.requires_grad_() for a in attention_arguments())
    with use_backend(backend), FlopCounterMode(display=False) as forward:
        y = spatial_attention(x, weight, bias)
    assert forward.get_total_flops() == 2 * (3 * 9 * 8) * 2 * 49
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    maps = randn(3, 2, 9, 8).requires_grad_()
    with FlopCounterMode(display=False) as plain:
        F.conv2d(maps, weight, padding=3).sum().backward()
    assert forward.get_total_flops() + backward.get_total_flops() == plain.get_total_flops()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_sample_without_channels_is_named(backend):
    mask = MASK.clone()
    mask[1] = False
    with use_backend(backend), pytest.raises(ValueError, match="mask must leave") as caught:
        channel_stats(randn(*SHAPES[0]), mask)
    assert str(caught.value) == "mask must leave at least one channel in every sample, got none in sample 1"


def test_a_sample_without_channels_is_named_under_compile():
    compiled = torch.compile(channel_stats, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="got none in sample 0"):
        compiled(randn(*SHAPES[0]), torch.zeros_like(MASK))


@pytest.mark.parametrize(
    ("error", "message", "mask"),
    [
        (TypeError, "mask must be a bool tensor, got torch.float32", torch.ones(3, 5)),
        (TypeError, "mask must be a bool tensor, got list", [[True]]),
        (ValueError, "mask must be [batch=3, channels=5], got [3, 4]", torch.ones(3, 4).bool()),
        (ValueError, "mask must be on x's device cpu, got meta", torch.ones(3, 5, device="meta").bool()),
    ],
)
def test_bad_masks_are_named(error, message, mask):
    with pytest.raises(error) as caught:
        channel_stats(randn(*SHAPES[0]), mask)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (
            TypeError,
            "x must be float32, float64, float16 or bfloat16, got uint8",
            {"x": torch.zeros(1, 2, 3, 3).byte()},
        ),
        (ValueError, "x must be [batch, channels, height, width], got [2, 3]", {"x": torch.zeros(2, 3)}),
        (ValueError, "x must have at least one channel, got [2, 0, 3, 3]", {"x": torch.zeros(2, 0, 3, 3)}),
        (ValueError, "x must have at least one pixel, got [2, 3, 0, 2]", {"x": torch.zeros(2, 3, 0, 2)}),
        (ValueError, "weight must be [1, 2, k, k], got [2, 7, 7]", {"weight": torch.zeros(2, 7, 7)}),
        (ValueError, "weight must be [1, 2, k, k], got [1, 2, 3, 5]", {"weight": torch.zeros(1, 2, 3, 5)}),
        (
            ValueError,
            "weight must be [1, 2, k, k] with k odd and at least 3, got [1, 2, 4, 4]",
            {"weight": torch.zeros(1, 2, 4, 4)},
        ),
        (
            ValueError,
            "weight must be [1, 2, k, k] with k odd and at least 3, got [1, 2, 1, 1]",
            {"weight": torch.zeros(1, 2, 1, 1)},
        ),
        (
            TypeError,
            "weight must be float32 or have x's dtype float32, got float64",
            {"weight": torch.zeros(1, 2, 3, 3).double()},
        ),
        (ValueError, "weight must be on x's device cpu, got meta", {"weight": torch.zeros(1, 2, 3, 3, device="meta")}),
        (ValueError, "bias must be [out_channels=1], got [2]", {"bias": torch.zeros(2)}),
        (TypeError, "bias must be a tensor, got float", {"bias": 0.5}),
    ],
)
def test_bad_arguments_are_named(error, message, changes):
    x, weight, bias = attention_arguments()
    with pytest.raises(error) as caught:
        spatial_attention(**{"x": x, "weight": weight, "bias": bias, **changes})
    assert str(caught.value) == message
