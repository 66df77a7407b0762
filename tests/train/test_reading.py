"""A trained network sees a file as its training did: `predict` says of it what `evaluate` does, or refuses it."""

import io
import shutil
import tarfile
import warnings
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import polychrome
from polychrome.engine.data.conventions import Conventions
from polychrome.engine.data.files import stacks
from polychrome.engine.data.opening import Wanted, open_set
from polychrome.engine.data.sets import listing
from polychrome.engine.errors import UserError
from polychrome.engine.evaluation import evaluate
from polychrome.engine.training import checkpoint
from polychrome.train import networks
from polychrome.train.data import make_loader, summary
from polychrome.train.run import main
from polychrome.train.settings.config import Settings
from tests.engine.data import measured
from tests.engine.data.test_sensors import npy, write
from tests.refusals import refusal

SETTINGS = Settings(image_size=8, batch_size=4, workers=1, precision="fp32", eval_crop=1.0)
RED, TURNED = ("red", "green", "nir"), ("nir", "green", "red")


def drawn(channels, seed, dtype=np.uint16, size=(12, 10)):
    """Return values [height, width, channels] of which each channel has a level and a place of its own."""
    rng = np.random.default_rng([seed, channels])
    values = rng.random((*size, channels)) * 60 + 40 * np.arange(channels) % 150 + 20 * rng.random(channels)
    return values.astype(dtype) if np.dtype(dtype).kind != "f" else (values / 100).astype(dtype)


def png(image, **options):
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def photos():
    """Return photos of every kind that Pillow and we may understand differently."""
    exif = Image.Exif()
    exif[0x112] = 6
    colours = [Image.fromarray(drawn(3, seed, np.uint8)) for seed in range(3)]
    with_alpha = np.dstack([drawn(3, 3, np.uint8), np.arange(120, dtype=np.uint8).reshape(12, 10)])
    opaque = np.dstack([drawn(3, 4, np.uint8), np.full((12, 10), 255, np.uint8)])
    return {
        "0.png": png(colours[0]),
        "turned.png": png(colours[1], exif=exif),
        "palette.png": png(colours[2].quantize(9)),
        "alpha.png": png(Image.fromarray(with_alpha)),
        "opaque.png": png(Image.fromarray(opaque)),
    }


def grays():
    exif = Image.Exif()
    exif[0x112] = 3
    plain = [Image.fromarray(drawn(1, seed, np.uint8)[..., 0]) for seed in range(3)]
    return {"0.png": png(plain[0]), "turned.png": png(plain[1], exif=exif), "bits.png": png(plain[2].convert("1"))}


def tiffs(*names, dtype=np.uint16, **options):
    """Return a TIFF for each choice of names."""
    return {f"{i}.tif": measured.tiff(drawn(len(own), i, dtype), own, **options) for i, own in enumerate(names)}


def rgb_tiffs(count=3):
    return {f"{i}.tif": measured.tiff(drawn(3, i), photometric="rgb") for i in range(count)}


def arrays(channels=3, count=3, axes=(0, 1, 2), **options):
    return {f"{i}.npy": npy(drawn(channels, i, **options).transpose(axes)) for i in range(count)}


def strips(counts=(3, 3, 3)):
    wide = [np.concatenate(list(np.moveaxis(drawn(count, i, np.uint8), -1, 0)), 1) for i, count in enumerate(counts)]
    return {f"{i}.png": png(Image.fromarray(each)) for i, each in enumerate(wide)}


def apart():
    every = {i: drawn(3, i, np.uint8) for i in range(3)}
    return {f"{i}_w{k}.png": png(Image.fromarray(x[..., k])) for i, x in every.items() for k in range(3)}


def missing(kind):
    values = [drawn(3, i, np.float32) for i in range(3)]
    for i, each in enumerate(values):
        each[i : i + 3, 2:5, 1] = np.nan if kind == "npy" else -9
        each[..., 2] = each[..., 2] if i else np.nan if kind == "npy" else -9  # the first lacks a channel
    if kind == "npy":
        return {f"{i}.npy": npy(each) for i, each in enumerate(values)}
    return {f"{i}.tif": measured.tiff(each, RED, nodata=-9) for i, each in enumerate(values)}


def txt(*names):
    return {"channels.txt": "".join(f"{name}\n" for name in names).encode()}


