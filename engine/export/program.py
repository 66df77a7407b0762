"""A classifier as a graph of torch's own operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.export import Dim, ExportedProgram

from polychrome.engine.export.classifier import Classifier
from polychrome.kernels.decompositions import OPS

EXAMPLES = 3  # unlike 1, which the graph would be specialised to, and unlike usual counts of channels


def traced(
    classifier: Classifier, decompositions: Mapping[torch._ops.OpOverload, Callable] | None = None
) -> ExportedProgram:
    """Return the graph of `classifier` for any batch of at least one image, our ops written out in aten.

    decompositions: for further operators, or ours, the functions that take their place.

    Raises:
        RuntimeError: an op of ours has no decomposition.
    """
    description = classifier.description
    device = classifier.statistics.device
    channels, size = len(description.channels), description.image_size
    arguments = [torch.rand(EXAMPLES, channels, size, size, device=device)]
    if description.any_channels:
        arguments.append(torch.ones(EXAMPLES, channels, dtype=torch.bool, device=device))
    batch = Dim("batch", min=1)
    shapes = dict(zip(("images", "mask"), [{0: batch}] * len(arguments), strict=False))
    with torch.no_grad():
        program = torch.export.export(classifier, tuple(arguments), dynamic_shapes=shapes)
        program = program.run_decompositions({**OPS, **(decompositions or {})})
    left = sorted({str(node.target) for node in program.graph.nodes if "polychrome" in str(node.target)})
    if left:
        raise RuntimeError(f"kernels.decompositions lacks {', '.join(left)}")
    return program
