"""Every example runs, and comes to what it says."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str):
    """Return an example as a module."""
    spec = spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plain_training_loop_learns(capsys):
    accuracy = load("plain_training_loop").main(steps=40, size=16)
    assert accuracy > 0.7
    printed = capsys.readouterr().out
    assert "step 40: loss" in printed
    assert f"accuracy: {accuracy:.1%} (chance: 25%)" in printed


@pytest.mark.slow  # docs/fuse.md has the same model, in test_documents
def test_timms_model_computes_the_same_after_fuse(capsys):
    pytest.importorskip("timm")
    report, difference = load("fused_timm_model").main(steps=1)
    assert {swap.module for swap in report.swapped} == {"CondConv2d", "SqueezeExcite"}
    assert sum(swap.module == "CondConv2d" for swap in report.swapped) >= 20
    assert difference < 1e-4
    assert "images/s before" in capsys.readouterr().out


def test_gradient_penalties_are_trained_on_and_drawn(tmp_path, capsys):
    path = tmp_path / "picture.png"
    found = load("gradient_penalties").main(path, steps=12)
    assert {name: len(values) for name, values in found.items()} == {"R1": 3, "path length": 3}
    assert all(0 < value < 100 for values in found.values() for value in values)
    assert "step 12: generator's loss" in capsys.readouterr().out
    assert np.asarray(Image.open(path)).shape == (4 * 72, 8 * 72, 3)


def test_gradient_penalties_and_their_gradients_are_the_definitions():
    import torch

    from polychrome.kernels import use_backend

    example, found = load("gradient_penalties"), []
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        generator, discriminator = example.Generator().double(), example.Discriminator().double()
        styles = generator.mapping(torch.randn(3, example.STYLE, dtype=torch.float64))
        with use_backend(backend):
            penalties = [
                example.r1(discriminator, torch.randn(3, 3, 32, 32, dtype=torch.float64)),
                example.path_length(generator, styles, torch.zeros((), dtype=torch.float64)),
            ]
            sum(penalties).backward()
        found.append([*penalties, *(p.grad for net in (generator, discriminator) for p in net.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_each_image_is_blurred_with_its_own_kernel_and_restored(tmp_path, capsys):
    path = tmp_path / "picture.png"
    before, after = load("point_spread_functions").main(path, steps=40)
    assert len(before) == 4
    assert all(new < 0.75 * old for old, new in zip(before, after, strict=True))
    assert f"picture: {path}" in capsys.readouterr().out
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (4 * 104, 4 * 104, 3)
    assert pixels.std() > 50


def test_a_point_becomes_the_picture_of_its_kernel():
    import torch

    example = load("point_spread_functions")
    kernels = example.point_spread_functions()
    assert len({kernel.shape for kernel in kernels}) == 4
    images = torch.zeros(4, 3, 31, 31)
    images[:, :, 15, 15] = 1
    blurred = example.blur(images, kernels)
    for image, kernel in zip(blurred, kernels, strict=True):
        top, left = (15 - size // 2 for size in kernel.shape)
        assert torch.allclose(image[1, top : top + kernel.shape[0], left : left + kernel.shape[1]], kernel, atol=1e-6)
    assert torch.allclose(blurred.sum((2, 3)), torch.ones(4, 3), atol=1e-5)


def test_each_recording_loses_its_own_hum_and_keeps_the_rest(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "picture.png"
    before, after, error = load("filtered_signals").main(path)
    assert all(abs(old - 1) < 0.02 and new < 0.02 for old, new in zip(before, after, strict=True))
    assert error < 0.08
    assert f"picture: {path}" in capsys.readouterr().out
    assert np.asarray(Image.open(path)).std() > 20


def test_the_multi_band_model_keeps_its_accuracy_on_fewer_channels(capsys):
    accuracies = load("multi_band").main()
    assert accuracies[13] > 0.85
    assert accuracies[4] > 0.7
    assert "13 of 13 channels: accuracy" in capsys.readouterr().out


def test_every_example_is_run_here_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert len(names) >= 5
    tests, index = Path(__file__).read_text(), (EXAMPLES.parent / "docs" / "index.md").read_text()
    for name in names:
        assert f'load("{name}")' in tests
        assert f"../examples/{name}.py" in index


def test_the_notebook_leads_from_a_training_to_any_channels(stripes, tmp_path, monkeypatch, capsys):
    """Its cells as they stand, but for a small set and a single epoch."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "any_channels.ipynb").read_text(encoding="utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    small = f'"--epochs", "1", "--batch-size", "24", "--workers", "1", "--no-tensorboard", "--data", {str(stripes)!r}]'
    assert code.count('"--epochs", "6"]') == 1
    exec(compile(code.replace('"--epochs", "6"]', small), "any_channels.ipynb", "exec"), found := {})
    try:
        bars = found["axis"].containers
        assert [each.get_label() for each in bars] == ["simple_cnn", "pool_attention_cnn"]
        tested = found["results"]["models"]["simple_cnn"]["test"]
        assert [bar.get_height() for bar in bars[0]] == [
            pytest.approx(100 * row["accuracy"]) for row in tested.values()
        ]
        assert list(tested) == [label.get_text() for label in found["axis"].get_xticklabels()]
    finally:
        pyplot.close("all")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-3:]] == ["RGB", "RG", "R"]
