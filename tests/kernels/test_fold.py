import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from polychrome.kernels import channel_stats, fold_batch_norm
from polychrome.kernels.modules import DynamicConv2d, SpatialAttention, anneal_temperature
from tests.kernels.oracle import randn


def prepared(model, seed=0):
    """Return `model` as after training: normalisations with statistics and weights of their own, temperature 2."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, -1, 2, generator=generator)
            nn.init.uniform_(module.bias, -1, 1, generator=generator)
    anneal_temperature(model, 0, start=2.0)
    return model


def left(model):
    """Return the kinds of what the graph still calls."""
    modules = dict(model.named_modules())
    kinds = []
    for node in model.graph.nodes:
        if node.op == "call_module":
            kinds.append(type(modules[node.target]).__name__)
        elif node.op.startswith("call"):
            kinds.append(getattr(node.target, "__name__", node.target))
    return kinds


def assert_fused_equals_unfused(model, wanted, x=None):
    """Assert that fusing leaves `wanted` and the numbers, whatever mode the model is in; return the fused copy."""
    x = randn(3, 4, 9, 7) if x is None else x
    fused = fold_batch_norm(model)
    assert left(fused) == wanted
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x)
        assert (fused(x) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    return fused


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_sequential_is_fused(affine, bias):
    model = nn.Sequential(
        DynamicConv2d(4, 6, 3, stride=2, padding=1, bias=bias),
        nn.BatchNorm2d(6, affine=affine),
        nn.ReLU(inplace=True),
        DynamicConv2d(6, 5, 1, routing="sigmoid", bias=bias),
        nn.BatchNorm2d(5, eps=0.1, affine=affine),
        nn.AdaptiveAvgPool2d(1),
    )
    fused = assert_fused_equals_unfused(prepared(model), ["DynamicConv2d", "DynamicConv2d", "AdaptiveAvgPool2d"])
    first, second = fused.get_submodule("0"), fused.get_submodule("3")
    assert (first.relu, second.relu) == (True, False)
    norm = model[1]
    scale = (norm.running_var + norm.eps).rsqrt() * (norm.weight if affine else 1)
    torch.testing.assert_close(first.scale, scale)
    torch.testing.assert_close(first.shift, (norm.bias if affine else 0) - norm.running_mean * scale)
    assert first.scale.dtype == torch.float32
    assert first.extra_repr().endswith("scale, shift, relu")


class Residual(nn.Module):
    """relu(BN(conv relu(BN(conv x))) + BN(conv x)), a shortcut with attention."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = DynamicConv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = DynamicConv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.shortcut = nn.Sequential(DynamicConv2d(4, 6, 1), nn.BatchNorm2d(6))
        self.attention = SpatialAttention(3)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.attention(self.shortcut(x)))


def test_residual_module_is_fused():
    model = prepared(Residual())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = assert_fused_equals_unfused(
        model, ["DynamicConv2d", "DynamicConv2d", "DynamicConv2d", "SpatialAttention", "add", "relu"]
    )
    assert (fused.conv1.relu, fused.conv2.relu, fused.get_submodule("shortcut.0").relu) == (True, False, False)
    assert (model.training, fused.training, fused.conv1.training) == (True, False, False)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert model.conv1.scale is None
    assert not model.conv1.relu
    names = {name for name in before if "norm" not in name and "shortcut.1" not in name}
    folded = {f"{conv}.{part}" for conv in ("conv1", "conv2", "shortcut.0") for part in ("scale", "shift")}
    assert set(fused.state_dict()) == names | folded


def relu_by(call):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = DynamicConv2d(4, 6, 3), nn.BatchNorm2d(6)

        def forward(self, x):
            return call(self.norm(self.conv(x)))

    return Model()


@pytest.mark.parametrize(
    "call",
    [
        F.relu,
        lambda y: F.relu(y, inplace=True),
        torch.relu,
        torch.relu_,
        lambda y: y.relu(),
        lambda y: y.relu_(),
    ],
)
def test_every_spelling_of_relu_is_fused(call):
    assert_fused_equals_unfused(prepared(relu_by(call)), ["DynamicConv2d"])


def test_other_activations_stay():
    assert_fused_equals_unfused(prepared(relu_by(F.relu6)), ["DynamicConv2d", "relu6"])
    assert_fused_equals_unfused(prepared(relu_by(lambda y: y.sigmoid())), ["DynamicConv2d", "sigmoid"])


