"""The optimisers: equal to torch's, and Muon on filters, experts and everything else as one."""

import io
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from polychrome import models
from polychrome.engine.training import optimizers
from polychrome.kernels.modules import DynamicConv2d
from tests.engine.small import PLAN

MATCHED = {"adjust_lr_fn": "match_rms_adamw"}


class Net(nn.Module):
    """A small network with a weight of each kind."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 12, 3, padding=1)
        self.experts = DynamicConv2d(12, 6, 3, padding=1, experts=2)
        self.hidden = nn.Linear(6, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = self.experts(torch.relu(self.conv(self.stem(x))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().to(memory_format=torch.channels_last)


def images(seed=0, batch=16):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(batch) % 4
    x = torch.randn(batch, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    return x.contiguous(memory_format=torch.channels_last), labels


def train(model, optimizer, steps, first=0):
    losses = []
    for step in range(first, first + steps):
        x, labels = images(step)
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def copied(net):
    copy = Net().to(memory_format=torch.channels_last)
    copy.load_state_dict(net.state_dict())
    return copy


def through_a_file(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        ("adam", lambda weights: torch.optim.Adam(weights, lr=0.01, weight_decay=0.1, fused=True)),
        ("adamw", lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1, fused=True)),
        ("sgd", lambda weights: torch.optim.SGD(weights, lr=0.01, weight_decay=0.1, momentum=0.9, fused=True)),
        (
            "nesterov",
            lambda weights: torch.optim.SGD(
                weights, lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True, fused=True
            ),
        ),
    ],
)
def test_optimisers_of_torch_are_torchs(net, name, torchs):
    other = copied(net)
    ours, theirs = optimizers.create(name, net, 0.01, 0.1), torchs(other.parameters())
    assert train(net, ours, 3) == train(other, theirs, 3)
    assert equal(net, other)
    assert ours.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    ours.load_state_dict(through_a_file(theirs.state_dict()))


def test_only_weights_that_require_gradients_or_are_named_are_optimised(net):
    net.stem.requires_grad_(False)
    for name in optimizers.NAMES:
        groups = optimizers.create(name, net, 0.1).param_groups
        found = {id(item) for group in groups for item in group["params"]}
        assert found == {id(item) for item in net.parameters() if item.requires_grad}
        groups = optimizers.create(name, net, 0.1, only=net.head.parameters()).param_groups
        assert [id(item) for group in groups for item in group["params"]] == [id(net.head.weight), id(net.head.bias)]


def test_an_unknown_name_and_nothing_to_optimise_are_refused(net):
    with pytest.raises(ValueError, match="optimizer must be one of adam, adamw, sgd, nesterov, muon, got lion"):
        optimizers.create("lion", net, 0.1)
    for name in optimizers.NAMES:
        with pytest.raises(ValueError, match="empty parameter list"):
            optimizers.create(name, net, 0.1, only=[])


def test_muon_has_the_hidden_filters_experts_and_linear_weights(net):
    hidden, others = optimizers.create("muon", net, 0.1).param_groups
    attention = net.experts.attention
    expected = (net.conv, net.experts, attention.fc1, attention.fc2, net.hidden)
    assert [id(item) for item in hidden["params"]] == [id(layer.weight) for layer in expected]
    assert {id(item) for item in others["params"]} == {id(item) for item in net.parameters()} - {
        id(item) for item in hidden["params"]
    }


@pytest.mark.parametrize(
    ("name", "count", "left"),
    [
        ("resnet34", 35, ["conv1", "fc"]),
        ("resnetv2", 52, ["stem.conv", "head.fc"]),
        ("simple_cnn", 3, ["features.0.0", "head.4"]),
        ("dynamic_cnn_v1", 2, ["head.2"]),  # it has linear layers alone
        ("pool_attention_cnn", 4, ["shared.0", "shared.2", "trunk.head.4"]),  # one map comes out of shared.2
    ],
)
def test_muon_leaves_first_convolution_head_and_single_rows_of_a_model(name, count, left):
    model = models.create(name, num_classes=37)
    hidden = {id(weight) for weight in optimizers.hidden_weights(model)}
    assert len(hidden) == count
    layers = [(key, item) for key, item in model.named_modules() if isinstance(item, nn.Conv2d | nn.Linear)]
    assert [key for key, item in layers if id(item.weight) not in hidden] == left


def test_a_model_without_layers_has_nothing_for_muon():
    assert optimizers.hidden_weights(nn.BatchNorm2d(4)) == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_filter_is_updated_as_torchs_muon_updates_the_matrix_of_it(net, layout):
    net = net.to(memory_format=layout)

    def matrix(weight):
        order = (0, 2, 3, 1) if layout == torch.channels_last else (0, 1, 2, 3)
        return weight.detach().permute(order).reshape(len(weight), -1).clone()

    flat = nn.Parameter(matrix(net.conv.weight))
    experts = [nn.Parameter(expert.detach().flatten(1).clone()) for expert in net.experts.weight]
    theirs = torch.optim.Muon([flat, *experts], lr=0.02, weight_decay=0.1, **MATCHED)
    ours = optimizers.create("muon", net, 0.02, 0.1)
    for step in range(3):
        F.cross_entropy(net(images(step)[0]), images(step)[1]).backward()
        flat.grad = matrix(net.conv.weight.grad)
        for expert, gradient in zip(experts, net.experts.weight.grad, strict=True):
            expert.grad = gradient.flatten(1).clone()
        ours.step()
        theirs.step()
        net.zero_grad()
    assert torch.equal(matrix(net.conv.weight), flat)
    for expert, found in zip(experts, net.experts.weight, strict=True):
        assert torch.equal(found.flatten(1), expert)
    assert net.conv.weight.is_contiguous(memory_format=layout)


class Products(TorchDispatchMode):
    """Keeps the types of all matrix products."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.found.add(args[-1].dtype)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.float32, 0, 1e-5), (torch.bfloat16, 1e-3, 3e-2)])
