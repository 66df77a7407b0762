"""The loss of each of the first 20 steps of every task on the generated set: a change in them must be meant.

After a meant change: `python -m tests.train.test_golden_losses` writes them anew.
"""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from polychrome.engine.data.image_set import ImageSet, Split
from polychrome.engine.data.opening import Opened
from polychrome.engine.data.sets import generated, listing
from polychrome.engine.training.trainer import Hooks, fit
from polychrome.train import data, networks
from polychrome.train.settings import variants
from polychrome.train.settings.config import Settings

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 20
# Models of each task at a size that takes seconds; fp32, as figures in bf16 depend on the processor. Sizes, rates and
# optimisers are such that rounding does not decide: with oneDNN's convolutions or without, losses differ by at most
# 1.5e-4 in the first five steps and 1.2e-3 in all. At 32 pixels the statistics of a deep network's last maps are of
# eight values, and its losses differ by a tenth.
CASES = {
    "task1 simple_cnn": {"batch_size": 32},
    "task1 pool_attention_cnn": {"batch_size": 32},
    "task2 attention_cnn": {"batch_size": 16},
    "task2 resnet34": {"batch_size": 8, "image_size": 64, "lr": 1e-5},
    "cifar100 base_net": {"batch_size": 32, "image_size": 32},
    "cifar100 vgg_slim": {"batch_size": 16, "image_size": 32, "lr": 1e-3, "optimizer": "sgd"},
    "transfer resnet50+scratch": {"batch_size": 8, "image_size": 64, "lr": 1e-6, "optimizer": "adam"},
}


# One network that is shown draws of the channels, and one that is shown all of them; the others take longer.
USUAL = ("task1 pool_attention_cnn", "cifar100 base_net")


class Enough(Exception):
    """Ends a training after the steps that are wanted."""


def losses(case: str, folder: Path) -> list[float]:
    """Return the losses of the first steps of a case, "TASK ENTRY", trained in one thread."""
    task, entry = case.split()
    settings = Settings(
        models=(entry,), epochs=1, precision="fp32", device="cpu", compile=False, backend="torch", workers=1
    )
    settings = variants.of(replace(variants.resolve(settings, task), **CASES[case]), entry)
    images = first_images(settings.batch_size)
    model = networks.initialised(entry, settings, len(images.class_names), len(images.channels))
    plan = networks.plan(model, settings, images)
    found, cross_entropy, threads = [], torch.nn.functional.cross_entropy, torch.get_num_threads()

    def noted(*arguments, **options):
        loss = cross_entropy(*arguments, **options)
        found.append(loss.item())
        return loss

    def step() -> None:
        if len(found) == STEPS:
            raise Enough

    opened = Opened(images, data.how_to_open(settings))
    with (
        pytest.MonkeyPatch.context() as patch,
        data.make_loader(opened, "train", settings, plan.augmentations) as train,
        data.make_loader(opened, "val", settings) as val,
        suppress(Enough),
    ):
        patch.setattr(torch.nn.functional, "cross_entropy", noted)
        torch.set_num_threads(1)  # several divide sums as they like
        fit(entry, model, train, val, plan, folder, Hooks(step=step))
    torch.set_num_threads(threads)
    return found


def first_images(batch_size: int) -> ImageSet:
    """Return the generated set with its images' sizes, as many for training as the steps take."""
    images = listing.read(generated.ensure())
    counts = {"train": STEPS * batch_size + 2, "val": 2}
    splits = {}
    for name, count in counts.items():
        split = images.splits[name]
        stride = max(1, len(split.paths) // count)
        chosen = [place * stride % len(split.paths) for place in range(count)]
        labels, paths = ([column[place] for place in chosen] for column in (split.labels, split.paths))
        splits[name] = Split(tuple(paths), tuple(labels), sizes(images.root, paths))
    return replace(images, splits=splits)


def sizes(root: Path, paths: list[str]) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of each image."""
    from PIL import Image

    found = []
    for path in paths:
        with Image.open(root / path) as image:
            found.append((image.height, image.width))
    return tuple(found)


@pytest.mark.parametrize(
    "case", [case if case in USUAL else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_first_losses_are_as_recorded(case, tmp_path):
    golden = json.loads(GOLDEN.read_text())[case]
    # Processors and versions of torch round differently, and that grows with each step.
    found = losses(case, tmp_path)
    assert len(found) == len(golden) == STEPS
    assert found[:5] == pytest.approx(golden[:5], rel=1e-3)
    assert found == pytest.approx(golden, rel=0.02)


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        recorded = {case: [round(loss, 5) for loss in losses(case, Path(scratch) / case)] for case in CASES}
    GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")
