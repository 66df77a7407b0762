"""Times measured on a GPU, kernel by kernel, as a section beside the predicted ones."""

from collections.abc import Iterable

# Parts of the names of the library kernels that torch makes products with.
PRODUCTS = ("nvjet", "cutlass", "gemm")


def section(results: dict, predicted: list[dict]) -> dict:
    """Return the passes of `predicted` with the kernels and times measured by `bench.gpu`.

    Calls that lack a predicted kernel, or run it in another order, are left out.
    """
    first, kernels = results["first_light"], results["counters"]["kernels"]
    calls: dict[str, list[dict]] = {}
    for row in predicted:
        kind = " bfloat16" if row["op"] == "dynamic_conv" else ""  # other ops' keys name the dtype
        calls.setdefault(f"{row['op']}{kind} {row['shape']}", []).append(row)
    rows = [row for call, passes in calls.items() if call in kernels for row in _rows(passes, kernels[call])]
    about = {name: first[name] for name in ("versions", "date", "commit")}
    return about | {"device": results["device"], "measured": True, "rows": rows}


def _rows(passes: list[dict], kernels: Iterable[tuple[str, float]]) -> list[dict]:
    """Divide a call's kernels among its passes: an unpredicted kernel goes with the next predicted one."""
    expected = [(index, launch["kernel"]) for index, row in enumerate(passes) for launch in row["launches"]]
    expected = [(index, name) for index, name in expected if name.endswith("_kernel") or name in ("bmm", "mm")]
    found: list[list[dict]] = [[] for _ in passes]
    waiting, met = [], 0
    for name, us in kernels:
        waiting.append({"kernel": name, "us": us})
        if met < len(expected) and _is(name, expected[met][1]):
            waiting[-1]["kernel"] = expected[met][1]
            found[expected[met][0]] += waiting
            waiting, met = [], met + 1
    if met < len(expected):
        return []
    found[-1] += waiting
    return [
        {name: row[name] for name in ("op", "shape", "pass", "bound_us")} | {"launches": launches}
        for row, launches in zip(passes, found, strict=True)
    ]


def _is(name: str, expected: str) -> bool:
    return name.startswith(expected) or (not expected.endswith("_kernel") and any(part in name for part in PRODUCTS))
