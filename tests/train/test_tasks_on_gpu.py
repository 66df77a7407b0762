"""The two tasks on a CUDA device, with the settings that are the default there: `pytest -m gpu`."""

import json

import pytest

from polychrome.train.run import main


@pytest.mark.gpu
@pytest.mark.parametrize(("task", "learns"), [("task1", "simple_cnn"), ("task2", "attention_cnn")])
def test_a_task_learns_on_the_gpu(stripes, tmp_path, task, learns):
    sizes = ["--image-size", "32", "--batch-size", "24", "--epochs", "8"]
    assert (
        main([task, "--data", str(stripes), "--out", str(tmp_path), "--name", "gpu", "--device", "cuda", *sizes]) == 0
    )
    config = (tmp_path / task / "gpu/config.toml").read_text()
    assert 'precision = "bf16"' in config
    assert "compile = true" in config
    entries = json.loads((tmp_path / task / "gpu/results.json").read_text())["models"]
    assert entries[learns]["test"]["RGB"]["accuracy"] > 0.6
    assert all(entry["peak_memory_mb"] > 1 for entry in entries.values())