def csv(*lines):
    return {"channels.csv": "".join(f"{line}\n" for line in lines).encode()}


def days(i):
    return tuple(f"{name} of day {i}" for name in RED)


def opaque():
    return {name: content for name, content in photos().items() if name != "alpha.png"}


def two(kind):
    return {"0.png": photos()["0.png"], f"{kind}.png": photos()[f"{kind}.png"]}


# By arrangement: its files, and how many of these, and of copies without a description, `predict` takes.
CASES = {
    "photos": (photos(), 5, 5),
    "gray photos": (grays(), 3, 3),
    "measured photos": (opaque() | csv(".,R+G+B"), 4, 4),
    "measured photos in another order": (opaque() | csv(".,B+G+R"), 4, 4),
    "photos measured otherwise": (two("palette") | csv("0.png,x+y+z", "palette.png,z+y+x"), 2, 0),
    "photos with transparency": (two("alpha") | csv("0.png,x+y+z", "alpha.png,x+y+z+w"), 2, 2),
    "measured gray": (grays() | csv(".,gray"), 3, 3),
    "names in order": (tiffs(RED, RED, RED), 3, 3),
    "names in other orders": (tiffs(RED, TURNED, ("green", "red", "nir")), 3, 3),
    "names of sensors": (tiffs(RED, ("nir", "red"), ("green",)), 3, 3),
    "channels.txt against names": (rgb_tiffs() | txt("B", "G", "R"), 3, 3),
    "channels.txt against several names": (tiffs(RED, TURNED, RED) | txt("green", "nir", "red"), 3, 3),
    "channels.txt against days": (tiffs(*map(days, range(12))) | txt(*RED), 12, 12),
    "channels.csv against names": (rgb_tiffs(2) | csv("0.tif,B+G+R", "1.tif,R+G+B"), 2, 0),
    "channels.csv against some names": (rgb_tiffs(2) | csv("0.tif,B+G+R"), 2, 0),
    "channels.csv against days": (tiffs(days(0), days(1)) | csv("0.tif,x+y+z", "1.tif,z+y+x"), 2, 2),
    "arrays": (arrays(), 3, 3),
    "arrays, channels first": (arrays(axes=(2, 0, 1)), 3, 3),
    "arrays of one channel": ({f"{i}.npy": npy(drawn(1, i)[..., 0]) for i in range(3)}, 3, 3),
    "cubes": (arrays(12, size=(12, 12)), 3, 3),
    "as wide as there are channels": (arrays(12, size=(9, 12)), 3, 3),
    "channels.txt decides the axis": (arrays(12, size=(12, 3), axes=(2, 0, 1)) | txt(*map(str, range(12))), 3, 3),
    "bytes": (arrays(dtype=np.uint8), 3, 3),
    "signed": (arrays(dtype=np.int16), 3, 3),
    "fractions": (arrays(dtype=np.float32), 3, 3),
    "doubles": (arrays(dtype=np.float64), 3, 3),
    "channels.txt": (arrays() | txt(*RED), 3, 3),
    "channels.csv": (arrays() | csv(".,red+green+nir"), 3, 3),
    "channels.csv for each": (arrays() | csv(".,red+green+nir", "1.npy,nir+green+red"), 3, 0),
    "sensors": (arrays(3, 1) | {"1.npy": npy(drawn(2, 1))} | csv("0.npy,red+green+nir", "1.npy,nir+red"), 2, 1),
    "side by side": (strips() | csv(".,dna|er|agp"), 3, 0),
    "side by side of each": (strips((3, 2, 3)) | csv("0.png,dna|er|agp", "1.png,dna|agp", "2.png,agp|er|dna"), 3, 0),
    "a file for each": (apart(), 3, 3),
    "NaN": (missing("npy"), 3, 3),
    "nodata": (missing("tif"), 3, 3),
    "PNG of 16 bits": ({f"{i}.png": measured.image_kinds.png16(drawn(3, i), 2) for i in range(3)}, 3, 3),
    "pages": ({f"{i}.tif": measured.pages(drawn(5, i)) for i in range(3)}, 3, 3),
    "as many pages as pixels": ({f"{i}.tif": measured.pages(drawn(12, i, size=(12, 12))) for i in range(3)}, 3, 3),
}


