"""The subpackages by their short names, as a clone has them: `kernels.modules` is `polychrome.kernels.modules`.

The root of a clone holds the folders, so that a program run from there imports `kernels` without an installation. This
module is not installed: outside a clone the short names belong to other packages.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec


def alias(short: str) -> None:
    """Make the package `short`, which is being imported, an alias of `polychrome.<short>` with all its submodules."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    package = import_module(f"polychrome.{short}")
    _share(short)
    if short == "kernels":
        from polychrome.clone import namesake

        namesake.admit(package)
    sys.modules[short] = package


def _share(short: str) -> None:
    """Give the short name to every submodule of `polychrome.<short>` that is loaded.

    An import would put the module into its package, in place of a function of the same name, such as `channel_gate`.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(f"polychrome.{short}."):
            sys.modules.setdefault(name.removeprefix("polychrome."), module)


class _Finder(MetaPathFinder, Loader):
    """Finds `kernels.modules` as the module `polychrome.kernels.modules`, where `kernels` is `polychrome.kernels`."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        """Return how a submodule of an aliased package is imported; None for every other module."""
        package, _, inner = name.partition(".")
        aliased = inner and package in sys.modules and sys.modules[package] is sys.modules.get(f"polychrome.{package}")
        found = find_spec(f"polychrome.{name}") if aliased else None
        if found is None:
            return None
        spec = ModuleSpec(name, self, origin=found.origin, is_package=found.submodule_search_locations is not None)
        spec.has_location = found.has_location
        return spec

    def create_module(self, spec: ModuleSpec):
        """Return the module of the long name."""
        module = import_module(f"polychrome.{spec.name}")
        spec.loader_state = module.__spec__
        _share(spec.name.partition(".")[0])
        return module

    def exec_module(self, module) -> None:
        """Restore the module's spec, which the import of its short name has replaced: nothing is run twice."""
        module.__spec__ = module.__spec__.loader_state

    def get_code(self, name: str):
        """Return the code to run for `python -m <name>`."""
        return find_spec(f"polychrome.{name}").loader.get_code(f"polychrome.{name}")
