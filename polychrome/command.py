"""The command `polychrome`."""

import sys

from polychrome.engine.machine import output


def main() -> int:
    """Run the command line of `polychrome.train` and return its exit status; 2 where its packages are not installed."""
    name, *rest = sys.argv[1:] or [""]
    if name in ("check", "doctor", "bench"):  # they need no more than the ops do
        with output.lasting():
            return _of_the_ops(name, rest)
    try:
        from polychrome.train.run import main as run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "polychrome"):
            raise
        print(f"error: training needs {package}: pip install 'polychrome[train]'", file=sys.stderr)
        return 2
    return run(program="polychrome")


def _of_the_ops(name: str, arguments: list[str]) -> int:
    if name == "check":
        from polychrome.kernels.check import main as check

        return check(arguments, "polychrome check")
    if name == "doctor":
        from polychrome.doctor import main as doctor

        return doctor(arguments)
    from polychrome.kernels.quick import main as bench

    return bench(arguments, "polychrome bench")
