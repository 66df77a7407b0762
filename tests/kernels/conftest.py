import warnings
from dataclasses import replace

import pytest
import torch

from bench.stand_in.interpreter import quicken
from polychrome.kernels import replay, use_backend
from polychrome.kernels.backend import is_interpreted, triton_is_installed


@pytest.fixture(autouse=True)
def interpreter_as_fast_as_it_goes(request, monkeypatch):
    """Let Triton's interpreter repeat no work and, but in slow runs, leave out its check of sums for overflow.

    `-m slow` is one, and so is `-m "slow or not slow"`, which runs all tests with the check. Triton itself computes it
    always, and raises for what it found in debugging alone.
    """
    slow = "slow" in request.config.option.markexpr.replace("not slow", "")
    if triton_is_installed() and is_interpreted():
        from triton.runtime import interpreter

        quicken(interpreter)
        builder = interpreter.interpreter_builder
        monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=slow, debug=slow))


@pytest.fixture(autouse=True)
def nothing_to_replay():
    """Let every test's calls run the bodies as the test has them, whatever ran before."""
    replay.forget()


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Let new memory start as NaN, which torch does under deterministic algorithms: what is not written is seen."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.use_deterministic_algorithms(True)
        yield
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def on_triton(poisoned_memory):
    """Run every public function on Triton, with memory that starts as NaN."""
    with use_backend("triton"):
        yield


@pytest.fixture
def without_tf32():
    """Let float32 mean float32, also where torch would let a convolution or a product use TF32."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    # not by pytest's monkeypatch, which deletes what is found by __getattr__, and fails
    for switch, allowed in zip(switches, before, strict=True):
        switch.allow_tf32 = allowed