class Wrong(nn.Module):
    """Two layers and a normalisation, combined by `call(conv, norm, x)` so that fusing all would be wrong."""

    def __init__(self, call, norm=None):
        super().__init__()
        self.conv, self.norm, self.call = DynamicConv2d(4, 4, 3, padding=1), norm or nn.BatchNorm2d(4), call

    def forward(self, x):
        return self.call(self.conv, self.norm, x)


def conv_has_two_users(conv, norm, x):
    y = conv(x)
    return y + norm(y)


def norm_has_two_users(conv, norm, x):
    y = norm(conv(x))
    return y + F.relu(y)


def conv_is_called_twice(conv, norm, x):
    return conv(norm(conv(x)))


def conv_is_changed_in_place(conv, norm, x):
    y = conv(x)
    y.mul_(2)
    return norm(y)


def relu_comes_first(conv, norm, x):
    return norm(F.relu(conv(x)))


def norm_comes_first(conv, norm, x):
    return conv(norm(x))


def norm_is_called_twice(conv, norm, x):
    return norm(norm(conv(x)))


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (conv_has_two_users, ["DynamicConv2d", "BatchNorm2d", "add"]),
        (norm_has_two_users, ["DynamicConv2d", "relu", "add"]),
        (conv_is_called_twice, ["DynamicConv2d", "BatchNorm2d", "DynamicConv2d"]),
        (conv_is_changed_in_place, ["DynamicConv2d", "mul_", "BatchNorm2d"]),
        (relu_comes_first, ["DynamicConv2d", "BatchNorm2d"]),
        (norm_comes_first, ["BatchNorm2d", "DynamicConv2d"]),
        (norm_is_called_twice, ["DynamicConv2d", "BatchNorm2d"]),
    ],
)
def test_only_what_stays_right_is_fused(call, wanted):
    assert_fused_equals_unfused(prepared(Wrong(call)), wanted)


def test_normalisation_by_batch_statistics_stays():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = prepared(Wrong(lambda conv, norm, x: norm(conv(x)), norm))
    assert_fused_equals_unfused(model, ["DynamicConv2d", "BatchNorm2d"])


def test_plain_convolutions_stay():
    model = prepared(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    assert_fused_equals_unfused(model, ["Conv2d", "BatchNorm2d", "ReLU"])


class Mixer(nn.Module):
    """An attention that is made by a convolution of somebody else's."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x).mean((2, 3))[:, :4].softmax(1)


class SharedWithALeaf(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = DynamicConv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.alone = DynamicConv2d(4, 6, 3, padding=1), DynamicConv2d(6, 5, 3)
        self.second.attention = Mixer(self.first)

    def forward(self, x):
        return self.alone(self.norm(self.first(x)).relu() + self.second(x)).relu()


def test_a_convolution_that_is_also_called_inside_a_leaf_is_left():
    wanted = ["DynamicConv2d", "BatchNorm2d", "relu", "DynamicConv2d", "add", "DynamicConv2d"]
    assert_fused_equals_unfused(prepared(SharedWithALeaf()), wanted)


def test_fusing_twice_changes_nothing():
    model = prepared(nn.Sequential(DynamicConv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    once = fold_batch_norm(model)
    x = randn(3, 4, 9, 7)
    assert torch.equal(fold_batch_norm(once)(x), once(x))


class CallsFunctions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = DynamicConv2d(2, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x, mask=None):
        return self.norm(self.conv(channel_stats(x, mask)))


def test_functions_of_kernels_are_traced_whole():
    model = prepared(CallsFunctions())
    fused = assert_fused_equals_unfused(model, ["channel_stats", "DynamicConv2d"])
    x, mask = randn(3, 4, 9, 7), torch.tensor([[True, True, False, True]] * 3)
    with torch.no_grad():
        torch.testing.assert_close(fused(x, mask), model.eval()(x, mask))


class Asks(nn.Module):
    """Goes by whether an argument is None: which way is `call`'s."""

    def __init__(self, call):
        super().__init__()
        self.conv, self.norm, self.call = DynamicConv2d(4, 6, 3), nn.BatchNorm2d(6), call

    def forward(self, x, keep=None, *, weight=None):
        y = self.norm(self.conv(x))
        return self.call(y, keep if weight is None else weight)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda y, keep: y.amin((2, 3)) if keep is None else y.amax((2, 3)), ["amin"]),
        (lambda y, keep: y if keep is None else y * keep, []),
        (lambda y, keep: y * (2 if keep is None else 3), ["mul"]),
    ],
    ids=["another call", "a call more", "another number"],
)
def test_a_forward_that_asks_for_none_is_traced_as_by_default(call, wanted):
    wanted = ["_assert_is_none", "_assert_is_none", "DynamicConv2d", *wanted]
    fused = assert_fused_equals_unfused(prepared(Asks(call)), wanted)
    x = randn(3, 4, 9, 7)
    assert torch.equal(fused(x, keep=None, weight=None), fused(x))
    for given in ({"keep": x}, {"weight": x}):
        with pytest.raises(AssertionError, match="specialized to have value None"):
            fused(x, **given)


