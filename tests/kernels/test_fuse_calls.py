"""A swapped module is called, and asked about its forward and its names, as the module that it was."""

import inspect

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from polychrome.kernels import fuse, use_backend
from polychrome.kernels.fuse.swapped import Form
from tests.kernels.fused import count_reads, twins
from tests.kernels.oracle import randn
from tests.kernels.test_fuse_state import KINDS
from tests.kernels.written_elsewhere import RoutedCondConv, SELayer, SwishSE

FORMS = {**KINDS, "a product": (SwishSE, (8,), (2, 8, 5, 6))}


def with_options(kind, arguments):
    """Return a subclass whose forward has other names of its arguments, and two optional ones."""
    own = kind.forward

    class OfOne(kind):
        def forward(self, inputs, power=1, *, beside=None):
            y = own(self, inputs) ** power
            return y if beside is None else (y, beside)

    class OfTwo(kind):
        def forward(self, inputs, second, power=1, *, beside=None):
            y = own(self, inputs, second) ** power
            return y if beside is None else (y, beside)

    return OfOne if arguments == 1 else OfTwo


def outcome(module, given, named):
    """Return what a call gives, or its error in words."""
    try:
        return module(*given, **named)
    except Exception as error:
        return repr(error)


@pytest.fixture
def computed(monkeypatch):
    """Return a list of the forms that compute a result, in order."""
    found = []
    for form in Form.__subclasses__():
        original = form.computed
        monkeypatch.setattr(form, "computed", lambda *given, f=form, o=original: (found.append(f), o(*given))[1])
    return found


@pytest.mark.parametrize("name", FORMS)
def test_every_call_of_a_swapped_module_gives_the_modules_own_result(name, computed):
    kind, sizes, *shapes = FORMS[name]
    torch.manual_seed(0)
    own, fused, report = twins(with_options(kind, len(shapes))(*sizes).eval())
    assert [swap.path for swap in report.swapped] == [""]
    given = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    named = dict(zip(("inputs", "second"), given, strict=False))
    last = list(named)[-1]
    taken = [(given, {}), ((), named), (given[:-1], {last: named[last]})]
    others = [
        ((*given, 2), {}),
        (given, {"power": 2}),
        (given, {"beside": 3}),
        ((), {**named, "power": 2, "beside": 3}),
        ((), {}),
        ((*given, *given, 4), {}),
        (given, {"inputs": given[0]}),
        (given, {"unknown": 1}),
        ((given[0][0], *given[1:]), {}),
        (([given[0]], *given[1:]), {}),
    ]
    for is_taken, calls in ((True, taken), (False, others)):
        for by_place, by_name in calls:
            expected = outcome(own, by_place, by_name)
            computed.clear()
            with use_backend("reference"):
                found = outcome(fused, by_place, by_name)
            assert bool(computed) == is_taken
            if isinstance(expected, str):
                assert found == expected
            else:
                torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_swapped_module_reads_no_parameter_more_often_than_the_module_did(name, backend):
    """A parametrisation computes a parameter whenever it is read: a random one would differ, spectral norm move on."""
    kind, sizes, *shapes = FORMS[name]
    torch.manual_seed(0)
    own, fused, report = twins(kind(*sizes).eval())
    assert [swap.path for swap in report.swapped] == [""]
    given = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    before, reads = count_reads(own), count_reads(fused)
    with use_backend(backend):
        torch.testing.assert_close(fused(*given), own(*given))
    assert before.keys() == reads.keys()
    assert before
    assert {path: count for path, count in reads.items() if count > before[path]} == {}


def test_every_form_is_called(computed):
    for name, (kind, sizes, *shapes) in FORMS.items():
        module = kind(*sizes).eval()
        assert len(fuse(module).swapped) == 1
        with use_backend("reference"):
            module(*(randn(*shape) for shape in shapes))
        assert computed[-1].dims == tuple(map(len, shapes)), name
    assert {*computed} | {form for form in Form.__subclasses__() if form.__name__ == "CondConv"} == {
        *Form.__subclasses__()
    }


def test_the_modules_of_libraries_take_their_arguments_by_name(computed):
    layers = pytest.importorskip("timm.layers", reason="timm is not installed")
    misc = pytest.importorskip("torchvision").ops.misc
    x, mix = randn(2, 8, 5, 6), torch.rand(2, 4)
    own, fused, _ = twins(layers.CondConv2d(8, 6, 3))
    with use_backend("reference"):
        for given, named in (([x, mix], {}), ([x], {"routing_weights": mix}), ([], {"x": x, "routing_weights": mix})):
            torch.testing.assert_close(fused(*given, **named), own(*given, **named))
    own, fused, _ = twins(misc.SqueezeExcitation(8, 4))
    with use_backend("reference"):
        torch.testing.assert_close(fused(input=x), own(input=x))
    assert [form.__name__ for form in computed] == ["CondConv"] * 3 + ["ChannelGate"]


@pytest.mark.parametrize("name", FORMS)
def test_a_swapped_module_has_its_own_names_and_signature(name):
    kind, sizes, *_ = FORMS[name]
    own, fused, _ = twins(kind(*sizes))
    assert {found for found in {*dir(fused)} - {*dir(own)} if not found.startswith("_fuse")} == set()
    assert inspect.signature(fused.forward) == inspect.signature(own.forward)


def test_a_compiled_call_by_name_is_the_op_in_one_graph():
    torch._dynamo.reset()
    own, fused, _ = twins(RoutedCondConv(8, 6, 3))
    given = {"x": randn(2, 8, 5, 6), "routing_weight": torch.rand(2, 4)}
    backend = CompileCounterWithBackend("eager")
    got = torch.compile(fused, fullgraph=True, backend=backend)(**given)
    torch.testing.assert_close(got, own(**given))
    called = {str(node.target).removesuffix(".default") for node in backend.graphs[0].graph.nodes}
    assert "polychrome.dynamic_conv2d" in called


class Named(SELayer):
    """Its layers have names that a mixin might have too."""

    def __init__(self, planes):
        super().__init__(planes)
        self.op, self.computed, self.called = self.fc, nn.Identity(), 1
        del self.fc

    def ops(self):
        return len(self.op)

    def forward(self, x):
        return self.computed(x) * self.op(x.mean((2, 3)))[:, :, None, None] * self.called


def test_names_of_a_module_stay_what_they_were():
    own, fused, report = twins(Named(8))
    assert [swap.op for swap in report.swapped] == ["channel_gate"]
    assert fused.op is fused._modules["op"]
    assert fused.ops() == own.ops()
    x = randn(2, 8, 5, 6)
    with use_backend("reference"):
        torch.testing.assert_close(fused(x), own(x))


def test_a_swapped_module_itself_can_be_traced_by_fx_and_exported_by_its_arguments_names():
    own, fused, _ = twins(SELayer(8).eval())
    x = randn(2, 8, 5, 6)
    torch.testing.assert_close(torch.fx.symbolic_trace(fused)(x), own(x))
    batch = torch.export.Dim("batch", min=2, max=9)
    program = torch.export.export(fused, (x,), dynamic_shapes={"x": {0: batch}})
    larger = randn(5, 8, 5, 6)
    torch.testing.assert_close(program.module()(larger), own(larger))
