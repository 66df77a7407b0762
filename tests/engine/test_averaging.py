"""The moving average of the weights, against its definition."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from polychrome.engine.training.averaging import MovingAverage
from polychrome.kernels.modules import DynamicConv2d, anneal_temperature


class Called(TorchDispatchMode):
    """Lists the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_the_average_follows_weights_and_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    average, weight, mean = MovingAverage(model, 0.25), None, None
    for step in range(4):
        with torch.no_grad():
            model[0].weight.normal_()
        model(torch.randn(2, 3, 8, 8))
        average.update_parameters(model)
        decay = min(0.25, (1 + step) / (10 + step)) if step else 0
        now = model[0].weight.detach(), model[1].running_mean
        before = (weight, mean) if step else now
        weight, mean = (decay * old + (1 - decay) * new for old, new in zip(before, now, strict=True))
    torch.testing.assert_close(average.module[0].weight, weight)
    torch.testing.assert_close(average.module[1].running_mean, mean)
    assert average.module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert average.n_averaged == 4


def test_a_temperature_is_copied_and_not_averaged():
    model = nn.Sequential(DynamicConv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = MovingAverage(model, 0.9)
    for epoch in range(3):
        anneal_temperature(model, epoch)
        model(torch.randn(2, 3, 8, 8))
        average.update_parameters(model)
        assert average.module[0].attention.temperature == model[0].attention.temperature == 30 - 2.9 * epoch
    assert average.module[1].running_mean.abs().sum() > 0
    assert not torch.equal(average.module[1].running_mean, model[1].running_mean)


def test_whole_numbers_are_copied_and_not_averaged():
    model = nn.Linear(2, 2)
    model.register_buffer("index", torch.arange(200))
    model.register_buffer("flag", torch.tensor([True]))
    average = MovingAverage(model, 0.999)
    for _ in range(3):
        average.update_parameters(model)
    assert average.module.index.equal(model.index)
    model.flag.logical_not_()
    average.update_parameters(model)
    assert not average.module.flag.item()


def test_the_number_of_steps_is_not_copied_to_the_device():
    """On a GPU the copy, and the way back, would make the host wait."""
    model = nn.Linear(3, 2)
    average = MovingAverage(model, 0.9)
    average.update_parameters(model)
    with torch.device("meta"):
        model, average.module = nn.Linear(3, 2), nn.Linear(3, 2)
    with Called() as called:
        average.update_parameters(model)
    assert not [name for name in called.names if "_to_copy" in name]
    assert any("lerp" in name for name in called.names)
