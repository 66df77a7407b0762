import pytest
import torch
from torch import nn

from polychrome import models
from polychrome.engine.errors import UserError
from polychrome.engine.training import checkpoint, transfer
from tests.grids import grid


def made(name="attention_cnn", num_classes=50, seed=0):
    torch.manual_seed(seed)
    return models.create(name, num_classes=num_classes)


@pytest.mark.parametrize("name", models.names())
def test_the_head_is_the_layer_that_makes_the_logits(name):
    with torch.device("meta"):
        head = transfer.head_of(models.create(name, num_classes=37, image_size=64))[1]
    assert getattr(head, "out_features", getattr(head, "out_channels", None)) == 37


def test_weights_are_loaded_but_for_a_head_of_another_size():
    source, target = made(num_classes=50), made(num_classes=5, seed=1)
    fresh = {key: value.clone() for key, value in target.state_dict().items()}
    transfer.load(target, source.state_dict(), "x")
    head = transfer.head_of(target)[0]
    for key, value in target.state_dict().items():
        wanted = fresh[key] if key.startswith(head + ".") else source.state_dict()[key]
        assert torch.equal(value, wanted), key


@grid(
    name=("attention_cnn", "simple_cnn", "resnet18", "prism4_small"),
    change={"missing": lambda value: None, "shorter": lambda value: value[:3], "whole": lambda value: value},
    part=("weight", "bias"),
)
def test_a_head_is_loaded_whole_or_not_at_all_and_that_is_said(name, part, change):
    weights, target = made(name).state_dict(), made(name, seed=1)
    head = transfer.head_of(target)[0]
    key, fresh = f"{head}.{part}", {name: value.clone() for name, value in target.state_dict().items()}
    value = weights.pop(key)
    if (changed := change(value)) is not None:
        weights[key] = changed
    said, own = transfer.load(target, weights, "x"), target.state_dict()
    whole = changed is value
    wanted = weights if whole else {each: value for each, value in fresh.items() if each.startswith(f"{head}.")}
    assert all(torch.equal(own[each], value) for each, value in wanted.items())
    others = {each: value for each, value in weights.items() if not each.startswith(f"{head}.")}
    assert all(torch.equal(own[each], value) for each, value in others.items())
    wrong = "missing" if changed is None else f"{list(changed.shape)} for {list(value.shape)}"
    more = "" if whole else f"; the last layer, {head}, starts fresh, as its {part} is {wrong}"
    assert said == f"{len(weights if whole else others)} tensors of x{more}"


def test_a_head_of_the_same_size_is_loaded_too():
    source, target = made(), made(seed=1)
    transfer.load(target, source.state_dict(), "x")
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_weights_of_another_architecture_are_refused_with_what_did_not_fit():
    with pytest.raises(UserError) as caught:
        transfer.load(made("simple_cnn"), made("attention_cnn").state_dict(), "--weights x.pt")
    message = str(caught.value)
    assert message.startswith("--weights x.pt: weights of another architecture: ")
    assert " is missing" in message
    assert message.endswith(" more")
    wide = made().state_dict()
    key = next(key for key in wide if key.endswith("weight") and wide[key].ndim == 4)
    wide[key] = torch.zeros(7, 7, 7, 7)
    with pytest.raises(UserError, match=r"is \[7, 7, 7, 7\] for"):
        transfer.load(made(), wide, "x")


def test_batch_counts_may_be_missing():
    weights = {key: value for key, value in made().state_dict().items() if not key.endswith("num_batches_tracked")}
    transfer.load(made(seed=1), weights, "x")


def test_files_of_every_form_are_read(tmp_path):
    state = made().state_dict()
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"state_dict": state}, tmp_path / "wrapped.pth")
    checkpoint.save(tmp_path / "ours.pt", {"name": "attention_cnn", "model": state})
    for name in ("plain.pth", "wrapped.pth", "ours.pt"):
        assert transfer.read(tmp_path / name)[0].keys() == state.keys()


def test_files_that_are_no_weights_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({}, tmp_path / "empty.pt")
    torch.save({"a": nn.Linear(1, 1)}, tmp_path / "code.pt")
    for name, message in (
        ("gone.pt", "cannot be read: No such file"),
        ("text.pt", "is not a file of weights"),
        ("list.pt", "holds no state dict"),
        ("empty.pt", "holds no weights"),
        ("code.pt", "is not a file of weights"),
    ):
        with pytest.raises(UserError, match=message):
            transfer.read(tmp_path / name)


def test_without_a_network_the_message_says_both_ways_out(monkeypatch):
    from urllib.error import URLError

    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"no route to host.*try again with a network, or give --weights FILE"):
        transfer.of_torchvision("resnet50")
    assert transfer.of_torchvision("attention_cnn") is None
