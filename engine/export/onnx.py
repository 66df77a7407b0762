"""The format ONNX: a graph for onnxruntime and its kind."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polychrome.engine.errors import UserError, one_line
from polychrome.engine.export.classifier import KEY, Classifier, Description, Exported
from polychrome.engine.export.program import traced
from polychrome.kernels.decompositions import STACKED

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def _padded(x: Tensor, pad: list[int], mode: str = "constant", value: float | None = None):
    # onnxruntime merges a Pad into the next MaxPool, whose padding is minus infinity and not this value
    if mode != "constant" or min(pad) < 0:
        return NotImplemented
    for axis in range(len(pad) // 2):
        dim = x.dim() - 1 - axis
        before, after = (
            [x.new_full((*x.shape[:dim], width, *x.shape[dim + 1 :]), value or 0)] * (width > 0)
            for width in pad[2 * axis : 2 * axis + 2]
        )
        x = torch.cat([*before, x, *after], dim)
    return x


def _stable_argsort(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False):
    # the opset leaves the order of equals open: whole numbers get their positions as a second key
    if x.dtype.is_floating_point or descending:
        return NotImplemented
    x = x.movedim(dim, -1)
    count = x.shape[-1]
    keys = x.long() * count + torch.arange(count, device=x.device)
    return torch.topk(keys, count, largest=False).indices.movedim(-1, dim)


DECOMPOSITIONS = {
    **STACKED,
    torch.ops.aten.argsort.stable: _stable_argsort,
    torch.ops.aten.pad.default: _padded,
}


def write(classifier: Classifier, path: Path) -> None:
    """Write `classifier` as a graph with a dimension "batch" of any size.

    Raises:
        UserError: an operator of the model is not in the opset.
        RuntimeError: see `program.traced`.
    """
    names = ["images", "mask"][: 1 + classifier.description.any_channels]
    program = traced(classifier, DECOMPOSITIONS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.onnx.export(program, dynamo=True, input_names=names, output_names=["logits"], verbose=False)
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"{classifier.description.model} cannot be written in ONNX: {_reason(error)}") from error
    graph.rename_axes({graph.model.graph.inputs[0].shape[0]: "batch"})
    graph.model.metadata_props[KEY] = classifier.description.to_json()
    graph.save(str(path), external_data=False)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def read(path: Path) -> Exported:
    """Return the graph in onnxruntime.

    A file with preprocessing takes pixels in place of images, see `engine.export.whole`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(*arguments: Tensor) -> Tensor:
        given = {name: np.asarray(value.detach().cpu()) for name, value in zip(names, arguments, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return Exported(run, Description.from_json(session.get_modelmeta().custom_metadata_map[KEY]))
