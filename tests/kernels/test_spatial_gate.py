"""spatial_gate in eager PyTorch, and its Triton kernels, run by Triton's interpreter on CPU tensors.

Deterministic algorithms are on in the whole file, which also makes torch fill new memory with NaN: what a kernel does
not write, a test sees.
"""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from polychrome.kernels import channel_stats, spatial_attention, spatial_gate, use_backend
from polychrome.kernels.launch import record_launches
from polychrome.kernels.spatial_attention import configs
from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.oracle import (
    TOLERANCES,
    assert_near_exact,
    assert_one_compilation,
    exact_outcome,
    outcome,
    randn,
    rms_ratio,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
SHAPE = (3, 5, 9, 8)
SHAPES = [SHAPE, (2, 1, 7, 7), (2, 3, 5, 9), (1, 256, 4, 4), (2, 256, 3, 5), (2, 16, 8, 6), (2, 4, 1, 1)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
IDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TRITON = pytest.param("triton", marks=needs_interpreter)
BACKENDS = ["auto", TRITON]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def few_programs(monkeypatch):
    """Let the kernels take their widest block of pixels, as they would with many; a program walks over more then."""
    monkeypatch.setattr(configs, "PROGRAMS", 2)
    monkeypatch.setattr(configs, "FEW", 0)


def arguments_of(shape=SHAPE, dtype=torch.float32, logits_dtype=None):
    batch, _, height, width = shape
    return [randn(*shape, dtype=dtype), 2 * randn(batch, 1, height, width, seed=1, dtype=logits_dtype or dtype)]


@grid(
    # The interpreter gets bfloat16 wrong.
    lambda backend, dtype, **_: backend == "auto" or dtype != torch.bfloat16,
    shape=SHAPES,
    layout=LAYOUTS,
    backend=BACKENDS,
    dtype=list(TOLERANCES),
)
def test_output_and_gradients_are_near_the_exact_ones(shape, layout, backend, dtype):
    for logits_dtype in {dtype, torch.float32}:
        x, logits = arguments_of(shape, dtype, logits_dtype)
        with use_backend(backend):
            assert_near_exact(spatial_gate, [x.to(memory_format=layout), logits])
            got = outcome(spatial_gate, [x.to(memory_format=layout), logits])
        assert [tensor.dtype for tensor in got] == [dtype, dtype, logits_dtype]


@needs_interpreter
@layouts
@pytest.mark.parametrize("shape", [(2, 3, 20, 16), (2, 5, 7, 33), (1, 70, 16, 8), (3, 256, 6, 7)], ids=str)
def test_wide_blocks_are_near_the_exact_result(shape, layout, few_programs):
    x, logits = arguments_of(shape, torch.float16)
    with use_backend("triton"), record_launches() as launches:
        assert_near_exact(spatial_gate, [x.to(memory_format=layout), logits])
    looped = launches[1].options["BLOCK_C"] < shape[1]
    assert looped == (shape[1] > (128 if layout == torch.channels_last else 16))


def test_by_hand():
    x = torch.tensor([2.0, -4.0])[None, :, None, None].requires_grad_()
    logits = torch.zeros(1, 1, 1, 1, requires_grad=True)
    y = spatial_gate(x, logits)
    y.backward(torch.tensor([1.0, 3.0])[None, :, None, None])
    assert y.flatten().tolist() == [1, -2]
    assert x.grad.flatten().tolist() == [0.5, 1.5]
    assert logits.grad.item() == -2.5  # 1/4 (1 * 2 + 3 * -4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=IDS.get)
def test_error_is_at_most_twice_that_of_the_definition_in_the_same_dtype(dtype):
    arguments = arguments_of(dtype=dtype)
    exact = exact_outcome(spatial_gate, arguments)
    op, definition = (outcome(f, arguments) for f in (spatial_gate, spatial_gate.reference))
    for got, naive, truth in zip(op, definition, exact, strict=True):
        assert rms_ratio(got, truth) <= 2 * rms_ratio(naive, truth) + 1e-6


@backends
def test_the_layout_of_x_is_kept(backend):
    x, logits = arguments_of()
    for layout in LAYOUTS:
        with use_backend(backend):
            y, dx, dlogits = outcome(spatial_gate, [x.to(memory_format=layout), logits])
        assert y.is_contiguous(memory_format=layout)
        assert dx.is_contiguous(memory_format=layout)
        assert dlogits.is_contiguous()


@backends
@pytest.mark.parametrize("stride", ["expanded", "of two channels", "of a wider image", "channels_last", "transposed"])
def test_logits_of_any_stride(stride, backend):
    x, logits = arguments_of()
    same = {
        "expanded": logits[:1, :, :, :1].expand(3, -1, -1, 8),
        "of two channels": torch.cat([logits, logits + 1], 1)[:, :1],
        "of a wider image": torch.cat([logits, logits + 1], 3)[..., :8],
        "channels_last": torch.cat([logits, logits + 1], 1).to(memory_format=torch.channels_last)[:, :1],
        "transposed": logits.transpose(2, 3).contiguous().transpose(2, 3),
    }[stride]
    assert same.stride() != logits.stride()
    leaves = x.clone().requires_grad_(), same.detach().requires_grad_()
    with use_backend(backend):
        y = spatial_gate(*leaves)
        y.backward(randn(*y.shape, seed=7))
    got = y.detach(), *(leaf.grad for leaf in leaves)
    for one, exact in zip(got, exact_outcome(spatial_gate, [x, same]), strict=True):
        assert rms_ratio(one, exact) <= 1e-5


@backends
def test_x_and_gradients_of_any_stride(backend):
    x, logits = arguments_of()
    halves = torch.cat([randn(*SHAPE), randn(*SHAPE, seed=1)], 1)[:, :5]
    for grad in (torch.tensor(0.5).expand(SHAPE), halves, randn(*SHAPE).to(memory_format=torch.channels_last)):
        with use_backend(backend):
            assert_near_exact(spatial_gate, [x, logits], grad)
    wide = torch.cat([x, x], 3)[..., :8]
    shared = x[:1, :, :1].expand(3, -1, 9, -1)
    for same in (x.transpose(2, 3).contiguous().transpose(2, 3), wide, torch.cat([x, x], 1)[:, :5], shared):
        leaf = same.detach().requires_grad_()
        with use_backend(backend):
            y = spatial_gate(leaf, logits)
            y.backward(randn(*SHAPE, seed=7))
        exact = exact_outcome(spatial_gate, [same, logits])
        assert rms_ratio(y, exact[0]) <= 1e-5
        assert rms_ratio(leaf.grad, exact[1]) <= 1e-5


@pytest.mark.parametrize("frozen", [(0,), (1,)], ids=["x", "logits"])
@backends
def test_frozen_arguments_get_no_gradient_and_change_no_other(frozen, backend):
    for shape in (SHAPE, (2, 70, 3, 4)):
        with use_backend(backend):
            assert_near_exact(spatial_gate, arguments_of(shape), frozen=frozen)


@needs_interpreter
@pytest.mark.parametrize("frozen", [(), (0,), (1,)], ids=["nothing", "x", "logits"])
def test_a_frozen_x_is_not_written_and_with_frozen_logits_x_is_not_read(frozen):
    with use_backend("triton"), record_launches() as launches:
        outcome(spatial_gate, arguments_of(), frozen=frozen)
    assert [launch.kernel.__name__ for launch in launches] == ["scale_pixels_kernel", "scale_pixels_backward_kernel"]
    given = dict(zip(launches[1].kernel.arg_names, launches[1].arguments, strict=False))
    absent = {name for name, argument in given.items() if argument is None}
    assert absent == {(): set(), (0,): {"dx_ptr"}, (1,): {"x_ptr", "dlogits_ptr"}}[frozen]


@backends
def test_two_runs_agree_bit_for_bit(backend):
    arguments = arguments_of(dtype=torch.float16)
    with use_backend(backend):
        for one, other in zip(outcome(spatial_gate, arguments), outcome(spatial_gate, arguments), strict=True):
            assert torch.equal(one, other)


@backends
def test_infinite_logits_close_and_open_the_gate(backend):
    x, logits = arguments_of()
    logits[0], logits[1] = -torch.inf, torch.inf
    grad = randn(*SHAPE, seed=7)
    with use_backend(backend):
        y, dx, dlogits = outcome(spatial_gate, [x, logits], grad)
    assert not y[0].any()
    assert not dx[0].any()
    assert torch.equal(y[1], x[1])
    assert torch.equal(dx[1], grad[1])
    assert not dlogits[:2].any()
    assert dlogits[2].all()


@backends
def test_nan_stays_in_its_pixel(backend):
    x, logits = arguments_of()
    logits[1, 0, 3, 4] = torch.nan
    x[2, 4, 8, 7] = torch.nan
    with use_backend(backend):
        y, dx, dlogits = outcome(spatial_gate, [x, logits])
    assert y[1, :, 3, 4].isnan().all()
    assert y[2, 4, 8, 7].isnan()
    assert y.isnan().sum() == 5 + 1
    assert dx[1, :, 3, 4].isnan().all()
    assert dx.isnan().sum() == 5
    assert dlogits.isnan().nonzero().tolist() == [[1, 0, 3, 4], [2, 0, 8, 7]]


@pytest.mark.parametrize("backend", ["auto", "reference", TRITON])
def test_empty_batch_and_empty_image(backend):
    x, logits = arguments_of()
    with use_backend(backend), record_launches() as launches:
        for empty in ([x[:0], logits[:0]], [x[:, :, :0], logits[:, :, :0]]):
            y, dx, dlogits = outcome(spatial_gate, empty)
            assert y.shape == dx.shape == empty[0].shape
            assert dlogits.shape == empty[1].shape
    assert not launches


class PlainAttention(nn.Module):
    """CBAM's spatial half as timm has it, with a normalisation before the sigmoid."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return x * self.norm(self.conv(maps)).sigmoid()


class Attention(PlainAttention):
    """The same of this project's ops."""

    def forward(self, x):
        return spatial_gate(x, self.norm(self.conv(channel_stats(x))))


def attention_of(kind):
    layer = kind()
    layer.conv.weight.data = randn(1, 2, 7, 7) / 3
    layer.norm.weight.data, layer.norm.bias.data = torch.tensor([1.5]), torch.tensor([-0.25])
    layer.norm.running_mean.fill_(0.1)
    layer.norm.running_var.fill_(0.6)
    return layer


@layouts
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@backends
def test_composed_attention_with_a_normalisation_equals_plain_pytorch(backend, training, layout):
    x = randn(3, 12, 9, 8).to(memory_format=layout)
    found = []
    for kind in (Attention, PlainAttention):
        layer = attention_of(kind).train(training)
        with use_backend(backend):
            y, dx = outcome(layer, [x])
        gradients = [parameter.grad for parameter in layer.parameters()]
        assert len(gradients) == 3
        assert all(gradient.any() for gradient in gradients)
        found.append([y, dx, *gradients, layer.norm.running_mean, layer.norm.running_var])
    for ours, plain in zip(*found, strict=True):
        assert rms_ratio(ours, plain) <= 1e-5


@backends
def test_attention_is_the_gate_of_the_convolved_statistics(backend):
    x, weight, bias = randn(2, 6, 9, 7), randn(1, 2, 5, 5) / 3, randn(1)

    def composed(x, weight, bias):
        return spatial_gate(x, F.conv2d(channel_stats(x), weight, bias, padding=2))

    with use_backend(backend):
        one, other = (outcome(function, [x, weight, bias]) for function in (spatial_attention, composed))
    for whole, parts in zip(one, other, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "reference", TRITON])
def test_autocast_keeps_x_dtype_and_takes_logits_that_it_made_narrow(backend):
    x, wide = arguments_of()
    narrow = wide.bfloat16()
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        got, other = (outcome(spatial_gate, [x, logits]) for logits in (narrow, wide))
    assert [tensor.dtype for tensor in got] == [torch.float32, torch.float32, torch.bfloat16]
    assert other[2].dtype == torch.float32
    for one, exact in zip(other, exact_outcome(spatial_gate, [x, wide]), strict=True):
        assert rms_ratio(one, exact) <= 1e-5
    with use_backend(backend):
        y, dx, dlogits = outcome(spatial_gate, [x, narrow.float()])
    for one, expected in zip(got, (y, dx, dlogits.bfloat16()), strict=True):
        assert torch.equal(one, expected)


def test_composed_attention_runs_under_autocast():
    layer, x = attention_of(Attention), randn(3, 12, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        for source in (x, x.bfloat16()):
            y, dx = outcome(layer, [source])
            assert y.dtype == dx.dtype == source.dtype
            exact = attention_of(PlainAttention).double()(source.double())
            assert rms_ratio(y, exact) <= 1e-2  # the logits are bfloat16


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradcheck(backend):
    x, logits = (argument.double().requires_grad_() for argument in arguments_of((2, 3, 4, 3)))
    with use_backend(backend):
        assert torch.autograd.gradcheck(spatial_gate, (x, logits), check_batched_grad=False)


@needs_interpreter
def test_the_choice_of_backend_holds_for_the_gradients():
    x, logits = arguments_of()
    with use_backend("triton"):
        y = spatial_gate(x.requires_grad_(), logits)
    with record_launches() as launches:
        y.sum().backward()
    assert [launch.kernel.__name__ for launch in launches] == ["scale_pixels_backward_kernel"]


@grid(strength=1, shape=[SHAPE, (2, 1, 4, 3), (2, 5, 1, 1)], layout=LAYOUTS, backend=BACKENDS)
def test_opcheck(shape, layout, backend):
    torch.use_deterministic_algorithms(False)  # opcheck compares placeholders too
    ops = torch.ops.polychrome
    x, logits = arguments_of(shape)
    x = x.to(memory_format=layout)
    # The logits of a model in channels_last may have its strides.
    for given in (logits, logits.to(memory_format=torch.channels_last), logits.double().float()):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, given)]
        torch.library.opcheck(ops.spatial_gate.default, (*leaves, backend))
    torch.library.opcheck(ops.spatial_gate.default, (x.half().requires_grad_(), logits.requires_grad_(), backend))
    logits = logits.detach()
    for needed in ([True, True], [True, False], [False, True]):
        for given in (logits, logits.to(memory_format=torch.channels_last)):
            torch.library.opcheck(ops.spatial_gate_backward.default, (x, x, given, needed, backend))
        torch.library.opcheck(ops.spatial_gate_backward.default, (x.half(), x.half(), logits, needed, backend))