def test_muon_multiplies_in_the_type_that_is_asked_for(dtype, low, high):
    gradient = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    weight, other = nn.Parameter(torch.zeros(24, 60)), nn.Parameter(torch.zeros(1))
    weight.grad = gradient.clone()
    optimizer = optimizers.Muon([weight], [other], lr=1.0, dtype=dtype)
    with Products() as products:
        optimizer.step()
    exact = gradient.double() / gradient.double().norm()
    for _ in range(5):
        squares = exact @ exact.T
        exact = 3.4445 * exact + (2.0315 * squares @ squares - 4.775 * squares) @ exact
    error = (weight + 0.2 * 60**0.5 * exact).norm() / weight.norm()
    assert low <= error < high
    assert products.found == {dtype}
    assert torch.equal(weight.grad, gradient)


PRODUCTS = {
    "@": lambda one, other: one @ other,
    "mm": torch.mm,
    "bmm": lambda one, other: torch.bmm(one[None], other[None])[0],
    "einsum": lambda one, other: torch.einsum("ij,jk->ik", one, other),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_a_torch_whose_muon_multiplies_in_bfloat16_all_the_same_is_refused(monkeypatch, product):
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", in_bfloat16(product))
    weight, other = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(4, 6)
    optimizers.Muon([weight], [other], lr=1.0).step()
    assert (weight < 0).all()
    with pytest.raises(RuntimeError, match=r"^Muon of torch .* multiplies in bfloat16 where float32 is asked for"):
        optimizers.Muon([weight], [other], lr=1.0, dtype=torch.float32).step()


def in_bfloat16(product):
    """Return a stand-in for the function that torch's Muon multiplies in, which casts by another name."""
    return lambda gradient, *_: product(torch.ones(4, 4).type(torch.bfloat16), gradient.type(torch.bfloat16))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float32), ("bf16", torch.bfloat16)]
)
def test_muon_of_a_training_multiplies_at_its_precision(net, precision, dtype):
    optimizer = replace(PLAN, optimizer="muon", precision=precision).make_optimizer(net)
    F.cross_entropy(net(images()[0]), images()[1]).backward()
    with Products() as products:
        optimizer.step()
    assert products.found == {dtype}


def test_muon_of_other_types_is_refused(net):
    with pytest.raises(ValueError, match=r"dtype must be bfloat16 or float32, got torch\.float16"):
        optimizers.Muon([net.conv.weight], [], 0.1, dtype=torch.float16)


def test_what_muon_leaves_is_updated_by_adamw(net):
    other = copied(net)
    ours, theirs = optimizers.create("muon", net, 0.02, 0.1), optimizers.create("adamw", other, 0.02, 0.1)
    train(net, ours, 1)
    train(other, theirs, 1)
    for name, found in net.named_parameters():
        same = torch.equal(found, other.get_parameter(name))
        assert same == (name not in ("conv.weight", "experts.weight", "hidden.weight", *gates(net))), name


def gates(net):
    return [f"experts.attention.{name}.weight" for name, _ in net.experts.attention.named_children() if "fc" in name]


