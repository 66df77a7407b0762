"""Tests, benchmarks and tuning on a GPU, the most valuable first; a call resumes the previous call.

python -m bench.gpu --out DIR [--seconds N] [--from all.tgz] [--warm FILE] [--only TEXT] [--again] [--data mini50]

The state between calls is in runs/gpu; beforehand, on a machine without a GPU, `python -m bench.warm` adds the compiled
kernels to it.
"""

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from bench.gpu import lookups, packed, summary
from bench.gpu.state import State, unpack
from bench.gpu.steps import ROOT, UNFINISHED, Step, steps
from bench.measuring import record

FOLDER = ROOT / "runs" / "gpu"
# Seconds kept at the end of a call to stop its last step and write the files.
RESERVE = 12.0
# Seconds between two looks at the running steps.
POLL = 0.05


def main(arguments: list[str] | None = None) -> int:
    """Run the steps that the time allows; return 0 if all passed, 1 if any failed, 2 if none could begin."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the five result files")
    parser.add_argument("--seconds", type=float, default=540, help="of the whole call (default 540)")
    parser.add_argument("--from", type=Path, dest="source", metavar="FILE", help="all.tgz of an earlier call")
    parser.add_argument(
        "--warm", type=Path, metavar="FILE", help="archive by bench.warm (default runs/gpu/warm.tar.xz)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only the steps that have TEXT in their names")
    parser.add_argument("--again", action="store_true", help="also run steps that are done and unchanged")
    parser.add_argument("--data", metavar="DIR", help="mini50: also train the comparison at equal epochs, last")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.seconds - RESERVE
    if not torch.cuda.is_available():
        return _refuse("needs a CUDA device, and torch finds none")
    out = options.out.resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "summary.txt").touch()
    except OSError as error:
        return _refuse(f"cannot write into --out {options.out}: {error.strerror}")
    if options.source is not None:
        try:
            unpack(options.source, FOLDER)
        except (OSError, EOFError, tarfile.TarError) as error:
            return _refuse(f"cannot read --from {options.source}: {_line(error)}")
    state = State(FOLDER, torch.cuda.get_device_name())
    state.restore(anew=options.source is not None)
    _warm_up(options.warm, state)
    listed = steps(FOLDER, str(Path(options.data).resolve()) if options.data else None)
    names, failed = [step.name for step in listed], False
    for together in abreast(listed):
        left = end - time.monotonic()
        due = [
            step
            for step in together
            if options.only in step.name and left >= step.least and (options.again or not state.is_done(step))
        ]
        digests = {step: step.digest(state.device) for step in due}
        for step, digest in digests.items():
            state.enter(step, digest, "begun", 0)
        for step, outcome, taken in run(digests, left, state.folder):
            state.enter(step, digests[step], outcome, taken)
            state.save()
            failed |= outcome not in ("passed", "unfinished")
            print(f"{step.name}: {outcome} ({taken:.0f} s)", flush=True)
            _write(state, out, names)
    _write(state, out, names)
    print(summary.printed(), _page(state, names), sep="\n")
    return int(failed)


def abreast(listed: Iterable[Step]) -> Iterator[list[Step]]:
    """Yield the steps in order, those together that follow each other and measure no time."""
    for untimed, group in itertools.groupby(listed, lambda step: step.untimed):
        together = list(group)
        yield from [together] if untimed else ([step] for step in together)


def run(digests: Mapping[Step, str], left: float, folder: Path) -> Iterator[tuple[Step, str, float]]:
    """Run steps at the same time, each into its log for at most `left` seconds; yield each when it has ended.

    Yields the step, "passed", "failed: ...", "unfinished" or "stopped", and the step's seconds.
    """
    start, running = time.monotonic(), {}
    try:
        for step, digest in digests.items():
            running[step] = _started(step, min(step.most, left), folder, digest)
        while running:
            for step, process in list(running.items()):
                status, taken = process.poll(), time.monotonic() - start
                if status is None and taken < min(step.most, left):
                    continue
                log = folder / "logs" / f"{step.name}.log"
                outcome = "stopped" if status is None else _outcome(status, log)
                _stop(running.pop(step))  # ends the step's child processes too
                yield step, outcome, time.monotonic() - start
            time.sleep(POLL)
    finally:  # also if this process is ended
        for process in running.values():
            _stop(process)


def _started(step: Step, limit: float, folder: Path, digest: str) -> subprocess.Popen:
    arguments = list(step.arguments)
    if step.timed:
        arguments += ["--seconds", f"{max(1.0, limit - step.least / 2):.0f}", "--digest", digest]
    log, failures = folder / "logs" / f"{step.name}.log", folder / "failures" / f"{step.name}.txt"
    failures.unlink(missing_ok=True)
    environment = os.environ | {
        "TRITON_CACHE_DIR": str(folder / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "POLYCHROME_FAILURES": str(failures),
        lookups.VARIABLE: str(folder / "lookups.txt"),
        "PYTHONUNBUFFERED": "1",
    }
    if step.untimed:  # several processes compile beside each other
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "2"
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _outcome(status: int, log: Path) -> str:
    if status in (0, UNFINISHED):
        return "unfinished" if status else "passed"
    lines = log.read_text(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"failed: status {status}; {said[:90]}"


def _stop(process: subprocess.Popen) -> None:
    """End a step and its child processes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _warm_up(archive: Path | None, state: State) -> None:
    """Unpack the compiled kernels into the cache, once; go on without an archive that cannot be read."""
    given = archive or FOLDER / packed.ARCHIVE
    if not given.exists():
        if archive is not None:
            print(f"bench.gpu: there is no {archive}; going on without compiled kernels", file=sys.stderr)
        return
    try:
        about, known = given.stat(), state.folder / "cache" / "unpacked"
        which = f"{about.st_size} {about.st_mtime_ns}"
        if known.exists() and known.read_text() == which:
            return
        count = packed.unpack(given, state.folder / "cache")
        known.write_text(which)
        print(f"{count} compiled kernels unpacked")
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        print(f"bench.gpu: cannot read {given}: {_line(error)}; going on without compiled kernels", file=sys.stderr)


def _write(state: State, out: Path, names: list[str]) -> None:
    record.replace(state.folder / "warm.json", lookups.counted(state.folder / "lookups.txt"))
    state.write(out, _page(state, names))


def _page(state: State, names: list[str]) -> str:
    return summary.summary(state.results(), names)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _refuse(reason: str) -> int:
    print(f"bench.gpu {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
