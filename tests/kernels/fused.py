"""Comparisons of a model with its fused twin."""

import copy

from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from polychrome.kernels import fuse, use_backend
from tests.kernels.oracle import randn


class OpsCalled(TorchDispatchMode):
    """Collects the names of our forward ops."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name.startswith("polychrome::") and not name.endswith("_backward"):
            self.names.add(name.removeprefix("polychrome::").split(".")[0])
        return func(*args, **(kwargs or {}))


def count_reads(model):
    """Return how often each parameter of a model is read from now on, by path, as its parametrisation hears it."""
    reads = {}

    class Counted(nn.Module):
        def __init__(self, path):
            super().__init__()
            self.path = path

        def forward(self, weight):
            reads[self.path] = reads.get(self.path, 0) + 1
            return weight

    for path, module in list(model.named_modules()):
        for name in list(module._parameters):
            if module._parameters[name] is not None:
                parametrize.register_parametrization(module, name, Counted(f"{path}.{name}"), unsafe=True)
    reads.clear()
    return reads


def twins(model):
    """Return two models alike, the second fused, and what was reported."""
    fused = copy.deepcopy(model)
    return model, fused, fuse(fused)


def outcome(model, x, *others):
    """Return the output and the gradients of input and parameters by name, in float32's or float64's exact numbers."""
    x = x.clone().requires_grad_()
    y = model(x, *others)
    y.backward(randn(*y.shape, seed=3, dtype=y.dtype))
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return {"output": y.detach(), "x": x.grad, **gradients}


def assert_alike(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value is None) == (other[name] is None), name
        if value is not None:
            apart, largest = (value - other[name]).abs().max().item(), value.abs().max().item()
            assert apart <= tolerance * max(largest, 1e-6), f"{name}: {apart:.1e} of {largest:.1e}"


def assert_equal_training(model, x, *others):
    """Assert that a model, its fused twin and the ops' definitions agree in float64, in both modes, buffers too."""
    model, x, others = model.double(), x.double(), [other.double() for other in others]
    model, fused, report = twins(model)
    for training in (True, False):
        theirs = copy.deepcopy(model).train(training)
        expected = outcome(theirs, x, *others)
        for backend in ("reference", "auto"):
            ours = copy.deepcopy(fused).train(training)
            with use_backend(backend):
                assert_alike(expected, outcome(ours, x, *others), 1e-8)
            assert_alike(dict(theirs.named_buffers()), dict(ours.named_buffers()), 1e-8)
    return fused, report
