"""Tables of files and labels, whoever wrote them: every label is read whole, or the line is refused."""

import csv
import io

import numpy as np
import pytest

from polychrome.engine.data.sets.layouts import tables
from polychrome.engine.errors import UserError

WORDS = [
    "crane",
    '5" disk',
    "a, b",
    "x; y",
    "tab\there",
    "O'Hara",
    '"quoted"',
    " spaced ",
    "\u00e9t\u00e9",
    "1_0",
    ", ",
    '""',
    "a,b;c",
]
MARKS = (",", ";", "\t")


def read(root, text, files, suffix="csv"):
    """Return the label of each file that a table names."""
    name = f"labels.{suffix}"
    (root / name).write_text(text, encoding="utf-8", newline="")
    images = tables.read(root, dict.fromkeys([name, *files], ""), [name], None)
    (rows,) = images.splits.values()
    return {path: images.class_names[label] for path, label in rows}


def drawn(generator, count=4):
    """Return files and their labels, of which two at least differ."""
    files = [f"{number} {WORDS[generator.integers(len(WORDS))].strip()}.png" for number in range(count)]
    labels = [WORDS[place] for place in generator.permutation(len(WORDS))[:count]]
    return dict(zip(files, labels, strict=True))


def written(rows, mark, quoting, space, end):
    """Return rows as a writer of tables writes them, with a space after each mark if so wanted."""
    stream = io.StringIO()
    csv.writer(stream, delimiter=mark, quoting=quoting, lineterminator=end).writerows(rows)
    text = stream.getvalue()
    if space and quoting == csv.QUOTE_ALL:
        text = text.replace(f'"{mark}"', f'"{mark} "')
    return text


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("header", [("file", "label"), ("", "file", "label"), ("file", "label", "notes"), None])
def test_every_label_that_a_writer_of_tables_wrote_is_read_whole(tmp_path, mark, quoting, header):
    refused = 0
    for seed in range(40):
        wanted = drawn(np.random.default_rng(seed))
        more = {None: ((), ()), 2: ((), ())}.get(header and len(header), ((), ("",)))
        index = ("0",) if header and not header[0] else ()
        rows = [(*index, file, label, *(() if index else more[1])) for file, label in wanted.items()]
        text = written([header, *rows] if header else rows, mark, quoting, seed % 2, ("\n", "\r\n")[seed // 2 % 2])
        try:
            assert read(tmp_path, text, wanted) == {file: label.strip() for file, label in wanted.items()}
        except tables.NoLabels:  # without a header, where every name of a file has the same marks in it
            refused += 1
    assert refused <= (2 if header is None else 0)


@pytest.mark.parametrize("mark", MARKS)
def test_rows_joined_without_quotes_are_read_whole_or_refused_by_line(tmp_path, mark):
    refused = 0
    for seed in range(200):
        wanted = drawn(np.random.default_rng(seed))
        lines = [mark.join(row) for row in [("file", "label"), *wanted.items()]]
        try:
            found = read(tmp_path, "\n".join(lines), wanted)
        except UserError as error:
            number = int(str(error).split("labels.csv:")[1].split(":")[0])
            assert mark in "".join(list(wanted.items())[number - 2]) or '"' in lines[number - 1]
            refused += 1
            continue
        # What stands between quotes may have been meant with them: a reader of tables takes them off.
        assert {file: label.strip('"') for file, label in found.items()} == {
            file: label.strip().strip('"') for file, label in wanted.items()
        }
    assert 50 < refused < 190


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,label\na.png,crane, machine\n",
            "labels.csv:2: wanted 2 cells with ',' between, as in the first line, got 3 in",
        ),
        (
            "file,label,split\na.png,crane\n",
            "labels.csv:2: wanted 3 cells with ',' between, as in the first line, got 2 in",
        ),
        ("a.png,x\nb.png,crane, machine\n", "labels.csv:2: wanted 2 cells"),
        (
            'file,label\na.png,"x\n',
            "labels.csv:2: wanted cells with ',' between, got quotes that do not fit in",
        ),
        ('"file,label\na.png,x\n', "labels.csv:1: wanted cells with ',' between, got quotes that do not fit in"),
    ],
)
def test_rows_with_other_cells_than_the_first_are_refused_by_line(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, ["a.png", "b.png"])
    assert message in str(caught.value)


def test_lines_of_json_have_the_fields_of_all_lines(tmp_path):
    rows = [f'{{"file": "{i}.png", "label": {i % 2}.0}}' for i in range(4)]
    rows += [f'{{"file": "{i}.png", "label": {i % 2}, "split": "test"}}' for i in range(4, 6)]
    (tmp_path / "labels.jsonl").write_text("\n".join(rows))
    files = {f"{i}.png": "" for i in range(6)} | {"labels.jsonl": ""}
    with pytest.raises(UserError, match="split"):
        tables.read(tmp_path, files, ["labels.jsonl"], None)
    rows[:4] = [row.replace("}", ', "split": "train"}') for row in rows[:4]]
    (tmp_path / "labels.jsonl").write_text("\n".join(rows))
    images = tables.read(tmp_path, files, ["labels.jsonl"], None)
    assert images.class_names == ("0", "1")
    assert {split: len(own) for split, own in images.splits.items()} == {"train": 4, "test": 2}


@pytest.mark.parametrize("table", ["train.csv", "train/metadata.csv"])
def test_a_missing_file_is_not_replaced_by_another_splits_file_of_its_name(tmp_path, table):
    files = {f"train/{i}.png": "" for i in range(3)} | {f"test/{i}.png": "" for i in range(5)}
    for path in (*files, table):
        (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_text("file,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(4)))
    images = tables.read(tmp_path, files | {table: ""}, [table], None)
    (rows,) = images.splits.values()
    assert [path for path, _ in rows] == [*(f"train/{i}.png" for i in range(3)), "3.png"]
    # Where a split has no folder of its own, its images may lie in another split's.
    (tmp_path / "val.csv").write_text("file,label\n4.png,0\n")
    both = tables.read(tmp_path, files | {table: "", "val.csv": ""}, [table, "val.csv"], None)
    assert both.splits["val"] == [("test/4.png", 0)]


def test_empty_cells_are_cells(tmp_path):
    assert read(tmp_path, "file,label,,\na.png,x,,\nb.png,y,,\n", ["a.png", "b.png"]) == {"a.png": "x", "b.png": "y"}
    text = "file\tlabel\tnotes\na.png\tx\t\nb.png\ty\tz\n"
    assert read(tmp_path, text, ["a.png", "b.png"], "tsv") == {"a.png": "x", "b.png": "y"}


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("suffix", [".png", ""])
def test_a_missing_file_of_a_table_without_a_header_is_named_and_not_taken_for_the_header(tmp_path, missing, suffix):
    files = [f"{number}{suffix}" for number in range(4)]
    rows = {file: "xy"[number % 2] for number, file in enumerate(files)}
    text = "".join(f"{file},{label}\n" for file, label in rows.items())
    assert read(tmp_path, text, files[:missing] + files[missing + 1 :]) == rows
    assert read(tmp_path, "picture,kind\n" + text, files) == rows
