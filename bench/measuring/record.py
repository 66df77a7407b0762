"""Files of results: a file per device with a section per op, written as soon as a shape is measured."""

import json
import platform
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

import torch

from polychrome.engine.machine.files import write_atomically
from polychrome.engine.machine.hardware import commit, cpu_name, cpus, output_of, version_of
from polychrome.kernels.dynamic_conv.configs import table_path
from polychrome.kernels.tensors import allows_tf32

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
NOT_ASKED = "not asked for"  # the reason for leaving out a baseline where only others were wanted
# Shapes are shown together only if these are equal.
CIRCUMSTANCES = ("device", "versions", "settings")


def results_path(device: str, folder: Path = RESULTS) -> Path:
    """Return the device's results file; each model of GPU has a file, all CPUs share one."""
    return folder / (table_path(torch.cuda.get_device_name()).name if device == "cuda" else "cpu.json")


def circumstances(device: str, packages: tuple[str, ...] = ("timm",)) -> dict:
    """Return the device, versions and settings, on which the numbers depend, and the date and commit.

    `packages` are the packages of the baselines.
    """
    versions = {"torch": torch.__version__, "triton": version_of("triton"), "python": platform.python_version()}
    versions |= {package: version_of(package) for package in packages}
    if device == "cuda":
        versions |= {"cuda": torch.version.cuda, "driver": output_of("nvidia-smi", *_DRIVER)}
        settings = {"cudnn_tf32": allows_tf32()}
    else:
        settings = {"threads": torch.get_num_threads()}
    return {
        "kind": device,
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "versions": versions,
        "settings": settings,
        "date": date.today().isoformat(),
        "commit": commit(12),
    }


def processor() -> str:
    """Return the processor's name and the cores this process may use."""
    return f"{cpus()} core{'s' * (cpus() > 1)} of {cpu_name()}"


def sections(path: Path) -> dict[str, dict]:
    """Return the sections of a results file, or of a run that pytest-benchmark saved, by name.

    Raises:
        ValueError: the file is of neither kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["sections"] if "benchmarks" in content else content
        if all("shapes" in section and "device" in section for section in found.values()):
            return {name: with_reached(section) for name, section in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path} is neither a file of bench/results nor a run that pytest bench saved")


def with_reached(section: dict) -> dict:
    """Return a section in which no way exceeds the FLOPs of the ceiling: the fastest way is the ceiling instead."""
    ceilings, rates = {}, {}
    for name, rate in section.get("ceilings", {}).items():
        dtype = name.split()[1]
        reached = max(_reached(section["shapes"].values(), dtype), default=0)
        if name.startswith("TFLOP/s ") and reached > rate:
            name, rate = f"TFLOP/s {dtype} in the fastest call", round(reached, 3)
            rates[dtype] = reached
        ceilings[name] = rate
    if not rates:
        return section

    def bounded(entry: dict) -> dict:
        if entry.get("dtype") not in rates:
            return entry
        least = {
            part: min(old, max(moved / ceilings["GB/s copy"] / 1e6, flops / rates[entry["dtype"]] / 1e9))
            for part, old, moved, flops in _work(entry)
        }
        return entry | ({"bound_ms": entry["bound_ms"] | least} if least else {})

    shapes = {key: bounded(entry) for key, entry in section["shapes"].items()}
    return section | {"ceilings": ceilings, "shapes": shapes}


def _reached(entries: Iterable[dict], dtype: str) -> Iterator[float]:
    """Yield the TFLOPs a second of each way and direction of entries in a dtype."""
    for entry in entries:
        if entry.get("dtype") == dtype:
            for way in entry["ms"].values():
                yield from (flops / way[part] / 1e9 for part, *_, flops in _work(entry) if part in way)


def _work(entry: dict) -> list[tuple[str, float, int, int]]:
    """Return a direction's name, bound in milliseconds, bytes and FLOPs, for each direction whose work is recorded."""
    flops = entry.get("flops") or {}
    return [(part, entry["bound_ms"][part], entry["bytes"][part], done) for part, done in flops.items()]


def row(section: str, key: str, way: str, entry: dict) -> dict:
    """Return a pytest-benchmark row's fields besides its times: work, bound, share of bound, peak memory."""
    carried = {"section": section, "shape": key, "way": way}
    carried |= {name: entry[name] for name in ("bytes", "flops", "bound_ms") if name in entry}
    if "bound_ms" in entry:
        shares = {name: least / entry["ms"][way][name] for name, least in entry["bound_ms"].items()}
        carried["share_of_bound"] = {name: round(share, 4) for name, share in shares.items()}
    used = (entry.get("memory_bytes") or {}).get(way)
    return carried | ({"peak_memory_bytes": used["peak"]} if used else {})


def write(path: Path, op: str, section: dict) -> None:
    """Write an op's section; shapes measured before under the same circumstances are kept."""
    old = read(path).get(op)
    add(path, op, united(old, section) if old else section)


def read(path: Path) -> dict:
    """Return the content of a JSON file, {} if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def add(path: Path, name: str, section: dict) -> None:
    """Write a section of a JSON file, replacing any section of the same name."""
    replace(path, read(path) | {name: section})


def alike(row: dict, sections: dict[str, dict], keys: tuple[str, ...]) -> list[dict | None]:
    """Return each section's row with the same values under `keys`, None for a section without such a row."""
    return [
        next((each for each in section["rows"] if all(each[key] == row[key] for key in keys)), None)
        for section in sections.values()
    ]


def united(old: dict, new: dict) -> dict:
    """Return `new` with the other shapes of `old`; without them if the circumstances differ."""
    if any(old[name] != new[name] for name in CIRCUMSTANCES):
        return new
    return new | {name: old[name] | new[name] for name in ("ceilings", "shapes")}


def replace(path: Path, content: dict) -> None:
    """Write `content` as JSON; a concurrent reader sees the whole old or the whole new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1) + "\n")


_DRIVER = ("--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
