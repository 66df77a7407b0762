"""The pages that people open, a run's `report.html` and the benchmarks', in a headless Chromium at two widths."""

import json
import re
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench import test_bench_report
from tests.engine import test_report
from tests.train import runner

pytestmark = pytest.mark.browser

SMALL = ["--image-size", "32", "--batch-size", "24", "--epochs", "1", "--workers", "1", "--precision", "fp32"]
FAULTS = Path(__file__).with_name("page_faults.js").read_text(encoding="utf-8")
LONG_NAME = "images of one kind/" + "photograph" * 6 + ".jpg"


@dataclass(frozen=True)
class Screen:
    """A screen in CSS pixels, with its dots per pixel."""

    width: int
    height: int
    dots: int
    mobile: bool


LAPTOP, PHONE = Screen(1280, 800, 1, False), Screen(390, 844, 3, True)
DESKTOP = Screen(1440, 900, 1, False)
SCREENS = pytest.mark.parametrize("screen", [LAPTOP, PHONE], ids=["laptop", "phone"])


@pytest.fixture(scope="module")
def run_report(browser, stripes, tmp_path_factory):
    """The report of a run of task 1, from a folder with a long name and with a file that is left out."""
    root = tmp_path_factory.mktemp("run")
    data = shutil.copytree(stripes, root / ("striped" * 10))
    with open(data / "train.txt", "a", encoding="utf-8") as file:
        file.write(f"{LONG_NAME} 0\n")
    done = runner.train("task1", "--data", str(data), "--out", str(root), "--name", "a", *SMALL)
    assert done.returncode == 0, done.stderr
    return root / "task1/a/report.html"


def benchmark_page(figures, out):
    done = runner.run([sys.executable, "-m", "bench.report", str(figures), "--out", str(out)])
    assert done.returncode == 0, done.stderr
    return out / "cpu.html"


@pytest.fixture(scope="module")
def benchmark_report(browser, tmp_path_factory):
    """The page of the figures that the repository has."""
    return benchmark_page(runner.ROOT / "bench/results/cpu.json", tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def full_benchmark_report(browser, tmp_path_factory):
    """A page of all sections, with every kind of table and picture."""
    out = tmp_path_factory.mktemp("all-benchmarks")
    figures = out / "figures.json"
    figures.write_text(json.dumps(test_bench_report.whole()), encoding="utf-8")
    return benchmark_page(figures, out)


@pytest.fixture(params=["run_report", "benchmark_report", "full_benchmark_report"])
def page(request):
    """Each of the pages, alone in its folder: it needs nothing beside it."""
    path = request.getfixturevalue(request.param)
    alone = path.parent / "alone"
    alone.mkdir(exist_ok=True)
    return shutil.copy(path, alone)


@contextmanager
def shown(browser, page, screen, scheme="light"):
    """Open a page as such a screen shows it."""
    size = {"width": screen.width, "height": screen.height, "deviceScaleFactor": screen.dots, "mobile": screen.mobile}
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        browser.get(Path(page).resolve().as_uri())
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {})


def faults(browser, page, screen, scheme="light"):
    """Return what is wrong with a page on such a screen, and what the browser complained of."""
    browser.get_log("browser")
    with shown(browser, page, screen, scheme):
        found = browser.execute_async_script(FAULTS, screen.width)
    complaints = (said for said in browser.get_log("browser") if said["level"] in ("WARNING", "SEVERE"))
    return found + [said["message"] for said in complaints]


RESULTS = {
    "two models": lambda: two_of(test_report.task1()),
    "ten models": test_report.task1,
    "one choice of channels": test_report.task2,
    "48 channels": test_report.channels48,
    "one model": lambda: test_report.results_of({"one": test_report.entry({"RGB": 0.3})}, {"RGB": ["R", "G", "B"]}),
}


def two_of(results):
    return results | {"models": {name: results["models"][name] for name in ("simple_cnn", "pool_attention_cnn")}}


@pytest.fixture(params=RESULTS)
def report(request, tmp_path):
    """The page of a run with such results."""
    results = RESULTS[request.param]()
    test_report.report_of(results, tmp_path, test_report.history_of(results, epochs=3))
    return tmp_path / results["task"] / "a/report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@SCREENS
def test_a_report_is_drawn_whole_whatever_was_run(browser, report, screen, scheme):
    assert faults(browser, report, screen, scheme) == []


def test_the_first_screen_of_a_desktop_has_the_verdict_and_all_bars(browser, report):
    ends = "return [...document.querySelectorAll('.verdict, svg.bar')].map((e) => e.getBoundingClientRect().bottom)"
    with shown(browser, report, DESKTOP):
        found = browser.execute_script(ends)
    assert len(found) > 1
    assert max(found) <= DESKTOP.height


