"""The machine: device, native precision, and the description that is saved with each run."""

from __future__ import annotations

import platform
import re
import subprocess
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path

import torch

from polychrome.engine.errors import UserError
from polychrome.engine.machine import distributed
from polychrome.engine.machine.workers import cpus

# Folders of a clone: the packages that train, and what benchmarks write.
PACKAGES, RESULTS = ("engine", "kernels", "models", "polychrome", "train"), "bench/results"
# Of x86 processors, by the kernel's name: processors that are named alike may differ in these by much.
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}


def device(name: str | torch.device) -> torch.device:
    """Return the device called "auto", "cpu", "cuda" or, of several GPUs, such as "cuda:1".

    Raises:
        UserError: the name is another, or of a CUDA device that is not there.
    """
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise UserError(f"no device is called {name!r}: wanted auto, cpu, cuda or, of several GPUs, such as cuda:1")
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    found = torch.device(name)
    if (found.index or 0) >= (count := torch.cuda.device_count() if found.type == "cuda" else 1):
        raise UserError(f"there is no device {name}: torch sees {count} CUDA devices here, from cuda:0")
    return found


def native_precision(on: torch.device) -> str:
    """Return "bf16" where the device multiplies bfloat16 natively (GPUs; CPUs with AMX or AVX512-BF16), else "fp32"."""
    if on.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if {"amx_bf16", "avx512_bf16"} & set(_cpu_info("flags").split()) else "fp32"


def is_native(precision: str, on: torch.device) -> bool:
    """Return whether a device multiplies at a precision natively: at "fp32" each does, at "fp16" GPUs alone."""
    return precision == "fp32" or (on.type == "cuda" if precision == "fp16" else native_precision(on) == precision)


def autocast(on: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which a model runs at `precision` ("fp32", "bf16" or "fp16")."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(on.type, dtypes[precision]) if precision in dtypes else nullcontext()


def describe() -> dict:
    """Return machine and versions as JSON-ready values, for `environment.json`."""
    packages = ("torch", "torchvision", "triton", "nvidia-dali-cuda130", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": cpus(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": distributed.world_size(),
        "launch": distributed.launch(),
        "versions": {name: version_of(name) for name in packages},
        "commit": commit(),
    }


def _cpu_info(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(key)), "")


def cpu_name() -> str:
    """Return the processor's name for itself and its widest instructions, such as "AMD EPYC 9R14 (AVX512-BF16)"."""
    name, flags = _cpu_info("model name") or platform.processor(), _cpu_info("flags").split()
    widest = next((words for flag, words in INSTRUCTIONS.items() if flag in flags), None)
    return f"{name} ({widest})" if widest else name


def version_of(package: str) -> str | None:
    """Return the version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit(digits: int = 40) -> str | None:
    """Return the commit of the code, followed by " with changes" where that is not all; None outside a clone.

    Changes are those of tracked files, apart from what benchmarks write, and files of the packages that git has not.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    found = output_of("git", "-C", str(root), "rev-parse", "--verify", "--quiet", f"--short={digits}", "HEAD")
    where = ("git", "-C", str(root))
    changed = output_of(*where, "status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULTS}")
    new = changed or output_of(*where, "ls-files", "--others", "--exclude-standard", "--", *PACKAGES)
    return f"{found} with changes" if found and new else found


def output_of(*command: str) -> str | None:
    """Return the text that a command prints; None where the command fails, prints nothing or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
