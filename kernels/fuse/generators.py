"""The generators that a module's forward may draw random numbers from: torch's of the CPU, Python's and NumPy's."""

import random
import sys
from contextlib import contextmanager, suppress

import torch


@contextmanager
def kept():
    """Put the generators back as they were; NumPy's where NumPy is imported, here and below."""
    python, numpy = random.getstate(), _numpy()
    state = None if numpy is None else numpy.get_state(legacy=False)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(state)


def seed(number: int) -> None:
    """Seed the generators; no GPU's, as torch.manual_seed would."""
    torch.default_generator.manual_seed(number)
    random.seed(number)
    if (numpy := _numpy()) is not None:
        with suppress(TypeError):  # another generator in the place of NumPy's takes no seed
            numpy.seed(number)


def next_numbers() -> tuple[float, ...]:
    """Return two numbers that each generator gives next, normal and uniform: other ones after any draw."""
    found = [draw((), device="cpu").item() for draw in (torch.randn, torch.rand)]
    found += random.gauss(0, 1), random.random()
    if (numpy := _numpy()) is not None:
        found += numpy.standard_normal(), numpy.random_sample()
    return tuple(found)


def _numpy():
    """Return the module `numpy.random`, which NumPy imports when it is first read; None without NumPy."""
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random
