"""Put the best checkpoint of a run among the networks that come with the package.

`python -m polychrome.train.pretrained runs/task1/RUN/checkpoints/MODEL/best.pt NAME`
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from polychrome.engine.errors import UserError
from polychrome.engine.training import checkpoint
from polychrome.train.finished import Checkpoint
from polychrome.train.pretrained import FOLDER
from polychrome.train.settings.config import Settings

# Of the data in the results.
DATA = ("classes", "class_names", "dtype", "channels", "channel_mean", "channel_std", "sensors", "reading")


def stripped(path: Path) -> dict:
    """Return the content of a checkpoint without the places of its run, and without what is known of its images.

    Weights, settings, classes, channels and their statistics are left: all that using the network needs.

    Raises:
        UserError: the file is no checkpoint of ours, is damaged, or has weights alone.
    """
    run = Checkpoint(path, "cpu")
    content = checkpoint.load(path)
    settings = Settings.from_text(content["run"]["config"], str(path))
    own = {entry: table for entry, table in settings.model.items() if entry == run.name}
    settings = replace(settings, data=None, weights=None, out=Settings.out, name=None, model=own)
    data = {name: value for name, value in run.results["data"].items() if name in DATA}
    return content | {"run": {"config": settings.to_toml(), "results": run.results | {"data": data}}}


def main(arguments: list[str]) -> int:
    """Write the checkpoint, print its place, and return the exit status."""
    if len(arguments) != 2:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    source, name = arguments
    target = FOLDER / f"{name}.pt"
    try:
        checkpoint.save(target, stripped(Path(source)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{target}: {target.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