def test_a_layer_by_itself_has_nothing_to_fold():
    layer = DynamicConv2d(4, 6, 3)
    x, mixing = randn(2, 4, 8, 8), randn(2, 4, seed=1)
    fused = fold_batch_norm(layer)
    assert (fused.training, layer.training) == (False, True)
    assert torch.equal(fused(x), layer.eval()(x))
    assert torch.equal(fused(x, mixing), layer(x, mixing))


def double(module, args, output):
    return 2 * output


def double_input(module, args):
    return (2 * args[0],)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        (0, ["DynamicConv2d", "BatchNorm2d", "ReLU"]),
        (1, ["DynamicConv2d", "BatchNorm2d", "ReLU"]),
        (2, ["DynamicConv2d", "ReLU"]),
    ],
)
def test_a_layer_with_a_hook_is_not_folded(place, wanted, register):
    model = prepared(nn.Sequential(DynamicConv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    getattr(model[place], register)(double_input if "pre" in register else double)
    assert_fused_equals_unfused(model, wanted)


@pytest.mark.parametrize(("path", "name"), [("", "the model"), ("shortcut", "shortcut")])
def test_hooks_that_the_graph_would_lose_are_refused(path, name):
    model = prepared(Residual())
    model.get_submodule(path).register_forward_hook(double)
    with pytest.raises(ValueError, match=f"{name} has a forward hook"):
        fold_batch_norm(model)


def test_a_fused_model_compiles_and_is_pickled():
    model = prepared(Residual())
    x = randn(3, 4, 9, 7)
    torch._dynamo.reset()
    fused = fold_batch_norm(model)
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(fused))(x), fused(x))
        torch.testing.assert_close(torch.compile(fused, fullgraph=True, backend="aot_eager")(x), model.eval()(x))


def test_float64_is_fused_in_float64():
    model = prepared(nn.Sequential(DynamicConv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())).double()
    x = randn(3, 4, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fold_batch_norm(model)(x), model.eval()(x), rtol=1e-12, atol=1e-12)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_an_untraceable_model_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"torch.fx cannot trace Branches \(.*fold the parts of it") as info:
        fold_batch_norm(Branches())
    assert isinstance(info.value.__cause__, torch.fx.proxy.TraceError)


def test_the_advice_for_an_untraceable_model_folds_it():
    class Choosing(Branches):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(DynamicConv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())

        def forward(self, x):
            return super().forward(self.features(x))

    model, x = prepared(Choosing()).eval(), randn(2, 4, 8, 8)
    expected, before = model(x), set(model.state_dict())
    with pytest.raises(ValueError, match=r"as in model\.features = ") as info:
        fold_batch_norm(model)
    exec(str(info.value).rpartition("as in ")[2], {"fold_batch_norm": fold_batch_norm, "model": model})
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    norm = {f"features.1.{name}" for name in nn.BatchNorm2d(6).state_dict()}
    assert set(model.state_dict()) == before - norm | {"features.0.scale", "features.0.shift"}


def test_a_fused_call_is_one_op_and_stays_one_when_exported():
    model = nn.Sequential(DynamicConv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).eval()
    fused, x = fold_batch_norm(model), randn(2, 4, 8, 8)
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    program = torch.export.export(fused, (x,))
    ops = {str(node.target) for node in program.graph.nodes if "polychrome" in str(node.target)}
    assert ops == {"polychrome.dynamic_conv2d_affine.default"}
    torch.testing.assert_close(program.module()(x), model(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert fused.half()(x).dtype == torch.bfloat16


def test_a_model_that_torch_does_not_copy_is_refused_with_the_remedy():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), DynamicConv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(ValueError, match=r"cannot be copied: .*; make pruning permanent by torch\.nn\.utils\.prune\."):
        fold_batch_norm(model)
    prune.remove(model[0], "weight")
    x = randn(2, 4, 9, 9)
    torch.testing.assert_close(fold_batch_norm(model)(x), model(x))
