"""The time that a run still takes, and the bar that shows it."""

import io
import re

import pytest
from rich.console import Console

from polychrome.engine import console
from polychrome.engine.history import EpochRow
from polychrome.engine.watch.remaining import Remaining


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_lone_network_takes_for_the_rest_as_long_as_for_as_much_before(clock):
    remaining = Remaining({"a": 1e9}, clock=clock)
    remaining.begin("a")
    clock.now += 30
    assert remaining.left(0.25) == pytest.approx(90)
    assert remaining.left(1.0) == 0


def test_networks_that_follow_take_what_their_work_says(clock):
    remaining = Remaining({"a": 1.0, "b": 3.0, "c": 6.0}, clock=clock)
    remaining.begin("a")
    clock.now += 5
    assert remaining.left(0.5) == pytest.approx(5 + 10 * 9)
    clock.now += 5
    remaining.begin("b")
    clock.now += 60  # a second for 0.05 of the work, where a took a tenth of a second for 0.01
    assert remaining.left(0.5) == pytest.approx(60 + (10 + 60) / (1 + 1.5) * 6)


def test_a_run_of_several_seeds_takes_all_once_more_for_each(clock):
    remaining = Remaining({"a": 1.0, "b": 1.0}, again=2, clock=clock)
    remaining.begin("a")
    clock.now += 10
    assert remaining.left(1.0) == pytest.approx(10 + 2 * 20)


@pytest.mark.parametrize("trained", [0, 2, 4])
def test_what_is_left_is_the_same_whatever_an_earlier_process_has_trained(clock, trained):
    names = "abcde"
    remaining = Remaining(dict.fromkeys(names, 10.0), names[:trained], again=2, clock=clock)
    for name in names[trained:]:
        remaining.begin(name)
        clock.now += 5 if name == "e" else 10
    assert remaining.left(0.5) == pytest.approx(5 + 2 * 50)


def test_what_an_earlier_process_did_took_no_time_now(clock):
    remaining = Remaining({"a": 1.0, "b": 1.0}, clock=clock)
    remaining.begin("a", 0.8)
    assert remaining.left(0.8) is None
    clock.now += 10
    assert remaining.left(0.9) == pytest.approx(10 + 100)


def test_of_a_network_without_known_work_its_own_rest_is_told(clock):
    remaining = Remaining({}, clock=clock)
    assert remaining.left(0.5) is None
    remaining.begin("a")
    clock.now += 10
    assert remaining.left(0.5) == pytest.approx(10)


def drawn(monkeypatch, width, name="pool_attention_cnn", left=lambda share: 7300.0):
    """Return the bar of a training, in its second of eight epochs, as a terminal of a width shows it."""
    terminal = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    monkeypatch.setattr(console, "console", terminal)
    with console.training(name, 24_000, 8, left) as bar:
        task = bar.bars.tasks[0]
        monkeypatch.setattr(type(task), "time_remaining", 83.0)
        monkeypatch.setattr(type(task), "speed", 12_345.6)
        bar.advance(3_000)
        bar.tell(EpochRow("a", 1, 0.1, 1.23456, 0.5, 2.0, 0.456), 8)
        terminal.file.truncate(0)
        bar.bars.refresh()
    lines = re.sub(r"\x1b\[[\d?;]*[A-Za-z]", "", terminal.file.getvalue()).strip("\x00\r\n").splitlines()
    return sorted({line.rstrip() for line in lines if line.strip()})  # the same in every frame


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_has_epoch_loss_accuracy_speed_and_both_times_on_one_line(monkeypatch, width):
    line, *others = drawn(monkeypatch, width)
    assert not others
    assert len(line) <= width
    speed = "12,346 img/s " if width >= console.WITH_SPEED else ""
    figures = re.escape(f" epoch 2/8, loss 1.235, val. 45.6% {speed}1:23 left, run 2:01:40")
    assert re.fullmatch(f"pool_attention_c(nn|…) [━╺╸ ]+{figures}", line)


def test_a_long_name_is_cut_and_not_the_figures(monkeypatch):
    (line,) = drawn(monkeypatch, 80, "attention_separable_cnn+noaug RGB")
    assert line.startswith("attention_separa")
    assert line.endswith("1:23 left, run 2:01:40")
    assert len(line) <= 80


def test_the_time_of_the_run_is_not_said_twice(monkeypatch):
    assert drawn(monkeypatch, 100, left=lambda share: 84.0)[0].endswith("img/s 1:23 left")
    assert drawn(monkeypatch, 100, left=lambda share: None)[0].endswith("img/s")
