"""Files that are lost or damaged while an epoch is read."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from polychrome.engine.data import faults, image_set, loader
from polychrome.engine.data.readers import choice
from polychrome.engine.data.stores.whole import WholeImages
from polychrome.engine.errors import Interrupted, UserError
from polychrome.engine.training import trainer
from tests.engine.data import photos
from tests.engine.small import PLAN

BACKENDS = sorted({choice.resolve("auto"), "torch"})
COUNT, BATCH = 64, 8


@pytest.fixture
def images(tmp_path):
    return photos.write(tmp_path, photos.sizes(COUNT))


def create(images, backend="torch", **options):
    defaults = {"size": 24, "batch_size": BATCH, "train": True, "seed": 3, "workers": int(backend != "torch")}
    return loader.Loader(images, options.pop("split", "train"), backend=backend, **defaults | options)


def truncate(images, index):
    file = images.root / images.splits["train"].paths[index]
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("damage", ["truncate", "delete", "replace"])
def test_training_takes_a_good_image_of_the_batch_instead(images, backend, damage):
    told = []
    with create(images, backend, workers=1, on_fault=lambda *fault: told.append(fault)) as batches:
        requests, whole = batches.requests(1), list(batches.epoch(1))
        bad = int(requests[6].indices[5])  # beyond what is read ahead
        file = images.root / images.splits["train"].paths[bad]
        epoch = batches.epoch(1)
        seen = [next(epoch)]
        if damage == "truncate":
            truncate(images, bad)
        elif damage == "delete":
            file.unlink()
        else:
            photos.write(images.root / "other", [(200, 30)])
            file.write_bytes((images.root / "other" / "0.png").read_bytes())
        seen += epoch
        list(batches.epoch(1))
    ((path, reason),) = told
    assert path == images.splits["train"].paths[bad]
    assert reason
    assert "\n" not in reason
    labels = images.splits["train"].labels
    for number, (got, wanted) in enumerate(zip(seen, whole, strict=True)):
        good = np.arange(BATCH) if number != 6 else np.array([0, 1, 2, 3, 4, 6, 7])
        assert torch.equal(got.images[good], wanted.images[good])
        assert got.images.is_contiguous(memory_format=torch.channels_last)
        assert (len(got), got.total) == (BATCH, BATCH)
        assert got.labels.tolist() == [labels[i] for i in got.indices]
    assert seen[6].indices[5] == seen[6].indices[0]
    assert torch.equal(seen[6].images[5], seen[6].images[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_leaves_the_image_out(images, backend):
    truncate(images, 13)
    told = []
    with create(images, backend, train=False, on_fault=lambda *fault: told.append(fault[0])) as batches:
        seen = list(batches.epoch(0))
    assert told == [images.splits["train"].paths[13]]
    assert np.concatenate([batch.indices for batch in seen]).tolist() == [i for i in range(COUNT) if i != 13]
    assert [len(batch) for batch in seen] == [8, 7, *[8] * 6]
    assert seen[1].images.shape[0] == len(seen[1].labels) == 7


def test_images_in_memory_outlive_their_files(images):
    pixels = WholeImages.load(images, 1)
    with create(images, store=pixels, on_fault=pytest.fail) as batches, create(images, workers=0) as theirs:
        expected = [batch.images for batch in theirs.epoch(1)]
        epoch = batches.epoch(1)
        seen = [next(epoch)]
        for index in range(COUNT):
            truncate(images, index)
        seen += epoch
    for got, wanted in zip(seen, expected, strict=True):
        assert torch.equal(got.images, wanted)


def test_a_batch_without_a_good_image_ends_the_run(images):
    with create(images, workers=0) as batches:
        for index in batches.requests(1)[3].indices:
            truncate(images, index)
        epoch = batches.epoch(1)
        assert len([next(epoch) for _ in range(3)]) == 3
        with pytest.raises(
            UserError, match=r"8 of 32 images could not be read; the last are like /.*png: can no lon"
        ) as e:
            next(epoch)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("train", [True, False])
def test_a_batch_of_a_single_bad_image_is_passed_over(images, train):
    truncate(images, 5)
    with create(images, workers=0, train=train, batch_size=1) as batches:
        seen = [batch.indices.tolist() for batch in batches.epoch(1)]
        order = [int(request.indices[0]) for request in batches.requests(1)]
    assert sorted(index for each in seen for index in each) == [i for i in range(COUNT) if i != 5]
    if train:  # batches keep their numbers
        assert seen == [[index] if index != 5 else [] for index in order]


class Stepwise(trainer.Trainer):
    """Keeps the images of each step that is taken, and the gradients that are left before a validation."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.images, self.steps_taken, self.left = [], [], []

    def _forward_and_backward(self, batch, *arguments):
        self.images += batch.indices.tolist()
        super()._forward_and_backward(batch, *arguments)

    def _update(self):
        assert all(parameter.grad is not None for parameter in self.model.parameters())
        self.steps_taken.append(self.images)
        self.images = []
        super()._update()

    def _validate(self):
        self.left += [parameter.grad for parameter in self.model.parameters()]
        return super()._validate()


