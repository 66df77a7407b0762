"""An output is the caller's alone: no view, no alias, and free to be changed in place, as after torch's own layers."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from polychrome.kernels import augment, dynamic_conv2d, use_backend
from polychrome.kernels.dynamic_conv import api
from polychrome.kernels.dynamic_conv.eager import ops as eager
from polychrome.kernels.dynamic_conv.eager.forms import Choice, Forms
from polychrome.kernels.library import call
from polychrome.kernels.modules import DynamicConv2d
from tests.grids import grid
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.op_calls import differentiable, function_arguments, op_arguments, public, registered
from tests.kernels.oracle import as_leaf, assert_its_own, outputs, randn

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
FORMS = ["groups", "loop", "stacked"]


def set_first_channel(y):
    y[:, 0] = 0


def add_itself(y):
    y += y.detach().clone()


IN_PLACE = {
    "relu_": Tensor.relu_,
    "leaky_relu_": lambda y: nn.functional.leaky_relu(y, inplace=True),
    "clamp_": lambda y: y.clamp_(-0.5, 0.5),
    "iadd": add_itself,
    "setitem": set_first_channel,
}


def tensors(values) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def assert_may_change_in_place(function, arguments, **options) -> None:
    """Assert that each way of changing the output in place has the gradients of the same on a copy of it."""
    for name, change in IN_PLACE.items():
        found = []
        for own in (True, False):
            leaves = [as_leaf(argument) for argument in arguments]
            y = outputs(function(*leaves, **options))[0]
            y = y if own else y.clone()
            change(y)
            wanted = [leaf for leaf in tensors(leaves) if leaf.requires_grad]
            if wanted:
                torch.autograd.backward(y, randn(*y.shape, seed=3, dtype=y.dtype))
            found.append([y.detach(), *(leaf.grad for leaf in wanted)])
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other), name


@grid(name=registered(), strength=1, layout=LAYOUTS, dtype=DTYPES)
def test_outputs_of_every_op_are_the_callers_own(name, layout, dtype):
    arguments = op_arguments(name, dtype, layout)
    op = getattr(torch.ops.polychrome, name)
    before = [tensor.clone() for tensor in tensors(arguments)]
    found = outputs(op(*arguments))
    assert_its_own(found, tensors(arguments))
    for y in found:
        y.add_(1)
    assert all(map(torch.equal, tensors(arguments), before))
    if name in differentiable():
        leaves = [as_leaf(argument) for argument in arguments]
        assert_its_own(outputs(op(*leaves)), tensors(leaves))
        assert_may_change_in_place(op, arguments)


@needs_interpreter
@grid(name=registered(), strength=1, layout=LAYOUTS)
def test_outputs_of_every_ops_kernels_are_the_callers_own(name, layout):
    arguments = op_arguments(name, torch.float32, layout, "triton")
    op = getattr(torch.ops.polychrome, name)
    assert_its_own(outputs(op(*arguments)), tensors(arguments))
    if name in differentiable():
        leaves = [as_leaf(argument) for argument in arguments]
        found = outputs(op(*leaves))
        assert_its_own(found, tensors(leaves))
        found[0].relu_().sum().backward()


@grid(function=public(), layout=LAYOUTS, dtype=DTYPES, backend=["auto", "reference"], autocast=[False, True])
def test_outputs_of_every_function_are_the_callers_own(function, layout, dtype, backend, autocast):
    arguments, options = function_arguments(function.__name__, dtype, layout)
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert_its_own([function(*arguments, **options)], tensors(arguments))
        leaves = [as_leaf(argument) for argument in arguments]
        assert_its_own([function(*leaves, **options)], tensors(leaves))
        assert_may_change_in_place(function, arguments, **options)


OF_IMAGES = [
    function for function in public() if function is not augment and function.__name__[-2:] not in ("1d", "3d")
]


@grid(function=OF_IMAGES, backend=["auto", "reference"], way=["called", "with tangents"])
def test_outputs_of_every_function_of_images_lie_as_x_does(function, backend, way):
    arguments, options = function_arguments(function.__name__, torch.float32, torch.channels_last)
    with use_backend(backend), forward_ad.dual_level() if way == "with tangents" else nullcontext():
        assert function(*arguments, **options).is_contiguous(memory_format=torch.channels_last)
        contiguous = [tensor.contiguous() if isinstance(tensor, Tensor) else tensor for tensor in arguments]
        assert function(*contiguous, **options).is_contiguous()


WITH_GRADIENT = [name for name in registered() if name in differentiable() or "transpose" in name]


@grid(name=WITH_GRADIENT, way=["called", "as torch's op"])
def test_gradients_do_not_depend_on_autocast_around_backward(name, way):
    """The gradient of a float32 result is made of float32 products, wherever `backward` is called."""
    op = getattr(torch.ops.polychrome, name) if way == "as torch's op" else partial(call, name)
    found = []
    for autocast in (False, True):
        leaves = [as_leaf(argument) for argument in op_arguments(name, torch.float32)]
        y = outputs(op(*leaves))[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            torch.autograd.backward(y, randn(*y.shape, seed=3))
        found.append([leaf.grad for leaf in tensors(leaves) if leaf.requires_grad])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_changing_an_output_changes_no_argument():
    for function in public():
        arguments, options = function_arguments(function.__name__, torch.float32)
        with torch.no_grad():
            before = [tensor.clone() for tensor in tensors(arguments)]
            function(*arguments, **options).add_(1)
        assert all(map(torch.equal, before, tensors(arguments))), function.__name__


@grid(form=FORMS, recorded=["op", "mix kept", "affine"], layout=LAYOUTS, dtype=DTYPES)
def test_every_way_a_dynamic_convolution_takes_leaves_its_output_to_the_caller(
    form, recorded, layout, dtype, monkeypatch
):
    choice = Choice(form, "forced")
    monkeypatch.setattr(eager, "forms_of", lambda *_, **__: Forms(choice, choice, choice))
    monkeypatch.setattr(api, "keeps_the_mix", lambda *_: recorded == "mix kept")
    if form == "stacked" and recorded == "mix kept":
        pytest.skip("no form of weights per sample")
    arguments, options = function_arguments("dynamic_conv2d", dtype, layout)
    if recorded == "affine":
        options |= {"scale": randn(6, dtype=dtype), "shift": randn(6, seed=1, dtype=dtype)}
    assert_its_own([dynamic_conv2d(*arguments, **options)], tensors(arguments))
    assert_may_change_in_place(dynamic_conv2d, arguments, **options)


@pytest.mark.parametrize("batch", [0, 1])
def test_few_samples_too(batch):
    for function in public():
        arguments, options = function_arguments(function.__name__, torch.float32)
        if function.__name__ == "augment":
            continue
        arguments = [a[:batch] if isinstance(a, Tensor) and len(a) == len(arguments[0]) else a for a in arguments]
        if function.__name__.startswith("dynamic_conv"):  # as many experts as samples
            given, _ = function_arguments(function.__name__, torch.float32)
            arguments[1], arguments[3] = given[1], given[3]
        y = function(*(as_leaf(argument) for argument in arguments), **options)
        assert not y._is_view()
        y.relu_().sum().backward()


@grid(strength=1, dtype=[*DTYPES, "autocast"], layout=LAYOUTS)
def test_torchvisions_vgg_with_dynamic_convolutions_trains_a_step(dtype, layout):
    """Every convolution there is followed by a ReLU in place."""
    vgg = pytest.importorskip("torchvision").models.vgg
    torch.manual_seed(0)
    model = nn.Sequential(*vgg.make_layers(vgg.cfgs["A"]), nn.Flatten(), nn.Linear(512, 3))
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, DynamicConv2d.from_conv(module, experts=2))
    plain = torch.float32 if dtype == "autocast" else dtype
    model, x = model.to(plain), randn(2, 3, 32, 32, dtype=plain).to(memory_format=layout)
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    gradients = []
    for each in (model, twin):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            loss = nn.functional.cross_entropy(each(x).float(), torch.tensor([0, 2]))
        loss.backward()
        gradients.append([parameter.grad for parameter in each.parameters()])
    assert all(map(torch.equal, *gradients))
    before = model[0].weight.detach().clone()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert not torch.equal(model[0].weight, before)