def test_panels_of_two_models_stand_side_by_side_on_a_desktop_and_below_each_other_on_a_phone(browser, tmp_path):
    results = two_of(test_report.task1())
    test_report.report_of(results, tmp_path)
    page, edges = tmp_path / "task1/a/report.html", "return [...document.querySelectorAll('.panels section')]"
    edges += ".map((e) => e.getBoundingClientRect()).map((box) => [box.left, box.top])"
    with shown(browser, page, DESKTOP):
        (left, top), (right, beside) = browser.execute_script(edges)
    assert left < right
    assert top == beside
    with shown(browser, page, PHONE):
        (left, top), (right, below) = browser.execute_script(edges)
    assert left == right
    assert top < below


def test_the_first_screen_of_a_phone_has_mean_and_worst_in_bold(browser, tmp_path):
    test_report.report_of(two_of(test_report.task1()), tmp_path)
    with shown(browser, tmp_path / "task1/a/report.html", PHONE):
        rows = browser.execute_script("""
            return [...document.querySelectorAll(".panels tr.summary")].slice(0, 2).map((row) => [
                row.innerText, row.getBoundingClientRect().bottom,
                [...row.querySelectorAll("td")].filter((e) => e.innerText).map((e) => getComputedStyle(e).fontWeight),
            ]);
        """)
    assert [text.split("\t")[0] for text, *_ in rows] == ["mean of 7", "worst: B"]
    assert all(bottom <= PHONE.height for _, bottom, _ in rows)
    assert all(weights[0] == "700" for *_, weights in rows)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_have_the_colours_of_the_page(browser, report, scheme):
    """Letters and lines of a chart can be read on the page: they stand out from it as its text does."""
    with shown(browser, report, DESKTOP, scheme):
        letters, page = browser.execute_script("""
            const text = document.querySelector(".picture svg text");
            return text ? [getComputedStyle(text).fill, getComputedStyle(document.body).color] : [0, 0];
        """)
    assert letters == page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@SCREENS
def test_a_page_is_drawn_whole_and_can_be_read(browser, page, screen, scheme):
    assert faults(browser, page, screen, scheme) == []


def test_a_touched_picture_is_enlarged_in_its_place(browser, run_report):
    """Small letters of a picture can be read on a phone after all, and the page stays as wide."""
    sizes = """
        const box = [...document.querySelectorAll(".picture")].at(-1);
        box.focus();
        const image = box.querySelector("img");
        return [image.getBoundingClientRect().width, image.width, box.scrollWidth > box.clientWidth,
                document.scrollingElement.scrollWidth];
    """
    with shown(browser, run_report, PHONE):
        drawn, wanted, scrolls, across = browser.execute_script(sizes)
    assert drawn == wanted > PHONE.width
    assert scrolls
    assert across == PHONE.width


PICTURE = r"data:image/png;base64,[^\"]+"
STYLE = "</style>"
BROKEN = {
    "missing picture": (PICTURE, "gone.png", "picture cannot be drawn"),
    "damaged picture": (PICTURE, "data:image/png;base64,iVBORw0KGgo=", "picture cannot be drawn"),
    "tiny picture": (STYLE, "img { width: 20px }</style>", "picture drawn 20 x"),
    "wide picture": (STYLE, "img { max-width: none }</style>", "picture wider than the screen"),
    "wide chart": (STYLE, ".picture svg { max-width: none }</style>", "picture wider than the screen"),
    "tiny bar": (STYLE, "svg.bar { width: 20px }</style>", "bar drawn 20 x"),
    "long bar": (STYLE, ".bar rect { width: 120% }</style>", "bar beyond its place"),
    "wide table": (STYLE, ".wide { overflow: visible }</style>", "pixels across on a screen of 390"),
    "cut table": (STYLE, ".wide { overflow: hidden }</style>", "cut off: loss"),
    "small letters": (STYLE, "td { font-size: 9px }</style>", "letters of 9 pixels"),
    "pale letters": (STYLE, "td { color: #222 }</style>", "contrast of"),
    "broken words": (STYLE, "td { white-space: normal; overflow-wrap: anywhere }</style>", "broken word: simple_cnn"),
    "no width for phones": (r'<meta name="viewport"[^>]*>', "", "page of 980 pixels across"),
    "failing script": (STYLE, "</style><script>gone()</script>", "gone is not defined"),
    "needs the network": (STYLE, "</style><script src='https://example.org/x.js'></script>", "ERR_NAME_NOT_RESOLVED"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_with_a_page_is_found(browser, run_report, kind):
    old, new, fault = BROKEN[kind]
    text, count = re.subn(old, new, run_report.read_text(encoding="utf-8"), count=1)
    assert count == 1
    broken = run_report.with_name("broken.html")
    broken.write_text(text, encoding="utf-8")
    assert [found for found in faults(browser, broken, PHONE, "dark") if fault in found]
