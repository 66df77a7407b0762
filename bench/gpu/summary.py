"""The summary of a call on a GPU: outcomes of steps, errors, targets met; at most 60 lines."""

from bench.gpu.state import json_of
from bench.measuring import record
from bench.report import tables, targets

MOST, WIDTH = 60, 150


def summary(results: dict, names: list[str]) -> str:
    """Return the page for the results of a state, the steps in the order of `names`."""
    found = [*_check(results), *_host_time(results)]
    lines = [*_about(results), "", *found, "", *_steps(results, names), "", *_verdicts(results)]
    if len(lines) > MOST:
        lines = [*lines[: MOST - 1], f"{len(lines) - MOST + 1} more lines are left out; results.json has them"]
    return "\n".join(line[:WIDTH] for line in lines) + "\n"


def _about(results: dict) -> list[str]:
    first, warm = results["first_light"] or {}, results["warm"]
    versions = first.get("versions", {})
    said = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "triton", "python", "driver") if versions.get(name)
    )
    found = [f"{results['device']}; {said}; {first.get('date', 'not begun')}, commit {first.get('commit')}"]
    ceilings = first.get("ceilings", {})
    found.append("; ".join(f"{value:g} {name}" for name, value in ceilings.items()) or "ceilings: not measured yet")
    if warm:
        total = warm["hits"] + warm["misses"]
        share = f"{100 * warm['hits'] / total:.0f}%" if total else "none yet"
        found.append(f"kernels found in the warm cache: {warm['hits']} of {total} ({share})")
    return found


def _check(results: dict) -> list[str]:
    outcomes = (results["first_light"] or {}).get("check")
    if not outcomes:
        return ["ops against float64: not checked yet"]
    faults = [each for each in outcomes if each["fault"]]
    said = [f"  {each['op']} {each['case']}, {each['dtype']}: {each['fault']}" for each in faults]
    found = [f"ops against float64: {len(outcomes) - len(faults)} of {len(outcomes)} right", *said[:6]]
    return found + ([f"  and {len(said) - 6} more"] if len(said) > 6 else [])


def _host_time(results: dict) -> list[str]:
    rows = (results["host_time"] or {}).get("rows")
    if not rows:
        return ["host time: not measured yet"]
    spent = (f"{row['op']} {row['form']}".strip() + f" {row['us']['both']:.0f}" for row in rows)
    return [f"host time of forward and backward, us: {', '.join(spent)}"]


def _steps(results: dict, names: list[str]) -> list[str]:
    found = [f"{'step':28} {'seconds':>7}  outcome"]
    waiting = []
    for name in names:
        known = results["steps"].get(name)
        if known is None:
            waiting.append(name)
        else:
            found.append(f"{name:28} {known['seconds']:7.0f}  {known['outcome']}")
    return found + ([f"not started: {', '.join(waiting)}"] if waiting else [])


def _verdicts(results: dict) -> list[str]:
    found = []
    for op, section in results["sections"].items():
        found += [
            f"{op}: {each.demand}: {each.measured} - {tables.VERDICTS[each.met]}"
            for each in targets.verdicts(op, section)
            if each.met is not None
        ]
    return found or ["targets: nothing measured yet"]


def printed(path=None) -> str:
    """Return the tables of this GPU's results, "" if there are none."""
    sections = json_of(path or record.results_path("cuda")) or {}
    return "\n".join(f"\n{op}\n{tables.text(op, section, 140)}" for op, section in sections.items())