def folder(place, files):
    """Write files, and what describes them, as a data folder."""
    described = {name: content for name, content in files.items() if name.startswith("channels.")}
    own = {name: content for name, content in files.items() if name not in described}
    write(place, own, None, {name: int(Path(name).name[0] == "0") for name in own})
    for name, content in described.items():
        (place / name).write_bytes(content)
    return place


def opened_set(root, pattern=None, of=None):
    return open_set(listing.read(root, channel_files=pattern), Wanted("torch", torch.device("cpu"), 0, trained=of))


def trained(root, at, pattern=None, entry="simple_cnn"):
    """Return the set of a folder as a training opens it, and a network for it, untrained, as a run keeps it."""
    opened = opened_set(root, pattern)
    names = opened.images.channels.names
    torch.manual_seed(0)
    network = networks.create(entry, SETTINGS, 2, len(names)).eval()
    results = {"task": "task1", "data": summary(opened), "models": {}, "combinations": {}}
    copy = {"config": replace(SETTINGS, channel_files=pattern).to_toml(), "results": results}
    checkpoint.save(at, {"name": entry, "model": network.state_dict(), "run": copy})
    return opened, network


def evaluated(opened, network):
    """Return what `evaluate` finds in each image: its class and the probability of that."""
    everything = {"all": opened.images.channels.everything}
    with make_loader(opened, "test", SETTINGS) as loader:
        found = evaluate(network, loader, everything, 2, nullcontext(), protocol="zero-pad")
    guesses = zip(found.predictions["all"].tolist(), found.probabilities.tolist(), strict=True)
    return dict(zip(opened.images.splits["test"].paths, guesses, strict=True))


