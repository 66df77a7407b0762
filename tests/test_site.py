"""The site of the documentation is built from the pages of the repository, without a warning, and has all of them."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from polychrome import kernels
from polychrome.kernels import modules
from tests.test_documents import PAGES, ROOT

pytest.importorskip("mkdocs", reason="the package mkdocs is not installed")
pytest.importorskip("material", reason="the package mkdocs-material is not installed")
pytest.importorskip("mkdocstrings", reason="the package mkdocstrings is not installed")


class Links(HTMLParser):
    """Where a page's links and pictures lead, and the places within the page."""

    def __init__(self, page):
        super().__init__()
        self.links, self.places = [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, _tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id":
                self.places.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    yield out
    shutil.rmtree(out)


def built(site, page):
    """Return the file of a page: `a/README.md` and `a/index.md` are a folder's own."""
    path = Path(page)
    name = path.parent if path.name in ("README.md", "index.md") else path.with_suffix("")
    return site / name / "index.html"


def test_every_page_of_the_repository_is_on_the_site(site):
    assert [page for page in PAGES if not built(site, page).exists()] == []


def test_every_link_and_picture_of_the_site_leads_somewhere_on_it(site):
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            target, place = urldefrag(unquote(link))
            if re.match(r"[a-z]+:", target):
                continue
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.exists() or (place and file in pages and place not in pages[file].places):
                dead.append((path.relative_to(site).as_posix(), link))
    assert len(pages) > 30
    assert dead == []


def test_the_site_loads_nothing_from_elsewhere(site):
    loaded = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"(https?:[^\"]+)")
    found = {url for path in site.rglob("*.html") for url in loaded.findall(path.read_text(encoding="utf-8"))}
    assert found == set()


@pytest.mark.parametrize("page", ["ops", "modules", "models", "trained"])
def test_the_reference_has_every_public_name_with_its_docstring(site, page):
    text = built(site, f"docs/reference/{page}.md").read_text(encoding="utf-8")
    names = {
        "ops": [*kernels.__all__, "Recipe", "draw"],
        "modules": modules.__all__,
        "models": ["create", "names", "UnknownModelError", "AnyChannels"],
        "trained": ["load", "TrainedModel", "Prediction"],
    }[page]
    headings = re.findall(r'<h2 id="[\w.]*\.(\w+)"', text)
    assert sorted(headings) == sorted(names)
