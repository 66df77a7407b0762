"""The command line itself: its summaries, its version, and what it says of a slip."""

import re

import click
import pytest

import polychrome
from polychrome.engine.channels.combinations import parse
from polychrome.engine.errors import UserError
from polychrome.train.cli import GROUPS, cli
from polychrome.train.run import main


def test_the_summary_of_every_command_is_whole_at_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    lines = dict(re.findall(r"^  (\w+) +(\w.*)$", text, re.M))
    assert set(cli.commands) <= set(lines)
    assert [name for name in cli.commands if not re.fullmatch(r"[A-Z][^.]+\.", lines[name])] == []
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("task", ["task1", "transfer"])
def test_the_help_of_a_task_has_every_option_once_by_subject(capsys, task):
    names = [name for group in GROUPS.values() for name in group]
    context = click.Context(cli.commands[task])
    options = {option.name: option.opts for option in cli.commands[task].get_params(context)}
    assert len(names) == len(set(names))
    assert ["--help" in options[name] for name in options.keys() - names] == [True]
    assert main([task, "--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(\w[\w ]*):$", text, re.M) == list(GROUPS)
    assert len(re.findall(r"^  -", text, re.M)) == len(names) + 1


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert polychrome.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("task", ["task1", "transfer"])
def test_a_folder_without_its_option_is_told_to_be_data(stripes, capsys, task):
    assert main([task, str(stripes)]) == 2
    assert capsys.readouterr().err == (
        f"error: {task} takes options alone, not '{stripes}': for the images in that folder --data {stripes}\n"
    )
    assert main([task, "nothing"]) == 2
    assert f"{task} takes options alone, not 'nothing'; see --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "names", "meant"),
    [
        ("RGX", ("R", "G", "B"), "RG"),
        ("rgb", ("R", "G", "B"), "RGB"),
        ("Rg", ("R", "G", "B"), "RG"),
        ("gren", ("red", "green", "nir"), "green"),
        ("red+NIR", ("red", "green", "nir"), "red+nir"),
        ("red+x", ("red", "green", "nir"), "red"),
    ],
)
def test_a_slip_in_channels_is_answered_with_what_was_meant(wanted, names, meant):
    with pytest.raises(UserError, match=rf"; did you mean '{re.escape(meant)}'\?$"):
        parse((wanted,), names)


def test_nothing_is_guessed_of_what_is_like_nothing():
    with pytest.raises(UserError, match=r"the data has R, G, B$"):
        parse(("XY",))