def agree(found, wanted):
    return found.name == str(wanted[0]) and found.probability == pytest.approx(wanted[1], abs=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_predict_says_of_each_file_what_evaluate_does_or_refuses_it(tmp_path, case):
    files, there, elsewhere = CASES[case]
    root = folder(tmp_path / "data", files)
    own = [name for name in files if not name.startswith("channels.")]
    pattern = "_w([0-9])" if case == "a file for each" else None
    opened, network = trained(root, tmp_path / "best.pt", pattern)
    model = polychrome.load(tmp_path / "best.pt")
    wanted = evaluated(opened_set(root, pattern, model._source.data), network)
    assert wanted == evaluated(opened, network)
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in own:
        shutil.copy(root / name, copies)
    for place, count in ((root, there), (copies, elsewhere)):
        found = model.predict(place)
        taken = [each for each in found if each.reason is None]
        assert (len(found), len(taken)) == (len(wanted), count), [each.reason for each in found]
        assert all(agree(each, wanted[Path(each.path).name]) for each in taken)
        assert all("\n" not in each.reason for each in found if each.reason)
        for each in taken[:1]:
            files_of = opened.images.files(Path(each.path).name)
            assert agree(*model.predict([place / file for file in files_of]), wanted[Path(each.path).name])
    read, count = stacks.opener(opened.images), len(model.channels)
    for path, each in wanted.items():
        if len(opened.images.present(path)) == count:
            assert agree(model.predict(read(path)), each)
        for given in (root / path, copies / path, io.BytesIO(files[path])):
            with suppress(UserError, Image.UnidentifiedImageError), Image.open(given) as image:
                assert agree(model.predict(image), each), given


def test_these_networks_tell_the_orders_of_channels_apart(tmp_path):
    opened, network = trained(write(tmp_path / "data", arrays()), tmp_path / "best.pt")
    model = polychrome.load(tmp_path / "best.pt")
    for path, each in evaluated(opened, network).items():
        values = stacks.opener(opened.images)(path)
        assert not agree(model.predict(values[..., ::-1].copy()), each)
        assert not agree(model.predict(values[::-1].copy()), each)


def loaded(tmp_path, files, pattern=None, entry="simple_cnn", **options):
    """Return a network for a data folder of these files."""
    trained(folder(tmp_path / "data", files), tmp_path / "best.pt", pattern, entry)
    return polychrome.load(tmp_path / "best.pt", **options)


def reason(model, image, channels=None):
    return refusal(model.predict, image, channels)


def test_the_nearest_description_above_a_file_holds_and_one_within_the_training_folder_is_refused(tmp_path):
    model = loaded(tmp_path, arrays() | txt(*RED))
    values, wanted = drawn(3, 0), model.predict(tmp_path / "data/0.npy").probabilities
    turned = npy(values[..., ::-1].copy())
    new = tmp_path / "new/a/b"
    new.mkdir(parents=True)
    (new / "x.npy").write_bytes(turned)
    (tmp_path / "new/channels.csv").write_bytes(csv("a/*,nir+green+red")["channels.csv"])
    assert model.predict(new / "x.npy").probabilities == pytest.approx(wanted, abs=1e-6)
    (tmp_path / "new/a/channels.txt").write_bytes(txt(*RED)["channels.txt"])
    assert model.predict(new / "x.npy").probabilities != pytest.approx(wanted, abs=1e-3)
    (tmp_path / "new/a/channels.txt").write_text("red\nred\n")
    assert "channels.txt:2: channel 'red' is named twice" in reason(model, new / "x.npy")
    inside = tmp_path / "data/later"
    inside.mkdir()
    (inside / "x.npy").write_bytes(turned)
    (inside / "channels.csv").write_bytes(csv(".,nir+green+red")["channels.csv"])
    told = f"{inside}/channels.csv was not read in training: only a file in {tmp_path}/data itself is"
    assert reason(model, inside / "x.npy") == f"{inside}/x.npy: {told}"


def test_a_link_in_the_data_folder_is_described_where_it_lies(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name, content in arrays().items():
        (outside / name).write_bytes(content)
    model = loaded(tmp_path, arrays() | csv("*.npy,red+green+nir", "linked/*,nir+green+red"))
    (tmp_path / "data/linked").symlink_to(outside)
    plain, linked = (model.predict(tmp_path / "data" / each).probabilities for each in ("0.npy", "linked/0.npy"))
    assert plain != pytest.approx(linked, abs=1e-3)
    values = drawn(3, 0).astype(np.float32)
    assert linked == pytest.approx(model.predict(values[..., ::-1].copy()).probabilities, abs=1e-6)


def test_what_a_stranger_calls_otherwise_than_the_training_is_taken_or_refused_in_a_line(tmp_path):
    model = loaded(tmp_path, rgb_tiffs(2) | csv("0.tif,B+G+R", "1.tif,R+G+B"))
    file = shutil.copy(tmp_path / "data/0.tif", tmp_path)
    told = (
        "has channels R, G, B, which were B, G, R in some images of the training and R, G, B in others: name them in "
    )
    assert reason(model, file).endswith(f"0.tif: {told}channels.csv")
    (tmp_path / "y.npy").write_bytes(npy(drawn(3, 0)))
    assert model.predict(tmp_path / "y.npy").reason is None
    model = loaded(tmp_path / "arrays", arrays() | csv(".,red+green+nir", "1.npy,nir+green+red"))
    told = "has 3 channels without names, which were red, green, nir in some images of the training and nir, green, red"
    assert reason(model, tmp_path / "y.npy").endswith(f"{told} in others: name them in channels.csv, or by --channels")
    assert model.predict(tmp_path / "y.npy", "nir+green+red").reason is None


def test_channels_in_parts_or_files_of_one_channel_are_refused_where_nothing_describes_them(tmp_path):
    model = loaded(tmp_path, strips() | csv(".,dna|er|agp"))
    file = Path(shutil.copy(tmp_path / "data/0.png", tmp_path))
    for channels in (None, "dna"):
        told = "has 1 channel, and the channels of the training were dna, er, agp side by side: "
        assert f"0.png: {told}channels.csv in its folder says so" in reason(model, file, channels)
        assert reason(model, np.asarray(Image.open(file)), channels) == f"ndarray {told}wanted all 3 channels"
    (tmp_path / "channels.csv").write_text(".,dna|er|agp\n")  # the line that was told
    found, wanted = (model.predict(each).probabilities for each in (file, tmp_path / "data/0.png"))
    assert found == pytest.approx(wanted, abs=1e-6)
    (tmp_path / "channels.csv").unlink()
    model = loaded(tmp_path / "apart", apart(), "_w([0-9])")
    told = (
        "has 1 channel, and the channels of the training were a file for each (--channel-files): give the file of each"
    )
    other = str(shutil.copy(tmp_path / "apart/data/0_w0.png", tmp_path / "apart/other.png"))
    for channels in (None, "0"):
        assert f"other.png: {told}" in reason(model, other, channels)


def named(folder, *names):
    """Write images of one channel under these names, each with values of its own, and return their paths."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn(1, number, np.uint8)[..., 0]).save(folder / name)
    return [folder / name for name in names]


APART = ["a_w0.png", "a_w1.png", "a_w2.png"]


@pytest.mark.parametrize("entry", ["simple_cnn", "prism4_small"])
def test_the_files_of_an_image_are_one_prediction_wherever_they_lie_and_in_any_order(tmp_path, entry):
    model = loaded(tmp_path, apart(), "_w([0-9])", entry)
    given = named(tmp_path / "in_w7/new", *APART, "b_w0.png", "b_w2.png", "b_w1.png")
    whole = np.dstack([np.asarray(Image.open(file)) for file in given[:3]])
    found = model.predict(given[::-1])
    assert [Path(each.path).name for each in found] == ["b_w0.png", "a_w0.png"]
    assert found[1].probabilities == pytest.approx(model.predict(whole).probabilities, abs=1e-6)
    assert model.predict(given[0].parent)[0].probabilities == pytest.approx(found[1].probabilities, abs=1e-6)
    x = model.preprocess([*given, whole])
    assert x.shape[0] == 3
    assert torch.equal(x[0], x[2])
    mixed = model.predict([given[0], given[2], given[1], whole])
    assert [each.name for each in mixed] == [found[1].name] * 2
    done = []
    model.predict_files(given, done=done.append)
    assert sum(done) == 6
    other = model.predict([given[0], given[2]], "0+2" if "+" in model.combination else "02")
    assert len(other) == 1


def test_an_image_that_lacks_a_file_is_refused_or_shown_as_it_is_with_a_line(tmp_path):
    given = named(tmp_path / "new", *APART)[:2]
    told = r"a_w0.png: lacks 2 of channels 012: give the files of all, such as that of 2, or name others by --channels"
    fixed = loaded(tmp_path / "fixed", apart(), "_w([0-9])")
    with pytest.raises(UserError, match=told):
        fixed.preprocess(given)
    (found,) = fixed.predict(given)
    assert f"a_w0.png: {found.reason}".endswith(told)
    flexible = loaded(tmp_path / "any", apart(), "_w([0-9])", "prism4_small")
    with pytest.warns(UserWarning, match="a_w0.png lacks 2: the model is shown the channels that it has"):
        (found,) = flexible.predict(given)
    assert found.probabilities == pytest.approx(flexible.predict(given, "01")[0].probabilities, abs=1e-6)
    sensors = {name: content for name, content in apart().items() if name != "0_w2.png"}
    varied = loaded(tmp_path / "sensors", sensors, "_w([0-9])", "prism4_small")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert varied.predict(given)[0].probabilities  # as an image of the training
    with pytest.warns(UserWarning, match="a_w0.png lacks 1, 2: the model is shown the channels that it has"):
        varied.predict(given[:1])


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["in_w1/a_w1.png", "in_w2/a_w1.png"], [False, True]),  # not channels 1 and 2 of one image
        (["a_w1.png", "a_w1.tif"], [True, True]),
        (["a_w1.png", "b/a.png"], [False, True]),
    ],
)
def test_files_whose_paths_do_not_tell_image_and_channel_are_refused(tmp_path, names, refused):
    model = loaded(tmp_path, apart(), "_w([0-9])", "prism4_small")
    found = model.predict(named(tmp_path / "new", *names))
    told = "has 1 channel, and the channels of the training were a file for each"
    assert [told in (each.reason or "") for each in found] == refused
    assert [each.name is None for each in found] == refused


@pytest.mark.parametrize("trained_on", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("given", ["uint8", "int16", "uint16", "float32", "float64"])
def test_values_of_another_kind_than_the_training_had_are_refused(tmp_path, trained_on, given):
    kinds = {"uint8": "uint8", "int16": "whole numbers", "uint16": "whole numbers"}
    before, now = (kinds.get(each, "fractions") for each in (trained_on, given))
    model = loaded(tmp_path, arrays(dtype=np.dtype(trained_on)))
    assert model._source.conventions.scale == before
    other = folder(tmp_path / "other", arrays(dtype=np.dtype(given)))
    images = opened_set(other, of=model._source.data).images
    (tmp_path / "x.npy").write_bytes(arrays(dtype=np.dtype(given))["0.npy"])
    if before == now:
        assert model.predict(tmp_path / "x.npy").reason is None
        model._source.check_fits(images)
        return
    told = f"has values of type {given}, the run was trained on {before}: wanted one type"
    assert reason(model, tmp_path / "x.npy").endswith(f"x.npy: {told}")
    with pytest.raises(UserError, match="was trained on"):
        model._source.check_fits(images)


def test_arrays_of_another_kind_are_told_what_to_do(tmp_path):
    whole = loaded(tmp_path / "a", arrays())
    values = drawn(3, 0)
    wanted = whole.predict(tmp_path / "a/data/0.npy").probabilities
    change = "the network was trained on whole numbers: give them as {}, without scaling them"
    told = f"ndarray has values of type uint16, {change.format('.astype(np.float32)')}"
    assert reason(whole, values) == told
    tensor = torch.from_numpy(values.astype(np.int32)).permute(2, 0, 1)
    assert reason(whole, tensor) == f"Tensor has values of type int32, {change.format('.float()')}"
    assert whole.predict(values.astype(np.float32)).probabilities == pytest.approx(wanted, abs=1e-6)
    assert whole.predict(tensor.float()).probabilities == pytest.approx(wanted, abs=1e-6)
    told = "ndarray has fractions, the network was trained on whole numbers: give them without scaling"
    assert reason(whole, (values / 4095).astype(np.float32)) == told
    told = "ndarray has values of type uint8, the network was trained on whole numbers"
    assert reason(whole, values.astype(np.uint8)) == told
    fractions = loaded(tmp_path / "b", arrays(dtype=np.float32))
    assert reason(fractions, values) == "ndarray has values of type uint16, the network was trained on fractions"


def test_values_far_from_those_of_the_training_are_warned_of(tmp_path, capsys):
    model = loaded(tmp_path, arrays())
    far = drawn(3, 0).astype(np.int32) * [1, 1, 100]
    (tmp_path / "far.npy").write_bytes(npy(far.astype(np.int32)))
    told = rf"channel 2 has a mean of {far[..., 2].mean():,.6g}, the training had 1.* ± .*: other units[?]"
    with pytest.warns(UserWarning, match=f"far.npy: {told}"):
        model.predict(tmp_path / "far.npy")
    with pytest.warns(UserWarning, match=f"ndarray: {told}"):
        model.predict(far.astype(np.float32))
    assert main(["predict", str(tmp_path / "best.pt"), str(tmp_path / "far.npy")]) == 0
    assert "far.npy: channel 2 has a mean of" in capsys.readouterr().err


def test_notes_on_files_name_them_as_they_lie_below_the_folder_that_all_are_in(tmp_path, monkeypatch, capsys):
    loaded(tmp_path, photos())
    for folder in ("kinds/cat", "kinds/dog"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"alpha_{folder[6:]}.png").write_bytes(photos()["alpha.png"])
    monkeypatch.chdir(tmp_path)
    for given, path in (("kinds", "cat/alpha_cat.png"), ("kinds/dog", "alpha_dog.png")):
        assert main(["predict", "best.pt", given]) == 0
        assert f"with transparency, which is dropped, such as {path}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "told"), [(1, False), (1 / 100, True)])
def test_an_array_is_warned_of_as_its_file_is(tmp_path, factor, told):
    """By its spread too: the values are around 0, where the mean tells nothing."""
    every = [measured.drawn(3, np.float32, seed) for seed in range(4)]
    model = loaded(tmp_path, {f"{i}.npy": npy(each) for i, each in enumerate(every)})
    values = every[0] * np.float32(factor)
    (tmp_path / "x.npy").write_bytes(npy(values))
    for given in (tmp_path / "x.npy", values, torch.from_numpy(values).permute(2, 0, 1)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.predict(given)
        assert ["other units?" in str(each.message) for each in caught] == [True] * told


def test_where_both_axes_may_have_the_channels_a_file_is_refused(tmp_path):
    model = loaded(tmp_path, arrays(12, size=(12, 12)))
    first = drawn(3, 0, size=(12, 12))
    (tmp_path / "x.npy").write_bytes(npy(first))
    told = "x.npy: may have 12 channels or 3 by its shape: channels.csv in its folder can name them"
    assert reason(model, tmp_path / "x.npy", "0+1+2").endswith(told)
    (tmp_path / "channels.csv").write_text("x.npy,0+1+2\n")
    found = model.predict(tmp_path / "x.npy", "0+1+2").probabilities
    assert found == pytest.approx(model.predict(first.astype(np.float32), "0+1+2").probabilities, abs=1e-6)
    (tmp_path / "y").mkdir()
    (tmp_path / "channels.csv").unlink()
    (tmp_path / "y/x.npy").write_bytes(npy(drawn(3, 0, size=(9, 10))))  # one of the two alone
    assert model.predict(tmp_path / "y/x.npy", "0+1+2").reason is None


def test_a_sensor_by_its_number_is_a_combination_in_predict_and_load_too(tmp_path):
    names = [f"b{i}" for i in range(10)]
    files = {"0.npy": npy(drawn(7, 0)), "1.npy": npy(drawn(6, 1)), "2.npy": npy(drawn(7, 2))}
    model = loaded(tmp_path, files | csv(f".,{'+'.join(names[:7])}", f"1.npy,{'+'.join(names[4:])}"))
    own = "+".join(names[4:])
    for given in (tmp_path / "data/1.npy", drawn(6, 1).astype(np.float32)):
        wanted = model.predict(given, own).probabilities
        assert model.predict(given, "sensor 2").probabilities == wanted
        assert polychrome.load(tmp_path / "best.pt", channels="sensor 2").predict(given).probabilities == wanted
    with pytest.raises(UserError, match="channels 'sensor 3': the images have 2 choices of channels"):
        model.predict(tmp_path / "data/1.npy", "sensor 3")


@pytest.mark.parametrize("files", [grays() | csv(".,gray"), opaque() | csv(".,B+G+R")])
def test_pillow_images_of_measured_bytes_are_taken_as_their_file_is(tmp_path, files):
    model = loaded(tmp_path, files)
    for name in files.keys() - {"channels.csv"}:
        wanted = model.predict(tmp_path / "data" / name).probabilities
        for given in (tmp_path / "data" / name, io.BytesIO(files[name])):
            with Image.open(given) as image:
                assert model.predict(image).probabilities == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize("mode", ["F", "I;16"])
def test_pillow_images_that_do_not_say_what_their_file_does_are_refused(tmp_path, mode):
    gray = loaded(tmp_path / "a", grays() | csv(".,gray"))
    image = Image.fromarray(drawn(1, 0, np.float32 if mode == "F" else np.uint16)[..., 0])
    assert reason(gray, image) == f"Image: an image of mode {mode} is no photo of 8 bits"
    Image.fromarray(drawn(1, 0, np.uint8)[..., 0]).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        assert "Pillow does not tell all that a TIFF says of its channels: give its path" in reason(gray, image)
    whole = loaded(tmp_path / "b", {f"{i}.npy": npy(drawn(1, i)[..., 0]) for i in range(3)})
    assert reason(whole, image) == (
        "TiffImageFile: the network was trained on measured values: give the path of the file, or an array"
    )


def test_a_run_of_an_earlier_version_reads_files_as_before(tmp_path):
    loaded(tmp_path, rgb_tiffs() | txt("B", "G", "R"))
    content = checkpoint.load(tmp_path / "best.pt")
    del content["run"]["results"]["data"]["reading"]
    checkpoint.save(tmp_path / "old.pt", {key: value for key, value in content.items() if key != "format"})
    old, new = polychrome.load(tmp_path / "old.pt"), polychrome.load(tmp_path / "best.pt")
    assert old._source.conventions == Conventions()
    assert old.predict(tmp_path / "data") == new.predict(tmp_path / "data")
    assert old.predict(drawn(3, 0).astype(np.float32)) == new.predict(drawn(3, 0).astype(np.float32))


def test_images_in_a_tar_have_the_description_beside_it(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for split in ("train", "val", "test"):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for name, content in rgb_tiffs(4).items():
                for member, held in ((name, content), (f"{name[0]}.cls", str(int(name[0]) % 2).encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(held)
                    tar.addfile(info, io.BytesIO(held))
    (root / "channels.txt").write_bytes(txt("B", "G", "R")["channels.txt"])
    wanted = evaluated(*trained(root, tmp_path / "best.pt"))
    found = polychrome.load(tmp_path / "best.pt").predict(root / "test.tar/0.tif")
    assert agree(found, wanted["test.tar/0.tif"])
