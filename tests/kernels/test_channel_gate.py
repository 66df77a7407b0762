import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from polychrome.kernels import channel_gate, use_backend
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
SHAPES = [(3, 6, 5, 4), (2, 1, 5, 4), (1, 3, 4, 4), (4, 32, 3, 2), (2, 4, 1, 1)]


def arguments_of(shape=SHAPES[0], hidden=4, form=(), bias=True, single=False, dtype=torch.float32):
    channels = shape[1]
    w1 = None if single else randn(hidden, channels, *form, seed=1)
    w2 = randn(channels, channels if single else hidden, *form, seed=2)
    b1 = randn(hidden, seed=3) if bias and not single else None
    return [randn(*shape, dtype=dtype), w1, b1, w2, randn(channels, seed=4) if bias else None]


FORMS = {
    "linear": {},
    "convolutional": {"form": (1, 1)},
    "no_bias": {"bias": False},
    "single": {"single": True},
    "single_convolutional_no_bias": {"single": True, "form": (1, 1), "bias": False},
}
gates = pytest.mark.parametrize("gate", ["sigmoid", "softmax"])


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("form", FORMS)
@gates
def test_output_and_gradients_are_near_the_exact_ones(gate, form, dtype):
    assert_near_exact(channel_gate, arguments_of(**FORMS[form], dtype=dtype), gate=gate)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("hidden", [1, 8])
def test_every_shape(shape, hidden):
    assert_near_exact(channel_gate, arguments_of(shape, hidden))


def test_equals_torchvisions_squeeze_excitation():
    from torchvision.ops import SqueezeExcitation

    block = SqueezeExcitation(6, 2)
    x = randn(*SHAPES[0])
    got = channel_gate(x, block.fc1.weight, block.fc1.bias, block.fc2.weight, block.fc2.bias)
    torch.testing.assert_close(got, block(x))


def test_gate_by_hand():
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[None, :, None, :]
    assert torch.equal(channel_gate(x, None, None, torch.zeros(2, 2), None), x / 2)
    y = channel_gate(x, None, None, torch.eye(2), None, "softmax")
    scale = torch.tensor([2.0, 6.0]).softmax(0)
    torch.testing.assert_close(y, x * scale[None, :, None, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ids)
def test_weights_in_low_precision_are_allowed_and_get_gradients_in_it(dtype):
    arguments = [a.to(dtype) for a in arguments_of()]
    assert_near_exact(channel_gate, arguments)
    assert [g.dtype for g in outcome(channel_gate, arguments)] == [dtype] * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ids)
@gates
def test_error_is_at_most_twice_that_of_the_definition_in_the_same_dtype(gate, dtype):
    arguments = arguments_of(dtype=dtype)
    exact = exact_outcome(channel_gate, arguments, gate=gate)
    op, definition = (outcome(f, arguments, gate=gate) for f in (channel_gate, channel_gate.reference))
    for got, naive, truth in zip(op, definition, exact, strict=True):
        assert rms_ratio(got, truth) <= 2 * rms_ratio(naive, truth) + 1e-6


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("form", FORMS)
@gates
def test_gradcheck(gate, form, backend):
    arguments = [None if a is None else a.double().requires_grad_() for a in arguments_of((2, 3, 3, 2), **FORMS[form])]
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda *a: channel_gate(*a, gate), arguments)


@gates
def test_channels_last_is_kept_and_changes_no_number(gate):
    x, *rest = arguments_of()
    plain = outcome(channel_gate, [x, *rest], gate=gate)
    last = outcome(channel_gate, [x.to(memory_format=torch.channels_last), *rest], gate=gate)
    for one, other in zip(last, plain, strict=True):
        torch.testing.assert_close(one, other)
    for got in last[:2]:
        assert got.is_contiguous(memory_format=torch.channels_last)
    for got in plain[:2]:
        assert got.is_contiguous()


def test_x_and_gradients_of_any_stride():
    x, *rest = arguments_of()
    plain = outcome(channel_gate, [x, *rest])
    for same in (x.transpose(2, 3).contiguous().transpose(2, 3), torch.cat([x, x], 1)[:, :6]):
        leaf = same.detach().requires_grad_()
        y = channel_gate(leaf, *rest)
        y.backward(randn(*y.shape, seed=7))
        torch.testing.assert_close(y.detach(), plain[0])
        torch.testing.assert_close(leaf.grad, plain[1])
    assert_near_exact(channel_gate, [x, *rest], torch.tensor(0.5).expand(x.shape))
    assert_near_exact(channel_gate, [x, *rest], torch.cat([x, x + 1], 1)[:, :6])


@pytest.mark.parametrize("frozen", [(0,), (1,), (3,), (1, 2), (3, 4), (1, 2, 3, 4), (0, 3, 4), (0, 1, 2), (0, 1, 2, 3)])
def test_frozen_arguments_get_no_gradient_and_change_no_other(frozen):
    assert_near_exact(channel_gate, arguments_of(), frozen=frozen)


