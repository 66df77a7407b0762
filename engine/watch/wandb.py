"""Trainings as runs of Weights & Biases, on its server or, offline, in its folder."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from polychrome.engine.errors import UserError, first_line
from polychrome.engine.history import EpochRow
from polychrome.engine.watch.logger import PATIENCE, Logger, Training, scalars

if TYPE_CHECKING:
    import wandb

BLOCK, HEADER = 2**15, 7  # bytes


class WandB(Logger):
    """A run of W&B for a training, in the group of the run's name; a training that goes on has its run again.

    W&B says where: its environment variables and settings; the project is "polychrome" where they name none. Nothing
    global is changed: `wandb.run` stays, and what is printed is not caught.
    """

    def __init__(self, training: Training) -> None:
        import wandb

        about = {"group": training.run, "job_type": training.task, "name": training.name, "id": training.id}
        project = wandb.setup().settings.project or "polychrome"
        self.run = wandb.init(project=project, **about, resume="allow", settings=_settings())
        self.run.config.update(dict(training.settings), allow_val_change=True)
        self.last = max(0, self.run.starting_step - 1)
        if self.run.offline:
            # Nobody knows the run but the folders of earlier processes, which W&B later uploads one after another.
            folders = Path(self.run.dir).parents[1].glob(f"offline-run-*-{training.id}/run-{training.id}.wandb")
            steps = [row["_step"] for path in folders for row in history(path)]
            self.last = max(steps, default=0 if training.anew else training.first_epoch - 1)

    def epoch(self, row: EpochRow, images_per_second: float, idle: float | None = None) -> None:
        self.run.log(scalars(row, images_per_second, idle), step=row.epoch, commit=True)

    def result(self, epoch: int, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        self.run.summary.update(dict(figures))

    def close(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))


def _settings() -> wandb.Settings:
    import wandb

    # W&B would wait for its server for ever. What it could not send stays in its folder.
    patience = {"finish_timeout": 0.75 * PATIENCE, "finish_timeout_raises": True}
    return wandb.Settings(console="off", reinit="create_new", **patience)


def history(path: Path) -> list[dict[str, float]]:
    """Return the rows of the history in a `.wandb` file, a dict each, up to where the file is cut off or damaged."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    with suppress(Exception):  # the format is W&B's own, and another version may have another
        for content in _records(path.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def _records(data: bytes) -> Iterator[bytes]:
    """Return the records in LevelDB's log format, which follows a header of 7 bytes.

    Blocks hold pieces of records, each after its checksum, length and kind: whole, first, middle or last. A block's
    last bytes are unused where they hold no such header.
    """
    place, record = HEADER, b""
    while place + HEADER <= len(data):
        if (left := BLOCK - place % BLOCK) < HEADER:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        place += HEADER + length
        record += data[place - length : place]
        if kind in (1, 4) and place <= len(data):
            yield record
            record = b""


def check() -> None:
    """Raise UserError where W&B knows no account to log to; on a terminal W&B asks for it."""
    import wandb

    try:
        _settings()
        if wandb.setup().settings.mode not in ("offline", "dryrun", "disabled"):
            wandb.login(verify=False)
    except Exception as error:
        raise UserError(f"--logger wandb: {first_line(error)}; WANDB_MODE=offline needs no account") from error