def test_muons_steps_are_as_long_as_adamws(net):
    before = net.conv.weight.detach().clone()
    train(net, optimizers.create("muon", net, 0.01), 1)
    step = (net.conv.weight - before).square().mean().sqrt().item() / 0.01
    # 12 orthonormal rows of 72 have a root mean square of 1 / sqrt(72), which is scaled by 0.2 sqrt(72).
    assert 0.1 < step < 0.3


def test_a_gradient_of_another_layout_moves_the_weights_the_same(net):
    other = copied(net)
    ours, theirs = optimizers.create("muon", net, 0.02), optimizers.create("muon", other, 0.02)
    for model in (net, other):
        F.cross_entropy(model(images()[0]), images()[1]).backward()
    other.conv.weight.grad = other.conv.weight.grad.contiguous()
    assert other.conv.weight.grad.stride() != other.conv.weight.stride()
    ours.step()
    theirs.step()
    assert torch.equal(net.conv.weight, other.conv.weight)


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_training_falls(net, name):
    losses = train(net, optimizers.create(name, net, 0.05 if name in ("sgd", "nesterov") else 0.01), 40)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_a_resumed_optimiser_goes_on_bit_for_bit(net, name):
    optimizer = optimizers.create(name, net, 0.02, 0.01)
    train(net, optimizer, 3)
    saved = through_a_file({"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    train(net, optimizer, 3, first=3)

    resumed = Net().to(memory_format=torch.channels_last)
    again = optimizers.create(name, resumed, 0.5)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, 3, first=3)
    assert equal(net, resumed)
    for ours, theirs in zip(net.parameters(), resumed.parameters(), strict=True):
        for key, value in optimizer.state[ours].items():
            assert torch.equal(value, again.state[theirs][key]), key


def test_muon_resumes_in_another_layout(net):
    optimizer = optimizers.create("muon", net, 0.02)
    train(net, optimizer, 2)
    saved = through_a_file({"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    resumed = Net()
    again = optimizers.create("muon", resumed, 0.02)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    train(net, optimizer, 1, first=2)
    train(resumed, again, 1, first=2)
    torch.testing.assert_close(net.conv.weight, resumed.conv.weight, rtol=0, atol=0.02 * 0.05)
    state, expected = again.state[resumed.conv.weight]["momentum_buffer"], optimizer.state[net.conv.weight]
    torch.testing.assert_close(state, expected["momentum_buffer"], rtol=1e-3, atol=1e-5)
    assert state.stride() == resumed.conv.weight.stride()


def test_a_state_of_another_optimiser_is_refused(net):
    adam = optimizers.create("adam", net, 0.02)
    train(net, adam, 1)
    with pytest.raises(ValueError, match="parameter groups"):
        optimizers.create("muon", net, 0.02).load_state_dict(adam.state_dict())


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_a_first_step_that_a_gradient_scaler_skips_leaves_nothing_behind(net, name):
    other = copied(net)
    optimizer, expected = optimizers.create(name, net, 0.02), optimizers.create(name, other, 0.02)
    for each in net.parameters():
        torch.full((each.numel(),), 1e6)  # memory that is free again
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, labels = images()
    for factor, moves in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(net(x), labels) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert equal(net, other) != moves
    assert scaler.get_scale() == 512
    train(other, expected, 1)
    assert train(net, optimizer, 3, first=1) == pytest.approx(train(other, expected, 3, first=1), rel=1e-4)
    torch.testing.assert_close(net.head.weight, other.head.weight)


def test_muon_takes_the_rate_set_on_its_groups(net):
    optimizer = optimizers.create("muon", net, 0.02, 0.1)
    for group in optimizer.param_groups:
        group |= {"lr": 0.0}
    before = copied(net)
    train(net, optimizer, 1)
    assert equal(net, before)


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # of filters 1x1, whose layouts are many
def test_muon_updates_the_same_under_data_parallelism(net):
    other = copied(net)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
        losses = train(wrapped, optimizers.create("muon", wrapped, 0.02), 3)
    finally:
        dist.destroy_process_group()
    assert losses == train(other, optimizers.create("muon", other, 0.02), 3)
    assert equal(net, other)


@pytest.mark.gpu
@pytest.mark.parametrize("name", optimizers.NAMES)
def test_a_step_on_a_gpu_does_not_make_the_host_wait(name, net):
    net = net.cuda()
    optimizer = optimizers.create(name, net, 0.02)
    x, labels = (item.cuda() for item in images())
    before = net.head.weight.detach().clone()
    F.cross_entropy(net(x), labels).backward()
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.equal(net.head.weight, before)
