"""Sets whose images have different channels: every value is in its channel, and what an image lacks is zero."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from polychrome.engine.channels.names import Channels
from polychrome.engine.data import loader
from polychrome.engine.data.conventions import Trained
from polychrome.engine.data.files import decode, stacks
from polychrome.engine.data.given import image_sets
from polychrome.engine.data.image_set import having
from polychrome.engine.data.opening import Wanted, open_set
from polychrome.engine.data.sets import listing, scan
from polychrome.engine.data.sets.sensors import union
from polychrome.engine.errors import UserError
from polychrome.kernels.augment import Recipe
from polychrome.train.commands.tools import show_channels
from tests.engine.data import measured
from tests.engine.data.image_kinds import npy
from tests.refusals import refusal

NAMES = ("dna", "er", "rna", "agp", "mito", "nir")
HOW = Wanted("torch", torch.device("cpu"), 1)


def png(values):
    stream = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(stream, "PNG")
    return stream.getvalue()


def pixels(names, seed, dtype=np.uint8, height=10, width=8):
    """Return values [height, width, names] that differ from channel to channel and from image to image."""
    offsets = [20 * NAMES.index(name) for name in names]
    drawn = np.random.default_rng(seed).integers(0, 100, (height, width, len(names)))
    return (drawn + offsets).astype(dtype)


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write(root, files, described=None, labels=None):
    """Write files and lists that have every file in each split, in two classes by turns, and maybe channels.csv."""
    put(root, files)
    rows = "".join(f"{name} {(labels or {}).get(name, number % 2)}\n" for number, name in enumerate(files))
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").write_text(rows)
    if described is not None:
        (root / "channels.csv").write_text(described)
    return root


def opened(root, channel_files=None, **options):
    return open_set(listing.read(root, channel_files=channel_files), HOW._replace(**options)).images


def fault(*arguments, **options):
    return refusal(opened, *arguments, **options)


def as_written(way, number, names, values):
    """Return the files of an image in one of the ways to store its channels, and its line of channels.csv."""
    if way == "a line for each file":
        return {f"{number}.npy": npy(values)}, f"{number}.npy,{'+'.join(names)}\n"
    if way == "side by side":
        return {
            f"{number}.png": png(np.concatenate(np.split(values, len(names), 2), 1))
        }, f"{number}.png,{'|'.join(names)}\n"
    if way == "names in the file":
        return {f"{number}.tif": measured.tiff(values, names)}, ""
    return {f"{number}_{name}.png": png(values[..., i : i + 1]) for i, name in enumerate(names)}, ""


@pytest.mark.parametrize(
    "way", ["a line for each file", "side by side", "names in the file", "a file for each channel"]
)
@pytest.mark.parametrize("seed", range(4))
def test_every_value_is_in_its_channel_however_it_is_stored(tmp_path, way, seed):
    rng = np.random.default_rng(seed)
    files, lines, written = {}, "", {}
    for number in range(7):
        names = [str(name) for name in rng.permutation(NAMES)[: rng.integers(2, len(NAMES) + 1)]]
        values = pixels(names, [seed, number])
        own, line = as_written(way, number, names, values)
        order = sorted(names) if way == "a file for each channel" else names
        written[next(path for path in own if way != "a file for each channel" or f"_{order[0]}." in path)] = (
            names,
            values,
        )
        files, lines = files | own, lines + line
    beside = {path: int(path[0]) % 2 for path in files}
    root = write(tmp_path, files, lines or None, beside)
    images = opened(root, "_([a-z]+)" if way == "a file for each channel" else None)
    union_ = images.channels.names
    assert sorted(union_) == sorted({name for names, _ in written.values() for name in names})
    read = stacks.opener(images)
    for path, (names, values) in written.items():
        found = read(path)
        assert (found.shape, found.dtype) == ((10, 8, len(union_)), np.uint8)
        for place, name in enumerate(union_):
            wanted = values[..., names.index(name)] if name in names else 0
            np.testing.assert_array_equal(found[..., place], np.broadcast_to(wanted, (10, 8)))
        assert images.present(path) == tuple(place for place, name in enumerate(union_) if name in names)
    for name, mean, std in zip(union_, images.channels.mean, images.channels.std, strict=True):
        every = np.stack([values[..., names.index(name)] for names, values in written.values() if name in names]) / 255
        assert (mean, std) == (pytest.approx(every.mean()), pytest.approx(every.std()))
    counts = union.counts(images)
    assert sum(row["train"] for row in counts) == len(written)
    assert {frozenset(row["channels"]) for row in counts} == {frozenset(names) for names, _ in written.values()}
    account = images.account
    assert account.used == len(files)
    assert account.used + account.rejected + sum(account.ignored.values()) == account.present


def test_the_last_line_that_names_a_file_its_folder_or_a_pattern_holds(tmp_path):
    lines = "File or folder,Channels\n.,a\nsub,b\nsub/2.npy,c\n*3.npy,d\nother\\4.npy,e\nsub/5.npy,f\nsub,g\n"
    paths = ["1.npy", "sub/1.npy", "sub/2.npy", "sub/3.npy", "3.npy", "other/4.npy", "sub/5.npy"]
    root = write(tmp_path, {path: npy(pixels(("dna",), i)) for i, path in enumerate(paths)}, lines)
    images = opened(root)
    found = {path: images.channels.names[images.present(path)[0]] for path in paths}
    assert found == dict(zip(paths, "agggdeg", strict=True))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "channels.csv has no line: wanted `file or folder,channels`"),
        ("file,channels\n", "channels.csv has no line"),
        (
            "a.npy,x,y\n",
            "channels.csv:1: wanted `file or folder,channels`, such as landsat,red+green+nir, got 'a.npy,x,y'",
        ),
        (".,x+\n", "channels.csv:1: a name is empty in 'x+'"),
        (".,x+x\n", "channels.csv:1: channel 'x' is named twice"),
        (".,all+y\n", "channels.csv:1: a channel cannot be named 'all'"),
        (".,sensor 1+y\n", "a channel cannot be named 'sensor 1'"),
        (".,x+y|z\n", "channels.csv:1: 'x+y|z' has both + and |: | is for channels side by side"),
        (".,x+y\nb.npy,x\n", "channels.csv:2: no file or folder 'b.npy' in "),
        (".,x+y+z\n", "channels.csv:1: names 3 channels, but a.npy has 2"),
        ('"a.npy,x\n', "channels.csv:1: unexpected end of data"),
    ],
)
def test_faults_in_channels_csv_name_file_and_line(tmp_path, lines, message):
    root = write(tmp_path, {"a.npy": npy(pixels(("dna", "er"), 0)), "c.npy": npy(pixels(("dna", "er"), 1))}, lines)
    assert message in fault(root)


def test_channels_that_nothing_names_are_asked_for(tmp_path):
    two, three = npy(pixels(NAMES[:2], 0)), npy(pixels(NAMES[:3], 1))
    some = fault(write(tmp_path / "a", {"a.npy": two, "b.npy": three}, "a.npy,x+y\n"))
    assert "b.npy has 3 channels without names, a.npy has x, y: channels.csv, with lines such as folder," in some
    gray = fault(write(tmp_path / "b", {"a.png": png(pixels(("dna",), 0)), "b.npy": two}, ".,x+y\n"))
    assert gray.endswith("a.png has 1; the names of channels that lie side by side are separated by |")
    both = write(tmp_path / "c", {"a.npy": two, "b.npy": two}, ".,x+y\n")
    (both / "channels.txt").write_text("x\ny\n")
    assert fault(both).endswith("has channels.csv and channels.txt: wanted one of the two")


def test_names_that_differ_from_image_to_image_are_no_sensors(tmp_path):
    files = {f"{i}.tif": measured.tiff(pixels(NAMES[:2], i), (f"red of day {i}", f"nir of day {i}")) for i in range(10)}
    message = fault(write(tmp_path, files))
    assert (
        "the names of channels differ from image to image: 0.tif has red of day 0, nir of day 0; 1.tif has" in message
    )
    assert message.endswith("channels.txt, with a line for each channel, names them for all")


def test_a_channel_without_any_value_in_an_image_is_absent_from_it(tmp_path):
    values = [measured.drawn(3, np.float32, seed) for seed in range(3)]
    values[0][..., 1] = np.nan
    values[0][0, 0, 0] = np.nan
    images = opened(write(tmp_path, {f"{i}.npy": npy(each) for i, each in enumerate(values)}))
    assert images.channels.sensors == ((0, 1, 2), (0, 2))
    assert [images.present(f"{i}.npy") for i in range(3)] == [(0, 2), (0, 1, 2), (0, 1, 2)]
    assert images.channels.mean[1] == pytest.approx(np.stack(values[1:])[..., 1].mean(), rel=1e-5)
    found = stacks.opener(images)("0.npy")
    assert (found[..., 1] == 0).all()
    assert found[0, 0, 0] == pytest.approx(images.channels.mean[0], rel=1e-6)
    assert "1 stack with missing values, which become the mean of their channel, such as 0.npy" in images.notes
    assert "1 stack with channels that have no value, which they are taken to lack, such as 0.npy" in images.notes


def test_the_lines_before_training_say_which_images_have_which_channels(tmp_path):
    files = {f"{i}.npy": npy(pixels(NAMES[: 3 - i % 2], i)) for i in range(6)}
    lines = "".join(f"{path},{'+'.join(NAMES[: 3 - i % 2])}\n" for i, path in enumerate(files))
    images = opened(write(tmp_path / "a", files, lines))
    assert list(union.notes(images)) == [
        "images have 2 different choices of the 3 channels:",
        "dna+er+rna: 3 train, 3 val, 3 test images",
        "dna+er: 3 train, 3 val, 3 test images",
    ]
    wide = npy(pixels(NAMES, 0)), npy(pixels(NAMES[1:], 1))
    lines = f"0.npy,{'+'.join(NAMES)}\n1.npy,{'+'.join(NAMES[1:])}\n2.npy,{'+'.join(NAMES)}\n"
    images = opened(write(tmp_path / "b", {"0.npy": wide[0], "1.npy": wide[1], "2.npy": wide[0]}, lines))
    assert union.notes(images)[1:] == (
        "sensor 1: 2 train, 2 val, 2 test images of 6 channels",
        "er+rna+agp+mito+nir: 1 train, 1 val, 1 test images",
    )


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        ({0: [2, 3], 1: [3, 2]}, None),
        ({0: [3, 3], 1: [3, 2]}, None),
        ({0: [2, 2], 1: [3, 3]}, "2 classes, such as '0', can be told by channels alone"),
        ({0: [3, 3], 1: [3, 3], 2: [2, 2]}, "class '2' can be told by channels alone"),
        ({0: [3, 3], 1: [3, 2], 2: [1, 1]}, "class '2' can be told by channels alone"),
        ({0: [3, 3], 1: [3, 3]}, None),
    ],
)
def test_classes_that_channels_alone_tell_are_named(tmp_path, capsys, choices, told):
    rows = [(label, count) for label, counts in choices.items() for count in counts]
    names = [NAMES[:count] for _, count in rows]
    files = {f"{i}.npy": npy(pixels(own, i)) for i, own in enumerate(names)}
    lines = "".join(f"{path},{'+'.join(own)}\n" for path, own in zip(files, names, strict=True))
    root = write(tmp_path, files, lines, {path: label for path, (label, _) in zip(files, rows, strict=True)})
    images = opened(root)
    found = [note for note in images.notes if "channels alone" in note]
    assert [note.partition(", as no other")[0] for note in found] == [told] * bool(told)
    if told:
        count = choices[int(told.split("'")[1])][0]
        assert f"training images of the same channels ({'+'.join(NAMES[:count])}): a network" in found[0]
    capsys.readouterr()
    show_channels(listing.read(root), scan.scan(root, list(files), cache=False))
    assert ("can be told by channels alone" in " ".join(capsys.readouterr().out.split())) == bool(told)


@pytest.mark.parametrize(
    ("mode", "names", "channels"),
    [("L", "x", 1), ("RGB", "x+y+z", 3), ("RGBA", "x+y+z+w", 4), ("P", "x+y+z", 3), ("LA", "x+y", 2)],
)
def test_the_samples_of_photos_are_channels_where_channels_csv_says_so(tmp_path, mode, names, channels):
    files = {}
    for seed in range(2):
        values = np.random.default_rng(seed).integers(0, 256, (9, 7, 4), dtype=np.uint8)
        image = (
            Image.fromarray(values).convert("RGB").quantize(9) if mode == "P" else Image.fromarray(values).convert(mode)
        )
        stream = io.BytesIO()
        image.save(stream, "PNG")
        files[f"{seed}.png"] = stream.getvalue()
    images = opened(write(tmp_path, files, f".,{names}\n"))
    assert (images.stacks, images.dtype, len(images.channels)) == (True, "uint8", channels)
    with Image.open(tmp_path / "1.png") as image:
        wanted = np.asarray(image.convert("RGB") if mode == "P" else image)
    np.testing.assert_array_equal(stacks.opener(images)("1.png"), wanted.reshape(9, 7, channels))


@pytest.mark.parametrize("how", ["palette", "cmyk", "ycbcr", "white is 0", "gray", "rgb"])
def test_a_tiff_of_8_bits_has_the_colours_of_the_photo_whatever_its_samples_are(tmp_path, how):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)).resize((48, 32))
    form = {
        "palette": (image.quantize(16), {}),
        "cmyk": (image.convert("CMYK"), {}),
        "ycbcr": (image, {"compression": "jpeg"}),
        "white is 0": (image.convert("L"), {"tiffinfo": {262: 0}}),
        "gray": (image.convert("L"), {}),
        "rgb": (image, {}),
    }
    stored, options = form[how]
    names = "x" if stored.mode == "L" else "x+y+z"
    stream = io.BytesIO()
    stored.save(stream, "TIFF", **options)
    images = opened(write(tmp_path, {"a.tif": stream.getvalue(), "b.tif": stream.getvalue()}, f".,{names}\n"))
    found, wanted = stacks.opener(images)("a.tif"), decode.rgb(tmp_path / "a.tif")
    assert found.shape == (32, 48, len(images.channels))
    assert np.abs(found.astype(int) - wanted[..., : found.shape[2]].astype(int)).max() <= 2


@pytest.mark.parametrize("file", ["channels.csv", "channels.txt"])
def test_an_order_of_channels_that_contradicts_the_files_is_told(tmp_path, file):
    values = {name: measured.tiff(pixels(NAMES[:2], i), ("red", "nir")) for i, name in enumerate(("a.tif", "b.tif"))}
    root = write(tmp_path, values)
    (root / file).write_text(".,nir+red\n" if file.endswith("csv") else "nir\nred\n")
    told = f"channels are nir, red in {file}, red, nir in 2 files such as a.tif: the former is taken"
    assert told in opened(root).notes
    (root / file).write_text(".,x+y\n" if file.endswith("csv") else "x\ny\n")
    assert not any("channels are" in note for note in opened(root).notes)


def site(number, channels, folder=""):
    return {f"{folder}s{number}_w{c}.png": png(pixels((NAMES[c],), [number, c])) for c in channels}


def test_unlisted_files_of_an_image_belong_to_it_and_others_are_counted(tmp_path):
    files = {**site(1, (0, 1)), **site(2, (0, 1, 2)), **site(3, (0, 1))}
    root = write(tmp_path, files, labels={path: int(path[1]) % 2 for path in files})
    for split in ("train", "val", "test"):
        (root / f"{split}.txt").write_text("s1_w1.png 1\ns2_w0.png 0\ns2_w1.png 0\nodd.png 1\n")
    (root / "odd.png").write_bytes(png(pixels(("dna",), 9)))
    images = opened(root, "_w([0-9])")
    assert images.splits["train"].paths == ("s1_w0.png", "s2_w0.png")
    assert images.parts["s1_w0.png"] == {"0": "s1_w0.png", "1": "s1_w1.png"}
    assert images.channels.names == ("0", "1", "2")
    assert images.notes[0] == "1 file without a channel in the path (--channel-files), such as odd.png: not used"
    assert images.account.as_dict()["used"] == 5
    assert images.account.ignored == {"lists and names": 3, "in no split": 3}


def test_faults_of_channel_files_name_both_files(tmp_path):
    labels = {f"s{n}_w{c}.png": n % 2 for n in range(4) for c in range(3)}
    two = write(tmp_path / "a", {**site(1, (0, 1)), **site(2, (0, 1))}, labels=labels | {"s1_w1.png": 0})
    assert fault(two, "_w([0-9])").endswith("s1_w0.png and s1_w1.png are of one image, but have two labels")
    twice = write(
        tmp_path / "b", {**site(1, (0, 1)), "s1_w0.tif": site(1, (0,))["s1_w0.png"]}, labels=labels | {"s1_w0.tif": 1}
    )
    assert fault(twice, "_w([0-9])").endswith("s1_w0.png and s1_w0.tif are both channel '0' of one image")
    assert "finds no channel in any path, such as s1_w0.png" in fault(twice, "_z([0-9])")
    named = write(tmp_path / "c", {**site(1, (0,)), **site(2, (0,))}, "s1_w0.png,x\n", labels)
    assert fault(named, "_w([0-9])").endswith("has channels.csv and --channel-files: wanted one of the two")


def test_a_channel_that_folder_and_file_both_name_is_found_once(tmp_path):
    files = {path: content for number in range(6) for path, content in site(number, (0, 1, 2)).items()}
    both = {f"c{int(path[1]) % 2}/red_w{path[4]}/{path}": content for path, content in files.items()}
    images = listing.read(put(tmp_path / "both", both), channel_files="_w([0-9])")
    assert len(images.paths) == 6
    assert images.parts["c1/red_w0/s3_w0.png"] == {str(c): f"c1/red_w{c}/s3_w{c}.png" for c in range(3)}
    unlike = {f"c{int(path[1]) % 2}/plate_w7/{path}": content for path, content in files.items()}
    assert fault(put(tmp_path / "unlike", unlike), "_w([0-9])") == (
        "--channel-files '_w([0-9])' finds the channels '7' and '0' in c0/plate_w7/s0_w0.png: make it find one"
    )
    assert len(listing.read(tmp_path / "unlike", channel_files="_w([0-9]).png").paths) == 6


def test_files_that_are_not_joined_are_told(tmp_path):
    files = {
        f"c{number % 2}/{c}/s{number}_w{c}.png": png(pixels(("er",), number)) for number in range(6) for c in (0, 1)
    }
    notes = listing.read(put(tmp_path, files), channel_files="_w([0-9])").notes
    assert "--channel-files '_w([0-9])' joins no files: each image has one, such as c0/0/s0_w0.png" in notes


def test_a_table_may_name_images_without_their_channels(tmp_path):
    files = {}
    for folder in ("train/", "val/", "test/"):
        for number in range(4):
            files |= site(number, (0, 1), folder)
    root = put(tmp_path, files)
    rows = [f"s{number},{number % 2}\n" for number in range(4)]
    (root / "train.csv").write_text("".join(["Id,Target\n", *rows[:3], "s9,0\n"]))
    (root / "val.csv").write_text("".join(["Id,Target\n", *rows]))
    (root / "test.csv").write_text("".join(["Id,Target\n", *(f"test/{row}" for row in rows)]))
    images = listing.read(root, channel_files="_w([0-9])")
    assert images.splits["train"].paths == ("train/s0_w0.png", "train/s1_w0.png", "train/s2_w0.png")
    assert images.splits["train"].labels == (0, 1, 0)
    assert images.splits["val"].paths == tuple(f"val/s{number}_w0.png" for number in range(4))
    assert images.splits["test"].paths == tuple(f"test/s{number}_w0.png" for number in range(4))
    assert images.splits["test"].labels == (0, 1, 0, 1)
    assert images.parts["train/s1_w0.png"] == {"0": "train/s1_w0.png", "1": "train/s1_w1.png"}
    assert "1 file without a channel in the path (--channel-files), such as s9: not used" in images.notes
    for split in ("train", "val", "test"):
        (root / f"{split}.csv").unlink()
    (root / "labels.csv").write_text("".join(["Id,Target\n", *rows]))
    assert fault(root, "_w([0-9])").startswith("--channel-files: 's0' may be test/s0 or train/s0: wanted a path within")


def test_an_image_is_left_out_where_a_file_of_it_is_unusable_or_differs(tmp_path):
    files = {path: content for number in range(5) for path, content in site(number, (0, 1)).items()}
    files["s1_w1.png"] = files["s1_w1.png"][:60]
    files["s2_w1.png"] = png(pixels(("er",), 7, height=6))
    files["s3_w0.png"] = png(pixels(NAMES[:3], 7))
    root = write(tmp_path, files, labels={path: int(path[1]) % 2 for path in files} | {"s4_w0.png": 1, "s4_w1.png": 1})
    found = open_set(listing.read(root, channel_files="_w([0-9])"), HOW)
    reasons = {item["path"]: item["reason"] for item in found.rejected}
    assert reasons["s1_w0.png"].startswith("s1_w1.png, channel 1: truncated")
    assert reasons["s2_w0.png"] == (
        "its files differ: s2_w0.png has 10 x 8 pixels of uint8, s2_w1.png has 6 x 8 pixels of uint8"
    )
    assert reasons["s3_w0.png"] == "s3_w0.png, channel 0: 3 channels, wanted one"
    assert found.images.splits["test"].paths == ("s0_w0.png", "s4_w0.png")
    assert (found.account.used, found.account.rejected) == (4, 6)


def test_images_that_share_an_empty_channel_are_not_taken_for_equal(tmp_path):
    empty = png(np.zeros((10, 8, 1), np.uint8))
    for label in range(2):
        for number in range(10):
            folder = tmp_path / f"class{label}"
            folder.mkdir(exist_ok=True)
            (folder / f"s{number}_w0.png").write_bytes(empty)
            (folder / f"s{number}_w1.png").write_bytes(png(pixels(("er",), [label, number])))
    images = listing.read(tmp_path, channel_files="_w([0-9])")
    assert [len(split.paths) for split in images.splits.values()] == [16, 2, 2]


def test_a_changed_file_is_a_fault_and_not_read_otherwise(tmp_path):
    files = {"a.npy": npy(pixels(NAMES[:2], 0)), "b.npy": npy(pixels(NAMES[:3], 1))}
    root = write(tmp_path, files, "a.npy,x+y\nb.npy,x+y+z\n")
    read = stacks.opener(opened(root))
    (root / "a.npy").write_bytes(npy(pixels(NAMES[:3], 0)))
    with pytest.raises(ValueError, match="has changed: wanted 2 channels, got 3"):
        read("a.npy")


def test_other_lines_of_channels_csv_are_other_verdicts_and_other_decoded_images(tmp_path):
    files = {f"{i}.npy": npy(pixels(NAMES[:2], i)) for i in range(4)}
    root = write(tmp_path, files, "0.npy,x+y\n1.npy,x+y\n2.npy,y+z\n3.npy,y+z\n")
    first = open_set(listing.read(root), HOW._replace(cache="host"))
    (root / "channels.csv").write_text("0.npy,x+y\n1.npy,x+y\n2.npy,z+y\n3.npy,z+y\n")
    again = open_set(listing.read(root), HOW._replace(cache="host"))
    assert first.images.channels.names == again.images.channels.names == ("x", "y", "z")
    values = pixels(NAMES[:2], 2)
    assert [found.store["2.npy"][0, 0].tolist() for found in (first, again)] == [
        [0, values[0, 0, 0], values[0, 0, 1]],
        [0, values[0, 0, 1], values[0, 0, 0]],
    ]
    wide = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6, 1)
    root = write(tmp_path / "b", {"a.png": png(wide), "b.png": png(wide + 1)}, ".,x|y\n")
    assert opened(root).splits["train"].sizes == ((4, 3), (4, 3))
    (root / "channels.csv").write_text(".,x|y|z\n")
    assert opened(root).splits["train"].sizes == ((4, 2), (4, 2))
    (root / "channels.csv").write_text(".,w|x|y|z\n")
    assert "6 pixels of 1 channel in a row, wanted one channel that 4 parts of equal width make" in fault(root)


# What a model is shown.


@pytest.fixture(params=["uint8", "float32"])
def sensors(tmp_path, request):
    """Twelve images from three sensors that share channels: a+b, b+c and c+d+e, in uint8 or float32."""
    choices = (("a", "b"), ("b", "c"), ("c", "d", "e"))
    files, lines = {}, ""
    for number in range(12):
        names = choices[number % 3]
        files[f"{number}.npy"] = npy(pixels(NAMES[: len(names)], number, request.param, 16, 16) + 1)
        lines += f"{number}.npy,{'+'.join(names)}\n"
    return opened(write(tmp_path, files, lines, {f"{number}.npy": number // 6 for number in range(12)}))


PRESENT = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 1]], dtype=torch.bool).repeat(4, 1)


def every(images, split="train", train=True, recipe=None, cache="none", **options):
    opened_ = open_set(replace(images, notes=(), account=None), HOW._replace(cache=cache)) if cache != "none" else None
    store = opened_.store if opened_ else None
    options = {"size": 12, "batch_size": 5, "backend": "torch", "workers": 0, "store": store} | options
    with loader.Loader(images, split, train=train, **options) as made:
        batches = list(made.epoch(1, recipe=recipe))
        return made, batches


@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize("train", [True, False])
def test_channels_that_an_image_lacks_are_zero_to_a_model(sensors, cache, train):
    made, batches = every(sensors, train=train, cache=cache)
    np.testing.assert_array_equal(made.present, PRESENT)
    for batch in batches:
        assert torch.equal(batch.present, PRESENT[batch.indices])
        shown = batch.standardised(made.channels)
        assert torch.equal(shown.flatten(2).any(2), batch.present)
        turned = batch.standardised(made.channels, torch.tensor([4, 1, -1, 0]))
        assert torch.equal(turned[:, 1], shown[:, 1])
        assert torch.equal(turned[:, [0, 3]], shown[:, [4, 0]])
        assert not turned[:, 2].any()
        few = batch.rows(np.array([1, 1, 0]))
        assert torch.equal(few.present, batch.present[[1, 1, 0]])


@pytest.mark.parametrize("kind", ["subset", "shuffle"])
def test_training_draws_among_the_channels_that_an_image_has(sensors, kind):
    made, batches = every(sensors, recipe=Recipe(channels=kind, vflip=0.5))
    for batch in batches:
        chosen = batch.drawn["channels"]
        shown = [{channel for channel in row if channel >= 0} for row in chosen.tolist()]
        own = [set(np.flatnonzero(row)) for row in batch.present.numpy()]
        assert all(len(some) > 0 and some <= has for some, has in zip(shown, own, strict=True))
        images = batch.standardised(made.channels, chosen, vflips=batch.drawn["vflips"])
        assert torch.equal(images.flatten(2).any(2), chosen >= 0)


def test_the_images_that_have_a_combination_are_found(sensors):
    assert having(sensors, "val", ()).paths == sensors.splits["val"].paths
    assert having(sensors, "val", (1,)).paths == tuple(f"{i}.npy" for i in range(12) if i % 3 < 2)
    assert having(sensors, "val", (3, 2)).paths == ("2.npy", "5.npy", "8.npy", "11.npy")
    assert having(sensors, "val", (0, 3)).paths == having(sensors, "val", (0, 3)).sizes == ()


# Images for a model that is trained already.

TRAINED = Channels(("a", "b", "c"), (100.0, 50.0, 20.0), (9.0, 5.0, 2.0), ((0, 1, 2),))


def test_images_of_some_of_a_models_channels_are_read_by_name(tmp_path):
    file = tmp_path / "x.tif"
    values = pixels(NAMES[:2], 0, np.uint16)
    file.write_bytes(measured.tiff(values, ("c", "a")))
    images = image_sets((file,), Trained(TRAINED, "float32"))[0][1]
    path = images.splits["images"].paths[0]
    assert (images.present(path), images.channels.names) == ((0, 2), ("a", "b", "c"))
    assert (images.channels.mean, images.channels.sensors) == (TRAINED.mean, ((0, 2),))
    np.testing.assert_array_equal(stacks.opener(images)(path)[..., [2, 0]], values.astype(np.float32))


def test_channels_without_names_are_those_that_are_asked_for(tmp_path):
    file = tmp_path / "x.npy"
    file.write_bytes(npy(pixels(NAMES[:2], 0, np.uint16)))
    images = image_sets((file,), Trained(TRAINED, "float32"), ("c", "b"))[0][1]
    assert images.arrangements[images.splits["images"].paths[0]].sources == (-1, 1, 0)
    with pytest.raises(UserError, match="has 2 channels, wanted 3: a, b, c"):
        image_sets((file,), Trained(TRAINED, "float32"))[0][1]
    with pytest.raises(UserError, match="has 2 channels, wanted 3: a, b, c"):
        image_sets((file,), Trained(TRAINED, "float32"), ("a",))[0][1]


def test_a_set_for_a_trained_model_has_the_models_channels_and_statistics(tmp_path):
    files = {f"{i}.npy": npy(pixels(NAMES[:2], i, np.uint16)) for i in range(4)}
    root = write(tmp_path, files, "0.npy,b+a\n1.npy,b+a\n2.npy,b+c\n3.npy,b+c\n")
    images = opened(root, trained=Trained(TRAINED, "float32"))
    assert (images.channels.names, images.channels.mean) == (TRAINED.names, TRAINED.mean)
    assert images.channels.sensors == ((0, 1), (1, 2))
    (root / "channels.csv").write_text(".,b+z\n")
    with pytest.raises(UserError, match=r"0.npy has channels b, z, wanted some of a, b, c$"):
        opened(root, trained=Trained(TRAINED, "float32"))
    assert scan.shape(images).startswith("3 channels, 10 x 8, named a, b, c")


def test_a_pattern_that_matches_no_file_is_told(tmp_path):
    paths = [f"x/landsat_{i}.npy" for i in range(2)]
    root = write(tmp_path, {path: npy(pixels(("dna",), i)) for i, path in enumerate(paths)}, ".,a\nlandsat_*,b\n")
    line = f"{root / 'channels.csv'}:2: no file matches landsat_*; a pattern is of the whole path below {root}"
    assert line in opened(root).notes
    (root / "channels.csv").write_text(".,a\n*/landsat_*,b\n")
    images = opened(root)
    assert (images.channels.names, [note for note in images.notes if "matches" in note]) == (("b",), [])


def test_names_in_other_capitals_do_not_hide_an_order(tmp_path):
    files = []
    for name, names in {"alike": ("A", "B", "C"), "other": ("x", "y", "z"), "moved": ("B", "A", "C")}.items():
        files.append(tmp_path / f"{name}.tif")
        files[-1].write_bytes(measured.tiff(pixels(NAMES[:3], 0, np.uint16), names))
    images = image_sets(tuple(files[:2]), Trained(TRAINED, "float32"))[0][1]
    told = "none of the model's channels is named in 1 image such as"
    assert images.notes == (
        f"{told} alike.tif: A, B, C are taken as a, b, c, in this order",
        f"{told} other.tif: x, y, z are taken as a, b, c, in this order",
    )
    with pytest.raises(UserError, match="has channels B, A, C, wanted the order a, b, c"):
        image_sets((files[2],), Trained(TRAINED, "float32"))


def test_other_names_for_as_many_channels_are_taken_in_order_and_told(tmp_path):
    file = tmp_path / "x.tif"
    file.write_bytes(measured.tiff(pixels(NAMES[:3], 0, np.uint16), ("x", "y", "z")))
    images = image_sets((file,), Trained(TRAINED, "float32"))[0][1]
    assert (images.arrangements, images.channels.names) == ({}, TRAINED.names)
    told = "none of the model's channels is named in 1 image such as x.tif"
    assert images.notes == (f"{told}: x, y, z are taken as a, b, c, in this order",)
    assert image_sets((file,), Trained(replace(TRAINED, names=("x", "y", "z")), "float32"))[0][1].notes == ()