def test_autocast_keeps_x_dtype_and_float32_inside():
    for dtype in (torch.float32, torch.bfloat16):
        arguments = arguments_of(dtype=dtype)
        exact = exact_outcome(channel_gate, arguments)
        with torch.autocast("cpu", torch.bfloat16):
            got = outcome(channel_gate, arguments)
            with use_backend("reference"):
                torch.testing.assert_close(channel_gate(*arguments), got[0])
        assert [g.dtype for g in got] == [dtype, dtype, *[torch.float32] * 4]
        assert rms_ratio(got[0], exact[0]) <= TOLERANCES[dtype][0]
        for index in range(1, 6):
            assert rms_ratio(got[index], exact[index]) <= TOLERANCES[dtype][1]


def test_nan_stays_in_its_sample():
    x, *rest = arguments_of()
    x[1, 2, 3, 3] = torch.nan
    y = channel_gate(x, *rest)
    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_nan_and_infinite_gradients_are_the_definitions(backend):
    """A hidden unit that is NaN passes its gradient on, one below zero passes not even an infinite one."""
    x, w1, b1, w2, b2 = arguments_of()
    lost = [x, w1, b1.index_fill(0, torch.tensor([0]), torch.nan), w2, b2]
    infinite = randn(*x.shape)
    infinite[0, 0, 0, 0] = torch.inf
    low = [x, w1, b1.index_fill(0, torch.tensor([1]), -1e3), w2, b2]
    for arguments, grad in ((lost, None), (low, infinite)):
        with use_backend(backend):
            got = outcome(channel_gate, arguments, grad)
        for one, other in zip(got, outcome(channel_gate.reference, arguments, grad), strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)
    assert got[2][1].eq(0).all()


@grid(
    strength=1,
    form=["convolutional", "single_convolutional_no_bias"],
    layout=[torch.contiguous_format, torch.channels_last],
)
def test_opcheck(form, layout):
    x, *weights = (None if a is None else a.requires_grad_() for a in arguments_of(**FORMS[form]))
    x = x.detach().to(memory_format=layout).requires_grad_()
    ops = torch.ops.polychrome
    torch.library.opcheck(ops.channel_gate.default, (x, *weights, "softmax"))
    arguments = [None if a is None else a.detach() for a in (x, *weights)]
    y, *saved = ops.channel_gate(*arguments, "sigmoid")
    present = [a is not None for a in arguments]
    for needed in (present, [True, False, False, False, False], [False, *present[1:]]):
        torch.library.opcheck(ops.channel_gate_backward.default, (y, *arguments, *saved, "sigmoid", needed))


@gates
def test_one_compilation_serves_every_batch_size(gate):
    weights = arguments_of()[1:]
    assert_one_compilation(
        lambda *a: channel_gate(*a, gate), lambda b: [randn(b, 6, 5, 4), *weights], [0, None, None, None, None]
    )


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_flops_are_those_of_the_two_layers(backend):
    arguments = [a.requires_grad_() for a in arguments_of()]

    def linears(x, w1, b1, w2, b2):
        return torch.addmm(b2, torch.addmm(b1, x, w1.T).relu(), w2.T)

    with use_backend(backend), FlopCounterMode(display=False) as forward:
        y = channel_gate(*arguments)
    assert forward.get_total_flops() == 2 * 3 * (6 * 4 + 4 * 6)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    with FlopCounterMode(display=False) as plain:
        linears(randn(3, 6).requires_grad_(), *arguments[1:]).sum().backward()
    assert forward.get_total_flops() + backward.get_total_flops() == plain.get_total_flops()


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "x must be float32, float64, float16 or bfloat16, got int32", {"x": torch.zeros(1, 6, 3, 3).int()}),
        (ValueError, "x must be [batch, channels, height, width], got [2, 6]", {"x": torch.zeros(2, 6)}),
        (ValueError, "w1 must be [hidden, channels=6], got [4, 5]", {"w1": torch.zeros(4, 5)}),
        (ValueError, "w1 must be [out, in] or [out, in, 1, 1], got [4, 6, 3, 3]", {"w1": torch.zeros(4, 6, 3, 3)}),
        (ValueError, "w2 must be [channels=6, hidden=4], got [6, 6]", {"w2": torch.zeros(6, 6)}),
        (ValueError, "w2 must be [channels=6, hidden=6], got [6, 4]", {"w1": None, "b1": None}),
        (ValueError, "b1 must be None where w1 is None, got a tensor", {"w1": None}),
        (ValueError, "b1 must be [features=4], got [6]", {"b1": torch.zeros(6)}),
        (ValueError, "b2 must be [features=6], got [6, 1]", {"b2": torch.zeros(6, 1)}),
        (TypeError, "w2 must be float32 or have x's dtype float32, got float16", {"w2": torch.zeros(6, 4).half()}),
        (ValueError, "w2 must be on x's device cpu, got meta", {"w2": torch.zeros(6, 4, device="meta")}),
        (ValueError, "gate must be one of sigmoid, softmax, got 'relu'", {"gate": "relu"}),
    ],
)
def test_bad_arguments_are_named(error, message, changes):
    arguments = dict(zip(("x", "w1", "b1", "w2", "b2"), arguments_of(), strict=True))
    with pytest.raises(error) as caught:
        channel_gate(**{**arguments, **changes})
    assert str(caught.value) == message
