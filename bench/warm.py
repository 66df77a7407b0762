"""Archive of our kernels, compiled in advance on a machine without a GPU: `python -m bench.warm`.

Under the stand-in driver, Triton's JIT compiles every kernel that the tests, the benchmarks, tuning and `kernels.check`
launch; with the same Triton, nothing is left to compile on the machine with the GPU.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bench.gpu.packed import ARCHIVE, pack
from bench.gpu.steps import COMPILED, ROOT

OPS = ("dynamic_conv", "growth", "channel_gate", "spatial_attention", "augment")
PARTS = ("tune bfloat16", "tune float32", *OPS, "check", "host_time")
# Tests of processes, graphs and torch.compile launch no kernels of their own.
TESTS = ("-m", "gpu", "-k", f"not ({COMPILED} or assertion or elements)", "tests/kernels")


def main(arguments: list[str] | None = None) -> int:
    """Compile and pack; return 0, 1 if a part failed and the archive lacks its kernels, 2 without a folder."""
    parser = argparse.ArgumentParser(prog="python -m bench.warm", description=__doc__.partition(":")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", metavar="DIR", help="default runs/gpu")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the parts that have TEXT in their names")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="number of processes")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        cache = Path(tempfile.mkdtemp(prefix="warm-", dir=options.out))
    except OSError as error:
        print(f"bench.warm cannot write into --out {options.out}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        whole = compile_into(cache, options.only, options.jobs)
        count = pack(cache, options.out / ARCHIVE)
    finally:
        shutil.rmtree(cache)
    size = (options.out / ARCHIVE).stat().st_size / 2**20
    print(f"{options.out / ARCHIVE}: {count} kernels, {size:.1f} MiB" + ("" if whole else "; parts of it are missing"))
    return int(not whole)


def compile_into(cache: Path, only: str = "", jobs: int = 1) -> bool:
    """Compile the parts with `only` in their names into a folder of Triton's cache; return whether all ran."""
    environment = os.environ | {
        "TRITON_CACHE_DIR": str(cache),
        "TRITON_STORE_BINARY_ONLY": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("TRITON_INTERPRET", None)
    start, whole = time.monotonic(), True
    several = ["-n", str(jobs), "--dist", "worksteal"] if jobs > 1 else []
    parts = {name: ["-m", "bench.warm_part", name] for name in PARTS}
    parts["tests"] = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.stand_in.plugin", *several, *TESTS]
    chosen = {name: words for name, words in parts.items() if only in name}
    with ProcessPoolExecutor(max(1, jobs), get_context("spawn")) as pool:
        outcomes = pool.map(_run, chosen.values(), [environment] * len(chosen))
        for name, (status, said) in zip(chosen, outcomes, strict=True):
            whole &= not status
            print(f"{name}: {said if status else 'done'} ({time.monotonic() - start:.0f} s)", flush=True)
    return whole


def _run(words: list[str], environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, "\n  ".join([f"failed: status {done.returncode}", *failed, *lines[-1:]])


if __name__ == "__main__":
    sys.exit(main())
