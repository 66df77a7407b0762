import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from polychrome.kernels.backend import use_backend
from polychrome.models.dynamic_cnn import DynamicCNNv1, DynamicCNNv2
from polychrome.models.shallow_cnn import BaselineCNN, SE2LayerCNN, Simple2LayerCNN, Simple4LayerCNN
from tests.kernels.interpreter import needs_interpreter
from tests.models.probes import images, with_and_without_mask

DYNAMIC = (DynamicCNNv1, DynamicCNNv2)
MODELS = (*DYNAMIC, BaselineCNN, Simple2LayerCNN, SE2LayerCNN, Simple4LayerCNN)
every_model = pytest.mark.parametrize("make", MODELS)
dynamic = pytest.mark.parametrize("make", DYNAMIC)


def made(make, **options):
    torch.manual_seed(0)
    return make(**options)


def ops_called(run):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return {event.key for event in profile.key_averages()}


@every_model
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 23)])
def test_any_spatial_size_and_class_count(make, height, width):
    model = made(make, num_classes=7).eval()
    assert model(images(2, 3, height, width)).shape == (2, 7)


@every_model
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_any_channel_count(make, channels):
    options = {} if make.any_channels else {"in_channels": channels}
    logits = made(make, **options).eval()(images(2, channels, 12, 9))
    assert logits.shape == (2, 50)
    assert logits.isfinite().all()


@every_model
def test_a_sample_does_not_see_the_others_in_evaluation(make):
    model = made(make).eval()
    x = images(3, 3, 12, 14)
    alone = torch.cat([model(x[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(model(x), alone, rtol=1e-4, atol=1e-5)
    changed = x.clone()
    changed[1:] = 5 - 3 * x[1:]
    torch.testing.assert_close(model(changed)[0], model(x)[0], rtol=1e-5, atol=1e-6)


@every_model
def test_every_parameter_gets_a_gradient_and_a_step_lowers_the_loss(make):
    model = made(make)
    x, labels = images(4, 3, 12, 12), torch.tensor([0, 1, 2, 3])

    def loss():
        return nn.functional.cross_entropy(model(x), labels)

    first = loss()
    first.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.any() for name, p in model.named_parameters() if name.endswith("weight"))
    torch.optim.SGD(model.parameters(), lr=0.02).step()
    assert loss() < first - 1e-3


@dynamic
def test_absent_channels_change_no_gradient(make):
    model = made(make)
    x, mask = images(3, 4, 8, 8), torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0]]).bool()
    for got, expected in with_and_without_mask(model, x, mask):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@dynamic
def test_a_sample_without_channels_is_one_of_zeros(make):
    model = made(make).eval()
    logits = model(images(1, 3, 8, 8), torch.zeros(1, 3).bool())
    torch.testing.assert_close(logits, model(torch.zeros(1, 1, 8, 8)))


@dynamic
def test_a_mask_that_does_not_fit_is_refused(make):
    with pytest.raises(ValueError, match=r"mask must be \[batch, channels\] = \[2, 3\], got \[2, 4\]"):
        make()(images(2, 3, 8, 8), torch.ones(2, 4).bool())
    with pytest.raises(TypeError, match=r"mask must be a bool tensor, got torch.float32"):
        make()(images(2, 3, 8, 8), torch.ones(2, 3))


def test_v1_makes_kernels_from_the_number_and_the_position_only():
    model = made(DynamicCNNv1).eval()
    kernels = {}
    model.generator.register_forward_hook(lambda module, args, output: kernels.update({output.shape[1]: output}))
    for channels in (1, 2, 3):
        model(images(2, channels, 8, 8))
        torch.testing.assert_close(kernels[channels][0], kernels[channels][1])
    assert (kernels[3][0, 0] - kernels[3][0, 1]).abs().max() > 1e-2
    assert (kernels[3][0, 0] - kernels[1][0, 0]).abs().max() > 1e-2
    x = images(2, 3, 8, 8)
    weight = kernels[3][0].transpose(0, 1) / 3
    expected = model.head(model.features(nn.functional.conv2d(x, weight, padding=1)))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_v2_makes_kernels_from_each_channel_and_averages():
    model = made(DynamicCNNv2).eval()
    x = images(2, 3, 10, 9)
    total = 0
    for channel in x.split(1, 1):
        kernels = model.generator(channel)
        pairs = zip(channel, kernels, strict=True)
        total = total + torch.stack([nn.functional.conv2d(c, k.unsqueeze(1), padding=1) for c, k in pairs])
    torch.testing.assert_close(model(x), model.head(model.features(total / 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (DynamicCNNv1, "per_sample_conv2d"),
        (DynamicCNNv2, "per_sample_conv2d"),
        (SE2LayerCNN, "channel_gate"),
    ],
)
def test_the_opaque_ops_are_used_forward_and_backward(make, name):
    model = made(make)
    called = ops_called(lambda: model(images(2, 3, 8, 8)).sum().backward())
    assert {f"polychrome::{name}", f"polychrome::{name}_backward"} <= called


@dynamic
@needs_interpreter
def test_the_triton_kernels_give_the_same_result(make):
    model = made(make).eval()
    x, mask = images(2, 3, 5, 6), torch.tensor([[1, 0, 1], [1, 1, 1]]).bool()
    expected = model(x, mask)
    with use_backend("triton"):
        got = model(x, mask)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@dynamic
def test_bfloat16_autocast_stays_near_float32(make):
    model = made(make).eval()
    x = images(4, 3, 12, 12)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x)
    assert got.isfinite().all()
    assert (got - expected).norm() <= 0.03 * expected.norm()


@dynamic
def test_float64_and_channels_last(make):
    model = made(make).eval()
    x = images(2, 3, 12, 12)
    last = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(make).eval().double()(x.double()).float(), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [*(pytest.param(make, marks=pytest.mark.slow) for make in DYNAMIC[:-1]), DYNAMIC[-1]])
def test_one_compilation_serves_every_batch_size(make):
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    model = made(make)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    # at most 5: torch's CPU convolution guards on a batch of 16, and v2 convolves 3 * batch maps
    for batch in (2, 3, 5):
        x, mask = images(batch, 3, 8, 8), torch.ones(batch, 3).bool()
        mask[0, 1] = False
        expected = model(x, mask)
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(mask, 0)
        torch.testing.assert_close(compiled(x, mask), expected, rtol=1e-4, atol=1e-5)
    assert backend.frame_count == 1
