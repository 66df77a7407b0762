"""What a GPU would make the host wait for, found without one: on fake CUDA tensors every blocking copy is seen."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polychrome.engine import evaluation
from polychrome.engine.channels.names import RGB
from polychrome.engine.data.augmentation import NAMES, Augmentations
from polychrome.engine.data.batches import Batch, Rendering, Streamed
from polychrome.engine.metrics import Scorer
from polychrome.engine.training import trainer
from polychrome.engine.training.state import Totals
from polychrome.kernels.augment import draw
from polychrome.models.any_channels import AnyChannels
from tests.engine.small import PLAN

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the real thing is tested")
DEVICE, BATCH = torch.device("cuda:0"), 4
LOADER = SimpleNamespace(channels=RGB)
WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount")


class Waits(TorchDispatchMode):
    """Lists what makes the host wait: copies between devices that block, and results whose shape or value it needs."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(function)
        given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
        if any(word in name for word in WAIT) and any(item.is_cuda for item in given):
            self.found.append(name)
        result = function(*args, **kwargs)
        devices = {item.device.type for item in tree_leaves(result) if isinstance(item, torch.Tensor)}
        copied = "_to_copy" in name and devices != {item.device.type for item in given}
        if copied and not kwargs.get("non_blocking"):
            self.found.append(name)
        return result


def batch(resident):
    if resident:
        stored = torch.zeros(9, 40, 40, 3, dtype=torch.uint8, device=DEVICE)
        boxes = torch.zeros(BATCH, 4, dtype=torch.int32, device=DEVICE)
        flips = torch.zeros(BATCH, dtype=torch.bool, device=DEVICE)
        source = Rendering(stored, torch.zeros(BATCH, dtype=torch.int64, device=DEVICE), boxes, flips, 32)
    else:
        source = Streamed(torch.zeros(BATCH, 32, 32, 3, dtype=torch.uint8, device=DEVICE).permute(0, 3, 1, 2))
    return Batch(source, torch.zeros(BATCH, dtype=torch.int64, device=DEVICE), np.arange(BATCH), BATCH)


def augmented(resident):
    given = batch(resident)
    indices = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)
    recipe = replace(Augmentations(NAMES).recipe(1), scale=None, flip=0.0)
    drawn = draw(recipe, indices, (32, 32), 0, 1)._asdict()
    parameters = {name: values for name, values in drawn.items() if values is not None}
    given.standardised(RGB, torch.zeros(BATCH, 3, dtype=torch.int64, device=DEVICE), **parameters)


def shown(any_channels):
    model = nn.Identity()
    model.any_channels = any_channels
    images = torch.zeros(BATCH, 3, 8, 8, device=DEVICE)
    for chosen in ((0, 1, 2), (1,), ()):
        for how in ("subset", "zero-pad", "mask"):
            evaluation.inputs(model, images, chosen, how, np.arange(BATCH), None)


def lacking():
    """What is done where images lack channels: drawn, standardised, shown in training and in evaluation."""
    present = torch.ones(BATCH, 3, dtype=torch.bool, device=DEVICE)
    table = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 1], [1, 1, 1]], bool)
    model = nn.Identity()
    model.any_channels = True
    for resident in (True, False):
        given = replace(batch(resident), present=present)
        recipe = replace(Augmentations(()).recipe(1), channels="subset", channel_bias=0.5)
        indices = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)
        drawn = draw(recipe, indices, (32, 32), 0, 1, channels=3, present=present).channels
        images, _ = trainer._images(replace(given, drawn={"channels": drawn}), LOADER, PLAN, 1, 0, 0)
        for chosen in (None, (0, 1), ()):
            rows, own, _, has = evaluation._having(given, images, chosen, table)
            evaluation.inputs(model, own, chosen, "mask", given.indices[rows], has)


def filled(fill):
    model = AnyChannels(nn.Identity(), 3, fill).to(DEVICE)
    images, mask = torch.zeros(BATCH, 3, 8, 8, device=DEVICE), torch.ones(BATCH, 3, dtype=torch.bool, device=DEVICE)
    return lambda: model(images, mask)


def scored():
    scorer = Scorer(5, DEVICE)
    return lambda: scorer.update(torch.zeros(BATCH, 5, device=DEVICE), batch(False).labels)


def counted():
    totals, number = Totals(DEVICE), torch.zeros((), device=DEVICE)
    return lambda: totals.add(number, number.long(), BATCH, BATCH, 7)


PARTS = {
    "augmentation of stored images": lambda: lambda: augmented(True),
    "augmentation of streamed images": lambda: lambda: augmented(False),
    "channels that are shown": lambda: lambda: shown(False),
    "channels that are told of": lambda: lambda: shown(True),
    "nearest channels": lambda: filled("nearest"),
    "estimated channels": lambda: filled("estimated"),
    "channels that images lack": lambda: lacking,
    "scores": scored,
    "totals": counted,
}


@pytest.mark.parametrize("part", PARTS)
def test_the_host_waits_for_no_device(part):
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = PARTS[part]()
        step()  # constants are copied to the device once
        with Waits() as waits:
            step()
    assert waits.found == []


def test_a_wait_is_seen():
    with FakeTensorMode(), Waits() as waits:
        torch.tensor([1, 2], device=DEVICE)
        torch.tensor([1, 2]).to(DEVICE, non_blocking=True)
        torch.ones(2, device=DEVICE).where(torch.ones(2, device=DEVICE) > 0, -1)
    assert waits.found == ["aten._to_copy.default"]
