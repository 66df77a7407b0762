"""What a type checker tells somebody who calls the public functions: right calls pass, wrong ones are named."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import polychrome
from polychrome.kernels import modules

pytest.importorskip("mypy")

ROOT = Path(__file__).resolve().parents[1]
SUBPACKAGES = ("kernels", "models", "engine", "train")
# An error that is not marked, and a mark without its error, are both told.
CALLS = """
import torch
from torch import Tensor, nn
import polychrome
from polychrome import channel_gate, dynamic_conv2d, per_sample_conv2d, spatial_attention
from polychrome.kernels import channel_stats, fold_batch_norm, fuse, use_backend
from polychrome.kernels.modules import DynamicConv2d

x, experts, mixing, gate = torch.zeros(2, 3, 8, 8), torch.zeros(4, 8, 3, 3, 3), torch.zeros(2, 4), torch.zeros(3, 3)
mixed: Tensor = dynamic_conv2d(x, experts, mixing, stride=(2, 1), padding="same")
defined: Tensor = dynamic_conv2d.reference(x, experts, mixing)
each: Tensor = per_sample_conv2d(x, experts[:2], dilation=2)
attended: Tensor = spatial_attention(x, torch.zeros(1, 2, 7, 7))
gated: Tensor = channel_gate(x, None, None, gate, None, gate="softmax")
found: Tensor = channel_stats(x, mask=None)
layer = DynamicConv2d(3, 8, 3, padding=1)
model: nn.Module = fold_batch_norm(layer)
with use_backend("reference"):
    pass

dynamic_conv2d(x, experts)  # type: ignore[call-arg]
dynamic_conv2d(x, experts, [0.5, 0.5])  # type: ignore[arg-type]
per_sample_conv2d(x, experts, strides=2)  # type: ignore[call-arg]
spatial_attention(x, 7)  # type: ignore[arg-type]
wrong: int = channel_stats(x)  # type: ignore[assignment]
DynamicConv2d(3, "8", 3)  # type: ignore[arg-type]
polychrome.dynamic_conv4d  # type: ignore[attr-defined]
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What mypy says of `CALLS`, and of every public function, where the package lies as it is installed."""
    folder = tmp_path_factory.mktemp("installed")
    package = folder / "polychrome"
    package.mkdir()
    for path in (ROOT / "polychrome").iterdir():
        (package / path.name).symlink_to(path)
    for name in SUBPACKAGES:
        (package / name).symlink_to(ROOT / name)
    shown = "".join(f"reveal_type(polychrome.{name})\n" for name in polychrome.__all__)
    (folder / "calls.py").write_text(CALLS)
    (folder / "shown.py").write_text(f"import polychrome\n{shown}")
    options = ("--follow-imports=silent", "--warn-unused-ignores", "--cache-dir", str(folder / "cache"))
    command = [sys.executable, "-m", "mypy", *options, "calls.py", "shown.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.slow
def test_right_calls_pass_and_wrong_ones_are_named(told):
    assert [line for line in told if "error:" in line or "calls.py" in line] == []
    assert told[-1].startswith("Success")


@pytest.mark.slow
def test_every_public_function_has_a_type(told):
    shown = [line.partition("Revealed type is ")[2] for line in told if line.startswith("shown.py")]
    assert len(shown) == len(polychrome.__all__)
    for name, line in zip(polychrome.__all__, shown, strict=True):
        assert line.startswith(('"def (', '"polychrome.kernels.')), f"{name}: {line}"


@pytest.mark.parametrize("name", polychrome.__all__)
def test_every_argument_is_annotated(name):
    signature = inspect.signature(getattr(polychrome, name))
    missing = [each.name for each in signature.parameters.values() if each.annotation is inspect.Parameter.empty]
    assert missing == []


@pytest.mark.parametrize(
    "layer", ["ChannelGate", "ChannelStats", "DynamicConv2d", "PerSampleConv2d", "SpatialAttention"]
)
def test_every_argument_of_a_layer_is_annotated(layer):
    for function in (getattr(modules, layer).__init__, getattr(modules, layer).forward):
        own = list(inspect.signature(function).parameters.values())[1:]
        assert [each.name for each in own if each.annotation is inspect.Parameter.empty and each.kind < 2] == []
