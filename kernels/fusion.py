"""The former name of `polychrome.kernels.fold`."""

import warnings

from torch import nn

from polychrome.kernels.fold import fold_batch_norm


def fuse(model: nn.Module) -> nn.Module:
    """Return the result of `polychrome.kernels.fold_batch_norm`; warn that `fuse` is its former name here."""
    warnings.warn("polychrome.kernels.fusion.fuse is called kernels.fold_batch_norm now", FutureWarning, stacklevel=2)
    return fold_batch_norm(model)
