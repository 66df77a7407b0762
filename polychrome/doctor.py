"""What this machine lacks, and what to do: `polychrome doctor`, or in a clone `python -m polychrome.doctor`.

It needs no more than the ops do. Its exit status is 1 where something is wrong, 0 where something is only missing.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

import polychrome
from polychrome.engine.errors import UserError
from polychrome.engine.machine import hardware
from polychrome.engine.machine.files import cache_folder, check_writable
from polychrome.engine.machine.workers import cpus
from polychrome.kernels import probe
from polychrome.kernels.backend import triton_is_installed

OK, MISSING, WRONG = "ok", "missing", "wrong"
DALI = "nvidia-dali-cuda130"
# The oldest versions that the tests have seen.
OLDEST = {"torch": "2.11", "numpy": "1.26", DALI: "2.2"}
# By extra: the distributions that it installs, but for those that every machine has, with their oldest versions.
EXTRAS = {
    "train": {
        "torchvision": "0.26",
        "pillow": "10.3",
        "tifffile": "2024.2.12",
        "imagecodecs": "2024.6.1",
        "click": "8.2",
        "rich": "13.7",
        "jinja2": "3.1",
        "markupsafe": "2.1.3",
        "matplotlib": "3.8",
        "tensorboard": "2.16.2",
    },
    "export": {"onnx": "1.18", "onnxruntime": "1.20", "onnxscript": "0.7", "safetensors": "0.4.3"},
    "parquet": {"pyarrow": "15.0"},
}
PURPOSES = {"train": "training", "export": "ONNX and safetensors files", "parquet": "parquet files"}
ROOM = 10 * 2**30  # bytes on the disk of the cache, below which it is told
SHARED = 2**30  # bytes of shared memory for workers


class Finding(NamedTuple):
    """What was looked at, how it stands, what was found, and what to do where it does not stand well."""

    subject: str
    state: str
    found: str
    advice: str = ""


def findings() -> Iterator[Finding]:
    """Yield what is known of this machine, the packages first."""
    yield Finding("polychrome", OK, f"{polychrome.__version__}, Python {platform.python_version()}")
    for look in (_torch, _numpy, _gpu, _triton, _dali, _compiler, _extras, _processor, _cache, _shared_memory):
        yield from look()


def _torch() -> Iterator[Finding]:
    version = torch.__version__
    if _is_older(version, OLDEST["torch"]):
        yield Finding("torch", WRONG, version, f"pip install 'torch>={OLDEST['torch']}'")
    else:
        yield Finding("torch", OK, f"{version}, {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'for CPUs'}")


def _numpy() -> Iterator[Finding]:
    yield _distribution("numpy", "numpy", "pip install numpy")


def _distribution(subject: str, name: str, advice: str) -> Finding:
    """Return how a distribution of `OLDEST` stands, with `advice` where it is not installed."""
    version = hardware.version_of(name)
    if version is None:
        return Finding(subject, MISSING, "not installed", advice)
    if _is_older(version, OLDEST[name]):
        return Finding(subject, WRONG, version, f"pip install '{name}>={OLDEST[name]}'")
    return Finding(subject, OK, version)


def _is_older(version: str, oldest: str) -> bool:
    found, wanted = (list(map(int, re.findall(r"\d+", each)[:3])) for each in (version, oldest))
    return found < wanted


def _gpu() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            found = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, sm_{about.major}{about.minor}"
            reason = probe.obstacle(index)
            advice = f"the ops run as plain PyTorch there: {reason}" if reason else ""
            yield Finding(
                f"GPU {index}", WRONG if reason else OK, found, advice or "polychrome check compares every op"
            )
        return
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        advice = "this torch is built for CPUs: install the one for CUDA, see https://pytorch.org/get-started"
        yield Finding("GPU", WRONG, "there is one, and torch cannot use it", advice)
        return
    yield Finding("GPU", MISSING, "torch finds none", "everything runs on the CPU; the kernels are for NVIDIA GPUs")


def _triton() -> Iterator[Finding]:
    if not triton_is_installed():
        advice = "pip install triton; without it the ops run as plain PyTorch" if sys.platform == "linux" else ""
        yield Finding("triton", MISSING, "not installed", advice or "it is for Linux; the ops run as plain PyTorch")
        return
    version, wanted = hardware.version_of("triton") or "unknown version", _wanted_triton()
    if wanted and not version.startswith(wanted):
        advice = f"torch {torch.__version__} is made for triton {wanted}: pip install triton=={wanted}"
        yield Finding("triton", WRONG, version, advice)
    else:
        yield Finding("triton", OK, version)


def _wanted_triton() -> str | None:
    """Return the version of Triton that the installed torch asks for; None where it asks for none."""
    try:
        lines = metadata.requires("torch") or ()
    except metadata.PackageNotFoundError:
        return None
    found = (re.match(r"triton==([\d.]+)", line.replace(" ", "")) for line in lines)
    return next((match[1] for match in found if match), None)


def _dali() -> Iterator[Finding]:
    advice = f"Pillow decodes, on the CPU; on a machine with a GPU: pip install {DALI}"
    yield _distribution("DALI", DALI, advice)


def _compiler() -> Iterator[Finding]:
    name = os.environ.get("CXX", "g++").split()[0]
    if path := shutil.which(name):
        yield Finding("C++ compiler", OK, path)
    else:
        advice = "install g++, or set CXX: torch.compile on a CPU and export --format pt2 need it"
        yield Finding("C++ compiler", MISSING, f"no {name}", advice)


def _extras() -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        subject = f"packages for {PURPOSES[extra]}"
        versions = {name: hardware.version_of(name) for name in packages}
        lacking = [name for name, version in versions.items() if version is None]
        old = [name for name, version in versions.items() if version and _is_older(version, packages[name])]
        if lacking:
            yield Finding(subject, MISSING, f"no {', '.join(lacking)}", f"pip install 'polychrome[{extra}]'")
        if old:
            wanted = " ".join(f"'{name}>={packages[name]}'" for name in old)
            yield Finding(
                subject, WRONG, ", ".join(f"{name} {versions[name]}" for name in old), f"pip install {wanted}"
            )
        if not lacking and not old:
            yield Finding(subject, OK, f"all {len(packages)}")


def _processor() -> Iterator[Finding]:
    native = hardware.native_precision(torch.device("cpu"))
    words = "multiplies bfloat16" if native == "bf16" else "without bfloat16: float32 is used"
    yield Finding("processor", OK, f"{cpus()} cores of {hardware.cpu_name() or 'an unknown kind'}, {words}")


def _cache() -> Iterator[Finding]:
    try:
        folder = cache_folder()
        check_writable(folder)
    except UserError as error:
        yield Finding("cache", WRONG, str(error), "set XDG_CACHE_HOME to a folder that can be written")
        return
    free = shutil.disk_usage(_existing(folder)).free
    advice = "decoded images and compiled kernels are kept there: make room, or set XDG_CACHE_HOME"
    yield Finding("cache", OK if free >= ROOM else WRONG, f"{folder}, {free / 2**30:.0f} GiB free", advice)


def _shared_memory() -> Iterator[Finding]:
    folder = Path("/dev/shm")
    if folder.is_dir():
        size = shutil.disk_usage(folder).total
        advice = (
            "workers hand batches over in it: start the container with --shm-size=8g, or train with fewer --workers or "
            "--cache host"
        )
        yield Finding("shared memory", OK if size >= SHARED else WRONG, f"{size / 2**30:.1f} GiB", advice)


def _existing(path: Path) -> Path:
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Print what was found, in a line each, and what to do about it; return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given:
        say(f"{__doc__.strip()}" if given in (["--help"], ["-h"]) else f"doctor takes no {' '.join(given)}")
        return 0 if given in (["--help"], ["-h"]) else 2
    status = 0
    for each in findings():
        status |= each.state == WRONG
        say(f"{each.state:<8} {each.subject}: {each.found}")
        if each.state != OK and each.advice:
            say(f"         {each.advice}")
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
