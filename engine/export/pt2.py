"""The format pt2: a package compiled ahead of time by AOTInductor, which needs torch alone to run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from polychrome.engine.errors import UserError
from polychrome.engine.export.classifier import KEY, Classifier, Description, Exported
from polychrome.engine.export.program import traced

PACKAGES = ()


def write(classifier: Classifier, path: Path) -> None:
    """Write `classifier` as a package compiled for its present device.

    Raises:
        UserError: there is no C++ compiler.
        RuntimeError: see `program.traced`.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "--format pt2 compiles the model and finds no C++ compiler: install g++, or name one by the environment "
            "variable CXX"
        ) from None
    configs = {
        "aot_inductor.metadata": {KEY: classifier.description.to_json()},
        "cpp.dynamic_threads": True,  # else as many threads as this process has, wherever it runs
    }
    torch._inductor.aoti_compile_and_package(traced(classifier), package_path=str(path), inductor_configs=configs)


def read(path: Path) -> Exported:
    """Return the compiled model; a call raises UserError where a tensor is not on the device it is compiled for."""
    compiled = torch._inductor.aoti_load_package(str(path))
    metadata = compiled.loader.get_metadata()
    made_for = metadata["AOTI_DEVICE_KEY"]

    def run(*arguments: Tensor) -> Tensor:
        for argument in arguments:
            if argument.device.type != made_for:
                raise UserError(f"{path} is compiled for {made_for}, got a tensor on {argument.device.type}")
        # Compiled code reads the memory of arguments as contiguous.
        return compiled(*(argument.contiguous() for argument in arguments))

    return Exported(run, Description.from_json(metadata[KEY]))
