"""The former name of `polychrome.kernels.fold`."""

import warnings

from torch import nn

from polychrome.kernels.fold import fold_batch_norm


def fuse(model: nn.Module) -> nn.Module:
    """Return what `polychrome.kernels.fold_batch_norm` does, of which this is the former name, and warn."""
    warnings.warn("polychrome.kernels.fusion.fuse is called kernels.fold_batch_norm now", FutureWarning, stacklevel=2)
    return fold_batch_norm(model)
