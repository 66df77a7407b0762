"""Hugging Face's distribution `kernels`, which has a package of the same name, importable beside this one."""

import sys
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

HOMES = ("layer", "load")  # where its public names are; its __init__, which gathers them, is gone in a shared folder
INIT = "kernels._namesake_init"


def admit(path: list[str]) -> None:
    """Make the modules of Hugging Face's package importable through `path`, that of ours, where it is installed.

    Warns where both are installed in one folder: the one installed last has written its `__init__.py` over the other's.
    """
    theirs = _folder()
    if theirs is None:
        return
    if not _is_shared(theirs):
        path.append(str(theirs))
        return
    warnings.warn(
        f"polychrome and Hugging Face's kernels {version('kernels')} are both installed in {theirs}, so removing or "
        "upgrading one breaks the other; to keep both: pip uninstall polychrome kernels, pip install kernels, "
        "pip install --no-deps --target DIR polychrome, and have DIR in PYTHONPATH",
        stacklevel=3,
    )


def attribute(name: str):
    """Return what `kernels.<name>` is in Hugging Face's package.

    Raises:
        AttributeError: it is not installed or has no such name, or a module of either is called that.
    """
    private = name.startswith("__") and name != "__version__"
    theirs = None if private else _folder()
    if theirs is not None and name == "__version__":
        return version("kernels")
    if theirs is not None and find_spec(f"kernels.{name}") is None:
        for home in _homes(theirs):
            if hasattr(home, name):
                return getattr(home, name)
    raise AttributeError(f"module 'kernels' has no attribute {name!r}")


def _folder() -> Path | None:
    """Return the folder of Hugging Face's package, None where it is not installed."""
    try:
        found = Path(distribution("kernels").locate_file("kernels")).resolve()
    except PackageNotFoundError:
        return None
    return found if (found / "__init__.py").is_file() else None


def _is_shared(theirs: Path) -> bool:
    return theirs.samefile(Path(__file__).parent)


def _homes(theirs: Path) -> list[ModuleType]:
    """Return the modules that hold its public names."""
    return [import_module(f"kernels.{home}") for home in HOMES] if _is_shared(theirs) else [_init(theirs)]


def _init(theirs: Path) -> ModuleType:
    """Return its `__init__.py`, run as a module of another name."""
    if INIT not in sys.modules:
        spec = spec_from_file_location(INIT, theirs / "__init__.py")
        sys.modules[INIT] = module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[INIT])
        except BaseException:
            del sys.modules[INIT]
            raise
    return sys.modules[INIT]
