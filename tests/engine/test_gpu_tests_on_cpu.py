"""Some of the GPU tests of the engine on the CPU, so that a change which breaks them is noticed without a GPU."""

from dataclasses import replace

import pytest
import torch

from tests.engine import test_engine_on_gpu as on_gpu
from tests.engine.test_engine_on_gpu import lacking, stored, striped  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(on_gpu, "DEVICE", cpu)
    monkeypatch.setattr(on_gpu, "PLAN", replace(on_gpu.PLAN, device=cpu))


@pytest.mark.usefixtures("signals_heard")
def test_a_stopped_training(striped, stored, tmp_path):  # noqa: F811
    on_gpu.test_a_stopped_training_goes_on_within_its_epoch(striped, stored, tmp_path, compiled=False)


@pytest.mark.parametrize("case", [on_gpu.CASES[0], on_gpu.CASES[4]], ids=str)
def test_an_epoch_under_the_guard(striped, stored, tmp_path, case):  # noqa: F811
    on_gpu.test_nothing_in_an_epoch_makes_the_host_wait(striped, stored, tmp_path, *case, batchwise=True)


def test_an_evaluation_under_the_guard(striped, stored):  # noqa: F811
    on_gpu.test_evaluation_of_all_combinations_does_not_make_the_host_wait(striped, stored)


def test_images_that_lack_channels(lacking, stored, tmp_path):  # noqa: F811
    on_gpu.test_evaluation_does_not_make_the_host_wait_where_images_lack_channels(lacking, stored)
    on_gpu.test_nothing_in_an_epoch_makes_the_host_wait_where_images_lack_channels(lacking, stored, tmp_path)


def test_stored_images(striped, stored):  # noqa: F811
    on_gpu.test_stored_images_make_the_batches_that_the_cpu_makes(striped, stored)
