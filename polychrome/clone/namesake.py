"""Hugging Face's distribution `kernels`, importable beside a clone's package of the same name."""

import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

# The name under which Hugging Face's __init__ is loaded.
INIT = "polychrome.kernels._namesake_init"


def admit(package: ModuleType) -> None:
    """Make our package serve the modules and names of Hugging Face's package too, if it is installed."""
    theirs = _folder()
    if theirs is not None:
        package.__path__.append(str(theirs))
        package.__getattr__ = attribute


def attribute(name: str):
    """Return the attribute `name` of Hugging Face's package.

    Raises:
        AttributeError: the package has no attribute `name`, or a module of either package has this name.
    """
    if name == "__version__":
        return version("kernels")
    if not name.startswith("__") and find_spec(f"polychrome.kernels.{name}") is None:
        theirs = _init(_folder())
        if hasattr(theirs, name):
            return getattr(theirs, name)
    raise AttributeError(f"module 'kernels' has no attribute {name!r}")


def _folder() -> Path | None:
    """Return the folder of Hugging Face's package, None where it is not installed."""
    try:
        found = Path(distribution("kernels").locate_file("kernels")).resolve()
    except PackageNotFoundError:
        return None
    return found if (found / "__init__.py").is_file() else None


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
