"""The command `polychrome`."""

import sys


def main() -> int:
    """Run the command line of `polychrome.train` and return its exit status; 2 where its packages are not installed."""
    if sys.argv[1:2] == ["check"]:  # it, doctor and bench need no more than the ops do
        from polychrome.kernels.check import main as check

        return check(sys.argv[2:], "polychrome check")
    if sys.argv[1:2] == ["doctor"]:
        from polychrome.doctor import main as doctor

        return doctor(sys.argv[2:])
    if sys.argv[1:2] == ["bench"]:
        from polychrome.kernels.quick import main as bench

        return bench(sys.argv[2:], "polychrome bench")
    try:
        from polychrome.train.run import main as run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "polychrome"):
            raise
        print(f"error: training needs {package}: pip install 'polychrome[train]'", file=sys.stderr)
        return 2
    return run(program="polychrome")
