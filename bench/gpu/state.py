"""The state of the steps between calls: a folder that git ignores, and the result files made from it."""

import hashlib
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from bench.gpu import packed
from bench.gpu.steps import ROOT, RUNS, Step
from bench.measuring import record

# The most bytes of a file that the machine with the GPU returns.
LARGEST = 16 * 2**20
# The results and the tables of a GPU, which steps write into the tree; `{gpu}` is the GPU's name in file names.
WRITTEN = ("bench/results/{gpu}.json", "kernels/dynamic_conv/configs/{gpu}.json")
# The readable files of the studies' trainings.
READ = tuple(
    f"{RUNS.format(kind='*')}/**/{files}" for files in ("*.csv", "*.csv.xz", "*.json", "report.*", "plots/*.png")
)
FINAL = ("passed", "failed")


class State:
    """The state's folder: `steps.json`, logs and results of the steps, copies of files that they wrote elsewhere."""

    def __init__(self, folder: Path, device: str):
        self.folder, self.device = folder, device
        self.gpu = record.results_path("cuda").stem
        for name in ("logs", "failures"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        known = folder / "steps.json"
        self._all = json_of(known) or {}
        if known.exists() and not self._all:
            print(f"bench.gpu cannot read {known}, and begins anew", file=sys.stderr)
        # By file, the digests of what calls met and left in the tree.
        self._seen: dict[str, list[str]] = json_of(folder / "seen.json") or {}

    @property
    def steps(self) -> dict[str, dict]:
        """How each step ended on this GPU, by name."""
        return self._all.setdefault(self.device, {})

    def is_done(self, step: Step) -> bool:
        """Return whether a step ended and its sources have not changed since."""
        known = self.steps.get(step.name, {})
        same = known.get("arguments") == list(step.arguments) and known["digest"] == step.digest(self.device)
        return same and known["outcome"].split(":")[0] in FINAL

    def enter(self, step: Step, digest: str, outcome: str, seconds: float) -> None:
        """Record the outcome of a step that began with sources of this digest."""
        known = {"outcome": outcome, "seconds": round(seconds, 1), "digest": digest, "arguments": list(step.arguments)}
        self.steps[step.name] = known
        record.replace(self.folder / "steps.json", self._all)

    def restore(self, anew: bool) -> None:
        """Copy the results and tables of earlier calls into the tree, in place of missing files and of older ones.

        A file is older if an earlier call met it, or left it: the tree may be copied anew to the machine before each
        call. Any other is newer, such as a table that `bench.tune` wrote between two calls, and stays unless `anew`.
        """
        for name in (pattern.format(gpu=self.gpu) for pattern in WRITTEN):
            met = _digest(ROOT / name)
            if anew or met is None or met in self._seen.get(name, ()):
                _copy(self.folder / "files" / name, ROOT / name)
            self._see(name, met)

    def save(self) -> None:
        """Copy the results and tables of the tree, and the readable files of trainings, into the folder."""
        for name in (pattern.format(gpu=self.gpu) for pattern in WRITTEN):
            _copy(ROOT / name, self.folder / "files" / name)
            self._see(name, _digest(ROOT / name))
        for path in (path for pattern in READ for path in ROOT.glob(pattern)):
            _copy(path, self.folder / "files" / path.relative_to(ROOT))

    def _see(self, name: str, digest: str | None) -> None:
        if digest is not None and digest not in self._seen.setdefault(name, []):
            self._seen[name].append(digest)
            record.replace(self.folder / "seen.json", self._seen)

    def results(self) -> dict:
        """Return the results of all steps."""
        names = ("first_light", "host_time", "counters", "warm")
        found = {name: json_of(self.folder / f"{name}.json") for name in names}
        sections = json_of(ROOT / WRITTEN[0].format(gpu=self.gpu)) or {}
        return {"device": self.device, "steps": self.steps, **found, "sections": sections}

    def tuned(self) -> dict:
        """Return the table of measured choices, and the times of all candidates."""
        table = json_of(ROOT / WRITTEN[1].format(gpu=self.gpu))
        return {"table": table, "log": json_of(self.folder / "tuning.json")}

    def failures(self) -> str:
        """Return the output of failed tests and steps, in the order of the steps."""
        found = []
        for name in self.steps:
            path = self.folder / "failures" / f"{name}.txt"
            if path.exists():
                found.append(f"==== {name}\n{path.read_text(encoding='utf-8', errors='replace')}")
            elif self.steps[name]["outcome"] not in ("passed", "unfinished"):
                log = self.folder / "logs" / f"{name}.log"
                said = log.read_text(errors="replace")[-4000:] if log.exists() else ""
                found.append(f"==== {name}: {self.steps[name]['outcome']}\n{said}")
        return "\n".join(found)[: LARGEST - 1000]

    def write(self, out: Path, summary: str) -> None:
        """Write the five result files, of which `failures.txt` and `all.tgz` are cut to LARGEST."""
        (out / "summary.txt").write_text(summary, encoding="utf-8")
        record.replace(out / "results.json", self.results())
        record.replace(out / "tuned.json", self.tuned())
        (out / "failures.txt").write_text(self.failures(), encoding="utf-8")
        self.pack(out / "all.tgz")

    def pack(self, path: Path) -> None:
        """Write the state as an archive for `unpack`, without its largest files if it would exceed LARGEST."""
        files = sorted(self._files(), key=lambda file: file.stat().st_size)
        while True:
            with tarfile.open(path, "w:gz", compresslevel=6) as archive:
                for file in files:
                    archive.add(file, str(file.relative_to(self.folder)))
            if path.stat().st_size <= LARGEST or not files:
                return
            files.pop()

    def _files(self) -> Iterator[Path]:
        for path in self.folder.rglob("*"):
            made_anew = path.relative_to(self.folder).parts[0] in ("cache", "inductor", packed.ARCHIVE)
            if path.is_file() and not made_anew:
                yield path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the state in `archive` into `folder`.

    Raises:
        OSError, tarfile.TarError, EOFError: the archive cannot be read; the folder is unchanged.
    """
    draft = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    with tarfile.open(archive, "r:*") as opened:
        packed.extract(opened, draft)
    shutil.copytree(draft, folder, dirs_exist_ok=True)
    shutil.rmtree(draft)


def json_of(path: Path):
    """Return the content of a JSON file; None if the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _copy(source: Path, target: Path) -> None:
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
