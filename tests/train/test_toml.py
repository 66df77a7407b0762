"""What is written is what Python's own reader reads."""

import tomllib
from datetime import date, datetime, time

import pytest

from polychrome.train.settings.toml import dumps

DOCUMENTS = {
    "numbers": {"a": 1, "b": -2.5, "c": 1e-05, "d": 1e22, "e": float("inf"), "f": True, "g": False},
    "texts": {
        "a": "",
        "b": 'quotes " and \\ and \n\t\x00\x1f\x7f',
        "c": "Grün 画像 😀",
        "a b.c": "key",
        "": "empty key",
    },
    "lists": {"a": [], "b": [1, 2], "c": [["x"], []], "d": [{"e": 1, "f g": {"h": []}}], "e": ()},
    "tables": {"a": {"b": {"c": 1}, "d": 2}, "e": {}, "f": 3, "g.h": {"i j": {"k": 4}}},
    "times": {"a": date(2026, 1, 2), "b": datetime(2026, 1, 2, 3, 4, 5), "c": time(1, 2, 3)},
}


def listed(value):
    """Return the value with lists for tuples, as a reader gives them."""
    if isinstance(value, dict):
        return {name: listed(each) for name, each in value.items()}
    return [listed(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_read_as_it_was_written(name):
    assert tomllib.loads(dumps(DOCUMENTS[name])) == listed(DOCUMENTS[name])


def test_what_toml_does_not_have_is_refused():
    with pytest.raises(TypeError, match="TOML has no NoneType, got None"):
        dumps({"a": None})
