import os

import pytest
import torch
from torch import nn

from polychrome.engine.errors import UserError
from polychrome.engine.training import checkpoint


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "models" / "best.pt"
    checkpoint.save(path, {"epoch": 3, "model": nn.Linear(4, 2).state_dict()})
    return path


def test_a_checkpoint_comes_back_and_leaves_no_partial_file(saved):
    content = checkpoint.load(saved)
    assert content["epoch"] == 3
    assert content["model"]["weight"].shape == (2, 4)
    assert os.listdir(saved.parent) == ["best.pt"]


def test_a_failed_write_keeps_the_former_checkpoint(saved):
    with pytest.raises((AttributeError, TypeError)):
        checkpoint.save(saved, {"model": {}, "generator": (number for number in range(3))})
    assert checkpoint.load(saved)["epoch"] == 3
    assert os.listdir(saved.parent) == ["best.pt"]


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_a_truncated_checkpoint_is_named(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"best\.pt is damaged or is not a checkpoint"):
        checkpoint.load(saved)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"model": Attack()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt is .* not a checkpoint \(it holds more than plain data\)"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("head", [b"\xff\xd8\xff\xe0", b"<!do", b"\x08\x09\x12\x07"])
def test_a_file_of_another_kind_is_named_by_how_it_begins_and_no_advice_is_given(tmp_path, head):
    file = tmp_path / "photo.jpg"
    file.write_bytes(head * 100)
    with pytest.raises(UserError) as caught:
        checkpoint.load(file)
    assert str(caught.value) == f"{file} is damaged or is not a checkpoint (it begins with {head!r})"


def test_a_format_is_written_and_a_later_one_refused(saved):
    assert checkpoint.load(saved)["format"] == checkpoint.FORMAT
    content = torch.load(saved)
    del content["format"]
    torch.save(content, saved)
    assert checkpoint.load(saved)["format"] == 1
    for number in (checkpoint.FORMAT + 1, "new"):
        torch.save(content | {"format": number}, saved)
        with pytest.raises(UserError, match=rf"format {number}, this version reads up to {checkpoint.FORMAT}: update"):
            checkpoint.load(saved)


def test_a_missing_checkpoint_and_other_content_are_named(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="has no 'model' entry of weights"):
        checkpoint.load(tmp_path / "list.pt")


def test_weights_of_another_model_are_refused_and_change_nothing(saved):
    model = nn.Sequential(nn.Linear(4, 2))
    before = model[0].weight.clone()
    with pytest.raises(UserError, match="another model: 2 weights missing, 2 unknown, 0 of another shape"):
        checkpoint.restore(model, checkpoint.load(saved), saved)
    with pytest.raises(UserError, match=r"0 weights missing, 0 unknown, 1 of another shape \(first: weight\)"):
        checkpoint.restore(nn.Linear(5, 2), checkpoint.load(saved), saved)
    assert model[0].weight.equal(before)
