"""The largest batch that fits: the search, real allocations that fail, the estimate on the CPU, the advice."""

import errno
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from polychrome.engine.machine import distributed
from polychrome.engine.training import batch_size
from polychrome.engine.training.sync_batch_norm import SyncBatchNorm2d
from tests.engine.small import PLAN

ROOT = Path(__file__).resolve().parent.parent.parent

UNDER_A_LIMIT = """
import resource
import torch
from polychrome.engine.training import batch_size

tried = []

def try_batch(size):
    tried.append(size)
    kept = torch.ones(size, 2**18)  # 1 MiB an image, on the page at once
    kept.requires_grad_().sum().backward()  # its gradient is a second one

try_batch(2)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20, resource.RLIM_INFINITY))
print(batch_size.largest(try_batch, 10_000, 16), max(tried))
"""


class Limit:
    """A step that runs out of memory above `images`, and keeps what it was asked for."""

    def __init__(self, images):
        self.images, self.tried = images, []

    def __call__(self, size):
        self.tried.append(size)
        if size > self.images:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} MiB.")


@pytest.mark.parametrize("start", [2, 64, 500])
@pytest.mark.parametrize("limit", [2, 3, 8, 20, 177, 4000])
def test_the_largest_is_close_under_the_limit_with_a_tenth_to_spare(limit, start):
    step = Limit(limit)
    found = batch_size.largest(step, 100_000, start)
    if found > 8:
        assert found % 8 == 0
    assert max(2, 0.9 * 15 / 17 * limit - 8) <= found <= max(2, 0.9 * limit)
    assert len(step.tried) <= 20
    assert len(step.tried) == len(set(step.tried))


def test_no_more_than_the_most_is_returned():
    step = Limit(10**6)
    assert batch_size.largest(step, 90, 32) == 88
    assert max(step.tried) == 100  # 90 with a tenth to spare
    assert batch_size.largest(Limit(10**6), 5, 64) == 5
    assert batch_size.largest(Limit(99), 90, 32) <= 88


def test_a_step_that_never_fits_gives_no_batch_size():
    step = Limit(1)
    assert batch_size.largest(step, 1000, 64) == 0
    assert min(step.tried) == 2


def test_other_errors_end_the_search():
    def step(size):
        raise ValueError(f"{size} images of nothing")

    with pytest.raises(ValueError, match="16 images of nothing"):
        batch_size.largest(step, 100, 16)


def test_what_a_failed_try_held_is_free_at_the_next():
    class Activations:
        pass

    alive = []

    def step(size):
        assert not any(reference() for reference in alive)
        held = Activations()
        held.cycle = held
        alive.append(weakref.ref(held))
        if size > 50:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert batch_size.largest(step, 1000, 64) == 40
    assert len(alive) > 3


def test_real_allocations_that_fail_bound_the_batch():
    result = subprocess.run([sys.executable, "-c", UNDER_A_LIMIT], cwd=ROOT, capture_output=True, text=True, check=True)
    found, tried = map(int, result.stdout.split())
    assert 200 <= found <= 270 < tried  # 600 MiB at 2 MiB an image, a tenth to spare


def test_on_the_cpu_the_growth_of_the_resident_set_predicts_the_largest(monkeypatch):
    monkeypatch.setattr(batch_size, "available", lambda: 4 * 10**9)  # what is free here changes from moment to moment
    tried = []

    def step(size):
        tried.append(size)
        fixed, values = np.ones(25 * 10**6), np.ones(size * 1_250_000)  # 200 MB and 10 MB an image
        assert fixed[0] == values[-1]

    found = batch_size.largest_on_cpu(step, 10**6)
    assert found % 8 == 0
    assert found * 10e6 == pytest.approx(0.9 * (4e9 - 200e6), rel=0.1)
    assert max(tried) == 64  # 32 images more grow it by 320 MB, 16 by 160


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    def step(size):
        assert np.ones(size * 10**6)[-1] == 1  # 8 MB an image

    monkeypatch.setattr(batch_size, "available", lambda: 4 * 10**9)
    alone = batch_size.largest_on_cpu(step, 10**6)
    monkeypatch.setattr(distributed, "local_world_size", lambda: 4)
    assert batch_size.largest_on_cpu(step, 10**6) == pytest.approx(alone / 4, rel=0.1)


@pytest.mark.parametrize("kind", [SyncBatchNorm2d, nn.SyncBatchNorm])
def test_the_search_for_a_batch_that_fits_waits_for_no_other_process(monkeypatch, kind):
    """After a step of several processes that one process failed in, the others are anywhere."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: pytest.fail("waits"))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4), nn.Flatten(), nn.LazyLinear(PLAN.num_classes))
    nn.Sequential(model[0], *model[2:])(torch.zeros(1, 3, 8, 8))  # the lazy layer's size
    batch_size.step_on_random(model, (3, 8, 8), PLAN)(4)
    assert type(model[1]) is kind


def test_on_the_cpu_no_more_than_the_most_is_returned():
    tried = []
    assert batch_size.largest_on_cpu(tried.append, 100) == 96
    assert max(tried) == 128
    assert batch_size.largest_on_cpu(lambda size: None, 5) == 5


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error, expected):
    assert batch_size.is_out_of_memory(error) == expected


def test_refusals_of_the_allocators_here_are_errors_of_memory():
    for allocate in (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: np.empty(2**60, np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert batch_size.is_out_of_memory(caught.value)


def test_the_advice_names_the_batch_size_that_fits():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 4 GiB.")
    assert batch_size.advice(error, 512, 176) == (
        "out of memory at batch size 512; 176 would fit: --batch-size 176, for steps of as many images with "
        "--accumulate 3"
    )
    assert batch_size.advice(error, 512, 256).endswith("for steps of as many images with --accumulate 2")
    assert batch_size.advice(error, 512, 256, 3).endswith(
        "--batch-size 256, for steps of as many images with --accumulate 6"
    )
    assert batch_size.advice(error, 512, 0) == (
        "out of memory at batch size 512; no batch would fit: take a smaller --image-size or a smaller model"
    )
    assert batch_size.advice(error, 512, 640) == (
        "out of memory at batch size 512 (CUDA out of memory), which fits alone: another process or the cached data "
        "took the memory"
    )


@pytest.mark.gpu
def test_on_a_gpu_the_largest_batch_fits_and_twice_as_many_images_do_not():
    _, total = torch.cuda.mem_get_info()
    image = total // 500

    def step(size):
        torch.empty(size * image, dtype=torch.uint8, device="cuda")

    found = batch_size.largest(step, 10_000, 16)
    assert 100 < found <= 450
    step(found)
    with pytest.raises(torch.OutOfMemoryError):
        step(2 * 500)
