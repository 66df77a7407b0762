"""The op's Triton kernel on a CUDA device: `pytest -m gpu`."""

import subprocess
import sys

import pytest
import torch

from polychrome.kernels import augment
from polychrome.kernels.augment import Recipe, draw
from tests.kernels.augment_cases import CASES, SIZES, SMALLEST_STD, images, statistics
from tests.kernels.oracle import rms_ratio
from tests.kernels.test_augment import DTYPES
from tests.kernels.test_augment_parameters import EVERYTHING

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


def moved(arguments):
    return {name: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_kernel_is_near_the_definition_and_the_cpu_path(case, size, dtype):
    arguments = CASES[case] | statistics() | {"size": SIZES[size]}
    exact = augment.reference(images(), dtype=torch.float64, **arguments)
    got = augment(images().to(DEVICE), dtype=dtype, **moved(arguments))
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert rms_ratio(got.cpu(), exact) <= DTYPES[dtype]
    if dtype == torch.float32:
        assert (got.cpu() - augment(images(), **arguments)).abs().max() * SMALLEST_STD <= 1.001 / 255


@pytest.mark.parametrize("channels", [1, 5, 13])
def test_any_number_of_channels(channels):
    arguments = CASES["training"] | statistics(channels) | {"size": 9}
    exact = augment.reference(images(channels), dtype=torch.float64, **arguments)
    got = augment(images(channels).to(DEVICE), **moved(arguments))
    assert rms_ratio(got.cpu(), exact) <= 1e-5


def test_what_is_drawn_does_not_depend_on_the_device():
    for recipe in (EVERYTHING, Recipe(scale=(0.08, 1.0), channels="subset")):
        here = draw(recipe, torch.arange(5000), (375, 500), 3, 1, (224, 224), 3)
        there = draw(recipe, torch.arange(5000, device=DEVICE), (375, 500), 3, 1, (224, 224), 3)
        for one, other in zip(here, there, strict=True):
            if one is not None:
                torch.testing.assert_close(one, other.cpu(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("an index is not that of an image", "indices=torch.tensor([0, 5], device='cuda')"),
        ("a crop has nothing in its image", "torch.tensor([[0, 0, 4, 4], [99, 0, 4, 4]], device='cuda')"),
        ("a channel is not in the images", "channels=torch.tensor([0, 3], device='cuda')"),
    ],
)
def test_values_out_of_range_end_in_a_device_side_assertion(message, arguments):
    images = "torch.zeros(2, 8, 8, 3, dtype=torch.uint8, device='cuda')"
    code = f"import torch\nfrom kernels import augment\naugment({images}, {arguments})\ntorch.cuda.synchronize()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
