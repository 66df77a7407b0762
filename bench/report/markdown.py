"""Tables, paragraphs and pages in Markdown."""

import textwrap
from collections.abc import Iterable

from polychrome.engine.report.tables import Table


def grid(table: Table) -> str:
    """Return a table in Markdown."""
    rule = ["---"] * table.left + ["---:"] * (len(table.columns) - table.left)
    head, *body = (f"| {' | '.join(row)} |" for row in (table.columns, *table.rows))
    return "\n".join([head, f"|{'|'.join(rule)}|", *body])


def document(*blocks: str) -> str:
    """Return a page of paragraphs, headings and tables."""
    return "\n\n".join(blocks) + "\n"


def bullets(items: Iterable[str]) -> str:
    """Return paragraphs as a bulleted list."""
    return "\n".join(wrapped(f"- {item}").replace("\n", "\n  ") for item in items)


def wrapped(paragraph: str) -> str:
    """Return a paragraph in lines of 120 characters."""
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)
