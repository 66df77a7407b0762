"""A trace of real training steps in TensorBoard's profiler plugin, in a headless Chromium.

The plugin loads Google Charts from the internet. So that the test needs none, `charts.js` draws in its place what the
plugin hands over; everything else on the page is the plugin's.
"""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from polychrome import models
from polychrome.engine.watch.profiling import RECORDED, SKIPPED, SPANS, decoded, span, trace
from polychrome.kernels import augment

pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
pytest.importorskip("torch_tb_profiler", reason="the package torch-tb-profiler is not installed")
pytest.importorskip("selenium", reason="the package selenium is not installed")

from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

MODEL = "pool_attention_cnn"
SECONDS = 60
ON_GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)

pytestmark = pytest.mark.browser


def train(folder, device):
    """Take some training steps and an evaluation under the trace, with the spans of the engine."""
    torch.manual_seed(0)
    model = models.create(MODEL, num_classes=5).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = ((torch.randint(0, 256, (8, 48, 48, 3), dtype=torch.uint8), torch.randint(0, 5, (8,))) for _ in range(8))
    with trace(folder, MODEL) as recording:
        for images, labels in decoded(batches):
            with span("augment"):
                inputs = augment(images.to(device))
            with span("forward"):
                loss = F.cross_entropy(model(inputs), labels.to(device))
            with span("backward"):
                loss.backward()
            with span("optimizer"):
                optimizer.step()
                optimizer.zero_grad()
            recording()
        for _ in range(5):
            with span("evaluate"), torch.no_grad():
                model(inputs)
            recording.evaluated()


@pytest.fixture(scope="module", params=["cpu", ON_GPU])
def recorded(request, tmp_path_factory):
    """The folder of a run with its traces, and the device."""
    root = tmp_path_factory.mktemp("run")
    train(root / "trace", request.param)
    return root, request.param


@pytest.fixture(scope="module")
def address(recorded):
    """The address of a TensorBoard that serves the run."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(recorded[0]), "--host", "127.0.0.1"]
    server = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
    stop = threading.Timer(SECONDS, server.kill)
    stop.start()
    try:
        found = next(filter(None, (re.search(r"at (http://127\.0\.0\.1:\d+/)", line) for line in server.stderr)), None)
        stop.cancel()
        assert found, "TensorBoard did not start"
        # It would wait for a reader of what it has to say.
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield found[1]
    finally:
        stop.cancel()
        server.kill()
        server.wait()


class Page:
    """The plugin's page."""

    def __init__(self, browser):
        self.browser = browser

    @property
    def text(self):
        return self.browser.find_element(By.TAG_NAME, "body").text

    def wait_for(self, *wanted):
        try:
            WebDriverWait(self.browser, SECONDS).until(lambda _: all(text in self.text for text in wanted))
        except TimeoutException:
            raise AssertionError(f"not on the page: {[w for w in wanted if w not in self.text]}\n{self.text}") from None

    def choose(self, now, wanted):
        """Choose another entry of the list that shows `now`."""
        lists = self.browser.find_elements(By.CSS_SELECTOR, "[aria-haspopup=listbox]")
        next(item for item in lists if item.text == now).click()
        self._option(wanted).click()

    def _option(self, wanted):
        def found(_):
            options = self.browser.find_elements(By.CSS_SELECTOR, "li[role=option]")
            return next((item for item in options if item.text == wanted), None)

        return WebDriverWait(self.browser, SECONDS).until(found)

    def table(self):
        """Return the rows of all tables as text."""
        rows = self.browser.find_elements(By.CSS_SELECTOR, "table tr")
        return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]


@pytest.fixture(scope="module")
def charts(browser):
    """Let `charts.js` draw in every page of the browser."""
    source = Path(__file__).with_name("charts.js").read_text(encoding="utf-8")
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    yield
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


@pytest.fixture
def page(browser, charts, address):
    """The plugin's page, showing the overview."""
    browser.get("about:blank")
    browser.get(f"{address}#pytorch_profiler")
    WebDriverWait(browser, SECONDS).until(lambda _: browser.find_elements(By.TAG_NAME, "iframe"))
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    shown = Page(browser)
    shown.wait_for("Execution Summary", "Step Time Breakdown", "Average Step Time")
    return shown


def test_the_overview_shows_the_recorded_steps(page, recorded):
    _, device = recorded
    page.wait_for("Device Type", {"cpu": "CPU", "cuda": "GPU"}[device], MODEL, "CPU Exec")
    rows = {row[0]: row[1:] for row in page.table() if row}
    average, share = map(float, rows["Average Step Time"])
    assert average > 0
    assert share == 100
    assert 0 < float(rows["CPU Exec"][0]) < average
    # The breakdown has a bar with its number for each step.
    breakdown = page.text.partition("Step Time Breakdown")[2].splitlines()
    assert [str(number) for number in range(SKIPPED, SKIPPED + RECORDED)] == [
        line for line in breakdown if re.fullmatch(r"\d", line)
    ]


def test_the_operator_view_lists_our_operators_and_torchs(page):
    page.choose("Overview", "Operator")
    page.wait_for("Host Self Time (us)", "aten::convolution_backward", "Search by Name")
    rows = {row[0]: row[1:] for row in page.table() if len(row) > 1}
    assert int(rows["polychrome::augment"][0]) == RECORDED
    assert int(rows["polychrome::channel_stats"][0]) == RECORDED
    assert int(rows["aten::convolution_backward"][1]) > 0


@pytest.mark.parametrize("recorded", [ON_GPU], indirect=True)
def test_the_kernel_view_lists_cuda_kernels(page):
    page.choose("Overview", "GPU Kernel")
    page.wait_for("Kernel View", "Total Duration (us)")
    assert len(page.table()) > 5


def test_the_trace_that_the_plugin_serves_has_the_spans(page):
    """The trace viewer draws on a canvas, so what it is given is looked at."""
    load = "return fetch(arguments[0]).then(r => r.json()).then(t => t.traceEvents.map(e => e.name))"
    names = []
    for worker in (MODEL, f"{MODEL} evaluate"):
        names += page.browser.execute_script(load, f"trace?run=trace&worker={worker}&span={spans(page, worker)}")
    assert {name: names.count(name) > 0 for name in SPANS} == dict.fromkeys(SPANS, True)


def spans(page, worker):
    (found,) = page.browser.execute_script(f"return fetch('spans?run=trace&worker={worker}').then(r => r.json())")
    return found
