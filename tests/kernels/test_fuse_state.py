"""What a swapped module holds beside parameters, neutral when it was fused, is heard when it changes."""

import copy
import pickle
from functools import wraps

import pytest
import torch
from torch import nn

from polychrome.kernels import fuse, use_backend
from polychrome.kernels.fuse.swapped import has_changed
from tests.kernels.oracle import randn
from tests.kernels.written_elsewhere import (
    CBAM,
    DynamicConv,
    ModulatedConv,
    OfficialODConv,
    RoutedCondConv,
    SELayer,
    SpatialGate,
)

# A module of each forward that `fuse` gives, and the shapes of its arguments.
KINDS = {
    "experts": (DynamicConv, (8, 6, 3), (2, 8, 5, 6)),
    "experts, mix given": (RoutedCondConv, (8, 6, 3), (2, 8, 5, 6), (2, 4)),
    "four attentions": (OfficialODConv, (8, 6, 3), (2, 8, 5, 6)),
    "modulated": (ModulatedConv, (8, 6, 3), (2, 8, 5, 6), (2, 5)),
    "channels": (SELayer, (8,), (2, 8, 5, 6)),
    "pixels": (SpatialGate, (), (2, 8, 9, 8)),
    "both": (CBAM, (8,), (2, 8, 9, 8)),
}


class Factor(nn.Module):
    """A layer without parameters, as a frozen normalisation is."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_var", torch.ones(()))

    def forward(self, y):
        return y * self.running_var.sqrt()


def hold_nothing(name):
    def hold(module):
        getattr(module, name)("state", None)

    return hold


def load(module):
    module.load_state_dict({**module.state_dict(), "state": torch.tensor(4.0)})


# How the state is made neutral, and how it is changed after `fuse`.
STATES = {
    "a buffer": (lambda m: m.register_buffer("state", torch.ones(())), lambda m: m.state.zero_()),
    "a buffer, loaded": (lambda m: m.register_buffer("state", torch.ones(())), load),
    "a mask": (lambda m: m.register_buffer("state", torch.tensor(True)), lambda m: m.state.logical_not_()),
    "a layer's buffer": (lambda m: setattr(m, "state", Factor()), lambda m: m.state.running_var.fill_(4)),
    "a tensor": (lambda m: setattr(m, "state", torch.ones(())), lambda m: m.state.zero_()),
    "a tensor in a list": (lambda m: setattr(m, "state", [torch.ones(())]), lambda m: m.state[0].zero_()),
    "a private tensor": (lambda m: setattr(m, "_state", torch.ones(())), lambda m: m._state.zero_()),
    "a private number": (lambda m: setattr(m, "_state", 1.0), lambda m: setattr(m, "_state", 0.5)),
    "a number of the class": (lambda m: None, lambda m: setattr(m, "gain", 0.5)),
    "a buffer that was None": (hold_nothing("register_buffer"), lambda m: setattr(m, "state", torch.tensor(2.0))),
    "a parameter that was None": (
        hold_nothing("register_parameter"),
        lambda m: setattr(m, "state", nn.Parameter(torch.tensor(2.0))),
    ),
}
# Those of a module that is swapped, as the state can be watched; one with tensors that an op would not read is not.
HEARD = ("a private number", "a number of the class", "a buffer that was None", "a parameter that was None")


def with_state(kind):
    class WithState(kind):
        gain = 1.0

        @wraps(kind.forward)
        def forward(self, *inputs):
            y, state = super().forward(*inputs), getattr(self, "state", getattr(self, "_state", None))
            if isinstance(state, Factor):
                return state(y)
            return y * (self.gain if state is None else state[0] if isinstance(state, list) else state)

    return WithState


CASES = [("experts", state) for state in STATES] + [(kind, state) for kind in KINDS for state in ("a buffer", *HEARD)]


@pytest.mark.parametrize(("kind", "state"), dict.fromkeys(CASES))
def test_state_that_was_neutral_is_heard_when_it_changes_after_fuse(kind, state):
    made, sizes, *shapes = KINDS[kind]
    hold, change = STATES[state]
    torch.manual_seed(0)
    own = with_state(made)(*sizes).eval()
    hold(own)
    fused = copy.deepcopy(own)
    swapped = [swap.path for swap in fuse(fused).swapped if swap.op != "channel_scale"]
    assert ("" in swapped) == (state in HEARD)
    inputs = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    plain = own(*inputs)
    for module in (own, fused):
        change(module)
    with use_backend("reference"):
        torch.testing.assert_close(fused(*inputs), own(*inputs))
    assert not torch.allclose(own(*inputs), plain, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_without_such_state_the_op_is_called_and_copies_are_as_they_were(kind):
    made, sizes, *_ = KINDS[kind]
    fused = made(*sizes).eval()
    (swap,) = fuse(fused).swapped
    assert swap.path == ""
    for twin in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused).bfloat16()):
        assert not has_changed(twin)


def test_a_buffer_that_the_op_would_not_read_is_named():
    layer = ModulatedConv(8, 6, 3)
    layer.register_buffer("magnitude_ema", torch.ones(()))
    (left,) = fuse(layer).left
    assert left.reason == "modulated_conv2d would not read its magnitude_ema"


def test_a_layer_that_the_op_still_calls_may_have_buffers():
    layer = OfficialODConv(8, 6, 3)
    assert next(path for path, _ in layer.named_buffers()) == "attention.bn.running_mean"
    assert [swap.op for swap in fuse(layer).swapped] == ["dynamic_conv2d"]
