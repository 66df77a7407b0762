"""Entry point: `python -m train.run TASK`.

Exit status: 0 done, 2 the user's input was wrong (one line on stderr), 1 anything else.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from contextlib import nullcontext

import click

from polychrome.engine.errors import RunError, UserError, shown
from polychrome.engine.machine import output
from polychrome.engine.machine.interruption import terminable
from polychrome.train.cli import cli


def main(arguments: list[str] | None = None, program: str | None = None) -> int:
    """Run the command line, called `program` in its messages, and return its exit status."""
    with output.lasting() as stdout:
        if not faulthandler.is_enabled():
            faulthandler.enable(sys.__stderr__ or 2)  # a crash in native code is told with its place in ours
        status = _status(arguments, program)
        stdout.flush()
        if stdout.fault is not None and stdout.fault.errno not in output.GONE:
            print(f"error: not all output was written: {stdout.fault.strerror}", file=sys.stderr)
            return status or 1
    return status


def _status(arguments: list[str] | None, program: str | None) -> int:
    # Of several processes only the first of each machine, which starts workers, handles signals here: no exception
    # would end a collective that another process waits in.
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with terminable() if first else nullcontext():
            return cli.main(list(given), prog_name=program or _program(), standalone_mode=False, obj=list(given)) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except (click.ClickException, UserError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        if os.environ.get("RANK", "0") == "0":  # the others have the same to say
            print("error: " + shown(" ".join(message.split())), file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return 1
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 1


def _program() -> str:
    """Return the command that runs this module: by its short name in a clone, or by its full name."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name}" if spec and spec.name.endswith("train.run") else "python -m train.run"


if __name__ == "__main__":
    sys.exit(main())
