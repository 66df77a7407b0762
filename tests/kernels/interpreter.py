"""Where Triton's interpreter runs the kernels on CPU tensors, and the mark of the tests that need it."""

import numpy
import pytest
from packaging.version import Version

from kernels.backend import is_interpreted, triton_is_installed


def obstacle() -> str | None:
    """Return why the kernels do not run on CPU tensors here, or None where they do."""
    if not triton_is_installed():
        return "Triton is not installed"
    if not is_interpreted():
        return "Triton does not interpret here; with a GPU: pytest -m gpu"
    import triton

    if Version(triton.__version__) < Version("3.9") and Version(numpy.__version__) >= Version("2.5"):
        return "Triton's interpreter before 3.9 needs a NumPy before 2.5"
    return None


found = obstacle()
needs_interpreter = pytest.mark.skipif(found is not None, reason=str(found))