@pytest.mark.parametrize(
    ("accumulate", "place"),
    [
        pytest.param(accumulate, place, marks=[pytest.mark.slow] * (accumulate != 4 and place != 5))
        for accumulate in (1, 4, 12)
        for place in (0, 5, 11)
    ],
)
def test_every_step_is_taken_where_a_lone_image_cannot_be_read(tmp_path, monkeypatch, accumulate, place):
    images = photos.write(tmp_path / "photos", photos.sizes(12))
    made, stop = [], []

    def trained(folder, *arguments):
        monkeypatch.setattr(trainer, "Trainer", lambda *given: made.append(Stepwise(*given)) or made[-1])
        with (
            create(images, workers=0, batch_size=1) as train,
            create(images, workers=0, batch_size=4, train=False) as val,
        ):
            trainer.fit("m", Flat(), train, val, plan, tmp_path / folder, *arguments)

    plan = replace(PLAN, epochs=2, accumulate=accumulate, num_classes=12)
    with create(images, workers=0, batch_size=1) as train:
        order = [[int(request.indices[0]) for request in train.requests(epoch)] for epoch in (1, 2)]
    bad = order[0][place]
    truncate(images, bad)
    trained("whole")
    steps = [
        [index for index in epoch[start : start + accumulate] if index != bad]
        for epoch in order
        for start in range(0, 12, accumulate)
    ]
    assert made[0].steps_taken == [step for step in steps if step]
    assert made[0].left == [None] * len(made[0].left)

    def ask():
        stop.append(None)
        if len(stop) == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        trained("broken", trainer.Hooks(step=ask))
    trained("broken")
    assert made[1].steps_taken + made[2].steps_taken == made[0].steps_taken


class Flat(torch.nn.Sequential):
    """A small network without batch normalisation, which a lone image would not do for."""

    def __init__(self):
        super().__init__(
            torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(2, 12)
        )


def test_more_than_a_tenth_and_at_least_ten_bad_images_end_the_run(images):
    with create(images, workers=0) as batches:
        requests = batches.requests(1)
        for request in requests[:3]:
            for index in request.indices[:3]:
                truncate(images, index)
        assert len(list(batches.epoch(1))) == 8  # nine
        truncate(images, requests[7].indices[0])
        with pytest.raises(UserError, match="10 of 64 images could not be read"):
            list(batches.epoch(1))


def test_ten_bad_images_among_many_do_not(tmp_path):
    tally = faults.Tally(tmp_path, [str(i) for i in range(1000)], None, set())
    for start in range(0, 1000, 100):
        tally.add(np.arange(start, start + 100), {0: "gone"})
    tally.add(np.arange(100), dict.fromkeys(range(99), "gone"))  # 109 of 1,100
    with pytest.raises(UserError, match=r"111 of 1,102 images could not be read; the last are like /.*/7: gone"):
        tally.add(np.array([7, 8]), {0: "gone", 1: "gone"})


def test_good_rows_stand_in_for_bad_ones_in_turn():
    assert faults.rows(6, [1, 4, 5], train=True).tolist() == [0, 0, 2, 3, 2, 3]
    assert faults.rows(6, [1, 4, 5], train=False).tolist() == [0, 2, 3]
    assert faults.rows(2, [0, 1], train=True).tolist() == []


def test_a_set_without_some_files_keeps_labels_and_sizes(images):
    split = images.splits["train"]
    left = image_set.without(images, split.paths[:60]).splits["train"]
    assert (left.paths, left.labels, left.sizes) == (split.paths[60:], split.labels[60:], split.sizes[60:])
    with pytest.raises(UserError, match=r"no usable image in train of /.*: none of 64 could be read"):
        image_set.without(images, split.paths)
