"""How many of the kernels that Triton was asked for lay in its cache on disk, over all processes of the steps."""

import os
from pathlib import Path

VARIABLE = "POLYCHROME_LOOKUPS"


def count() -> None:
    """Have this process's Triton append to the file that VARIABLE names, a letter for each look-up: h(it), m(iss)."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    import triton

    def listen(*, cache_hit: bool, **_) -> None:
        with open(path, "a", encoding="ascii") as file:
            file.write("h" if cache_hit else "m")

    triton.knobs.compilation.listener = listen


def counted(path: Path) -> dict[str, int]:
    """Return the numbers of hits and misses."""
    letters = path.read_text(encoding="ascii") if path.exists() else ""
    return {"hits": letters.count("h"), "misses": letters.count("m")}