@backends
def test_one_compilation_serves_every_batch_size(backend):
    with use_backend(backend):
        assert_one_compilation(spatial_gate, lambda b: [randn(b, 5, 4, 3), randn(b, 1, 4, 3)], [0, 0], sizes=(2, 3, 5))


def test_one_compilation_serves_every_image_size():
    layout = torch.channels_last
    assert_one_compilation(
        spatial_gate, lambda size: [randn(2, 5, size, 9).to(memory_format=layout), randn(2, 1, size, 9)], [2, 2]
    )


@needs_interpreter
def test_offsets_have_64_bits_beyond_2_to_the_31_elements():
    ops = importlib.import_module("polychrome.kernels.spatial_attention.triton.ops")

    def constants(height):
        x = torch.empty(2, 16, height, 2**13, dtype=torch.float16, device="meta")
        with record_launches() as launches:
            y = ops.spatial_gate(x, x[:, :1])
            ops.spatial_gate_backward(y, x, x[:, :1], [True, True])
        return [launch.options["INDEX64"] for launch in launches]

    assert constants(2**13) == [False, False]
    assert constants(2**14) == [True, True]


@needs_interpreter
@layouts
def test_64_bit_offsets_change_no_number(layout, monkeypatch):
    x, logits = arguments_of()
    arguments = [x.to(memory_format=layout), logits]
    with use_backend("triton"), record_launches() as launches:
        plain = outcome(spatial_gate, arguments)
        monkeypatch.setattr("polychrome.kernels.streaming.needs_64_bits", lambda *tensors: True)
        wide = outcome(spatial_gate, arguments)
    assert [launch.options["INDEX64"] for launch in launches] == [False, False, True, True]
    for one, other in zip(wide, plain, strict=True):
        assert torch.equal(one, other)


