"""What mkdocs does beside `mkdocs.yml`: pages of the repository stand at their places, so that links hold in both.

Pages outside `docs`, pictures and linked files come along. A link to a folder becomes text: a site shows no folders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/*.md", "docs/reference/*.md", "kernels/*/README.md", "bench/results/*.md")
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the files of the site: those of the theme, the repository's pages, and the files that these link to."""
    kept = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(ROOT / "docs")]
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    linked = {target for page in pages for target in _targets(page) if target.is_file() and target.suffix != ".md"}
    for path in (*pages, *sorted(linked)):
        kept.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return Files(kept)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text without links to folders."""
    here = Path(page.file.abs_src_path).parent

    def without(link: re.Match[str]) -> str:
        return link[1] if (here / link[2]).is_dir() else link[0]

    return LINK.sub(without, markdown)


def _targets(page: Path) -> Iterator[Path]:
    """Yield the files of the repository that a page links to or shows."""
    for _, target in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        if path.is_relative_to(ROOT):
            yield path
