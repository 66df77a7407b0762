"""The mark of the tests that need Triton's interpreter, which runs the kernels on CPU tensors."""

import pytest

from polychrome.kernels.backend import is_interpreted, triton_is_installed


def obstacle() -> str | None:
    """Return why the kernels do not run on CPU tensors here, or None where they do."""
    if not triton_is_installed():
        return "Triton is not installed"
    if not is_interpreted():
        return "Triton does not interpret here; with a GPU: pytest -m gpu"
    return None


found = obstacle()
needs_interpreter = pytest.mark.skipif(found is not None, reason=str(found))