def test_it_counts_no_flops():
    x, logits = (argument.requires_grad_() for argument in arguments_of())
    with FlopCounterMode(display=False) as counter:
        spatial_gate(x, logits).sum().backward()
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("backend", ["auto", "reference", TRITON])
@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "x must be a tensor, got NoneType", {"x": None}),
        (TypeError, "x must be float32, float64, float16 or bfloat16, got int64", {"x": torch.ones(2, 3, 5, 7).long()}),
        (ValueError, "x must be [batch, channels, height, width], got [2, 3]", {"x": torch.zeros(2, 3)}),
        (ValueError, "x must have at least one channel, got [2, 0, 5, 7]", {"x": torch.zeros(2, 0, 5, 7)}),
        *(
            (
                ValueError,
                f"logits must be [batch=2, channels=1, height=5, width=7], got {list(shape)}",
                {"logits": torch.zeros(shape)},
            )
            for shape in ((2, 3, 5, 7), (1, 1, 5, 7), (2, 1, 1, 1), (2, 1, 7, 5), (2, 5, 7))
        ),
        (TypeError, "logits must be a tensor, got float", {"logits": 0.5}),
        (
            TypeError,
            "logits must be float32, float64, float16 or bfloat16, got bool",
            {"logits": torch.ones(2, 1, 5, 7).bool()},
        ),
        (
            TypeError,
            "logits must be float32 or have x's dtype float32, got bfloat16",
            {"logits": torch.zeros(2, 1, 5, 7).bfloat16()},
        ),
        (
            TypeError,
            "logits must be float32 or have x's dtype float16, got float64",
            {"x": torch.zeros(2, 3, 5, 7).half(), "logits": torch.zeros(2, 1, 5, 7).double()},
        ),
        (
            ValueError,
            "logits must be on x's device cpu, got meta",
            {"logits": torch.zeros(2, 1, 5, 7, device="meta")},
        ),
    ],
)
def test_bad_arguments_are_named(error, message, changes, backend):
    with use_backend(backend), pytest.raises(error) as caught:
        spatial_gate(**{"x": torch.zeros(2, 3, 5, 7), "logits": torch.zeros(2, 1, 5, 7), **changes})
    assert str(caught.value) == message
