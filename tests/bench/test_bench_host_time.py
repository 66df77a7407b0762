"""`python -m bench.host_time`: every op with a gradient is timed, and the page has a column for each section."""

import json

import pytest

pytest.importorskip("triton")

from bench import host_time
from bench.host_time import WAYS
from polychrome.kernels.backend import is_interpreted
from tests.kernels.op_calls import differentiable


def section(us: float, **changed) -> dict:
    rows = [
        {"op": "spatial_gate", "form": "", "launches": [1, 2], "us": dict.fromkeys(WAYS, us)},
        {"op": "dynamic_conv2d", "form": "stacked", "launches": [1, 3], "us": dict.fromkeys(WAYS, 2 * us)},
    ]
    versions = {"torch": "2.14.1", "triton": "3.8.0", "python": "3.11.7"}
    about = {"device": "2 cores of a CPU", "versions": versions, "date": "2026-11-27", "commit": "c0ffee"}
    return about | {"stand_in": True, "rows": rows} | changed


def test_every_op_with_a_gradient_is_timed(monkeypatch):
    monkeypatch.setattr(host_time, "_leaves", lambda *_: [])
    public = set(differentiable()) - {"channel_scale"}  # of `kernels.fuse`, as spatial_gate is
    assert {case.op for case in host_time.cases()} == public | {"none"}


def test_the_page_has_a_column_for_each_section_and_what_is_asked(tmp_path):
    results, page = tmp_path / "times.json", tmp_path / "host_time.md"
    results.write_text(json.dumps({"before": section(225.4), "now": section(14.6)}))
    host_time.write(results, page)
    said = page.read_text()
    assert "`before` of 2026-11-27, commit c0ffee, on 2 cores of a CPU" in said.replace("\n", " ")
    assert "a driver whose launches do nothing" in said.replace("\n", " ")
    head, _, first, second = said.partition("## Forward and backward\n\n")[2].strip().splitlines()
    assert head == "| op | form | launches | before, us | now, us | asked |"
    assert first == "| spatial_gate |  | 2 | 225 | 15 | 100 |"
    assert second == "| dynamic_conv2d | stacked | 3 | 451 | 29 | 100 |"


def test_a_form_that_was_not_timed_before_has_a_dash(tmp_path):
    results, page = tmp_path / "times.json", tmp_path / "host_time.md"
    results.write_text(json.dumps({"before": section(9.0, rows=[]), "now": section(9.0, stand_in=False)}))
    host_time.write(results, page)
    assert "| spatial_gate |  | 1 | - | 9 | 30 |" in page.read_text()


@pytest.mark.skipif(not is_interpreted(), reason="Triton does not interpret here")
def test_interpreted_kernels_are_not_timed(capsys):
    assert host_time.main([]) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err
