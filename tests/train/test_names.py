"""Names that others gave to classes, files and channels reach terminal, plots, pages and tables as text."""

import csv
import html
import os
import re

import numpy as np
import pytest

from polychrome.engine.errors import shown, spreadsheet_cell
from polychrome.engine.report import plots
from polychrome.train.run import main

SMALL = ["--image-size", "32", "--batch-size", "6", "--epochs", "1", "--workers", "1", "--precision", "fp32"]
CLASSES = ("$5$ {x_", "=1+1", "esc\x1b[31m", "line\nend", "ri‮ght", "<b>|*_`~", "\udcff bytes", "日本 é")
CHANNELS = ("=cmd", "$\\frac$", "-1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on classes and channels of such names."""
    root = tmp_path_factory.mktemp("names")
    for number, name in enumerate(CLASSES):
        folder = root / "data $x$" / name
        folder.mkdir(parents=True)
        for seed in range(6):
            values = np.random.default_rng([number, seed]).integers(0, 4000, (40, 40, 3))
            np.save(folder / f"@file {seed}.npy", values.astype(np.uint16))
        (folder / "=bad.npy").write_bytes(b"\x93NUMPY")
    (root / "data $x$/channels.txt").write_text("\n".join(CHANNELS))
    start = ["--data", str(root / "data $x$"), "--out", str(root), "--name", "x", *SMALL]
    assert main(["task1", *start, "--models", "baseline_cnn,pool_attention_cnn"]) == 0
    return root / "task1/x"


def test_every_picture_is_drawn(run):
    names = {path.name for path in (run / "plots").iterdir()}
    kinds = {
        f"{kind}-{model}.png"
        for kind in ("confusion", "predictions")
        for model in ("baseline_cnn", "pool_attention_cnn")
    }
    charts = {f"{chart}.{form}" for chart in ("combinations", "curves", "tradeoff") for form in ("png", "svg")}
    assert names == charts | kinds


def test_pages_show_the_letters_and_obey_none(run):
    page, markdown = (run / "report.html").read_text(), (run / "report.md").read_text()
    for text in (page, markdown, (run / "table.csv").read_text()):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f‮]", text)
    assert html.escape("$\\frac$+-1") in page
    assert "<b>|" not in page
    assert r"\$\\frac\$+-1" in markdown
    assert r"data \$x\$" in markdown


def test_no_cell_of_a_table_is_a_formula(run, tmp_path):
    with open(run / "table.csv", newline="") as file:
        cells = {row["combination"] for row in csv.DictReader(file)}
    assert {"'=cmd+$\\frac$+-1", "'=cmd", "'-1", "$\\frac$"} <= cells
    assert main(["scan", str(run.parents[1] / "data $x$"), "--output", str(tmp_path / "bad.csv")]) == 0
    with open(tmp_path / "bad.csv", newline="") as file:
        found = [row[0] for row in csv.reader(file)][1:]
    assert sorted(found) == sorted(spreadsheet_cell(f"{os.fsdecode(os.fsencode(name))}/=bad.npy") for name in CLASSES)
    assert any(path.startswith("'=1+1/") for path in found)


def test_the_terminal_gets_no_codes_of_names(run, capfd):
    assert main(["evaluate", str(run), "--channels", "=cmd"]) == 0
    image = next((run.parents[1] / "data $x$" / CLASSES[2]).glob("@*"))
    assert main(["predict", str(run), str(image), "--top", "8"]) == 0
    out = capfd.readouterr().out
    assert "esc\\x1b[31m" in out.replace("\n", "")
    assert "esc\x1b[31m" not in out


@pytest.mark.parametrize(
    ("text", "cell"),
    [("=1", "'=1"), ("+a", "'+a"), ("@x", "'@x"), ("-", "'-"), ("a=1", "a=1"), ("\t=1", "\\t=1"), ("", "")],
)
def test_a_cell_that_a_spreadsheet_would_compute_gets_an_apostrophe(text, cell):
    assert spreadsheet_cell(text) == cell
    assert shown(cell) == cell


def test_a_picture_that_cannot_be_drawn_costs_a_line_alone(tmp_path, capsys):
    path = tmp_path / "curves.png"
    path.write_bytes(b"of before")

    def draw(content, path):
        raise ValueError(f"no font for\n{content}")

    plots.attempt(draw, "x", path)
    assert not path.exists()
    printed = " ".join(capsys.readouterr().out.split())
    assert "curves.png could not be drawn: no font for x" in printed
