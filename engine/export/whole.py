"""ONNX files that take whole images: crop, resize, standardisation and softmax are in the graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from polychrome.engine.data import sampling
from polychrome.engine.data.batches import normalise
from polychrome.engine.data.readers.resizing import cropped
from polychrome.engine.export.check import agreement
from polychrome.engine.export.classifier import KEY, Description

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "pixels", "probabilities"
# A probability may differ by as much from the model's: the two round the pixels of a resized image in different ways.
TOLERANCE = 0.02


@dataclass(frozen=True)
class WholeCheck:
    """The result of comparing a file for whole images with its network.

    images: how many were shown, one by one.
    difference: the largest absolute difference of two probabilities.
    agreement: the share of images that file and network put into the same class.
    """

    images: int
    difference: float
    agreement: float

    @property
    def passed(self) -> bool:
        """Whether no two probabilities differ by more than 0.02."""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        same = f"same class for {self.agreement:.0%} of the images"
        return f"largest difference of probabilities {self.difference:.1e}, {same}"


def write(core: Path, path: Path, description: Description) -> None:
    """Write the ONNX file `core` of a network with everything before it and after it.

    The input "pixels", [batch, height, width, channels] of any one height and width, has values as stored, uint8 or
    float32, where NaN is missing and becomes the channel's mean; a network for any channels also has its "mask". The
    output "probabilities" is float32 [batch, classes].
    """
    import onnx
    from onnx import compose, helper

    network = onnx.load(str(core))
    versions = [each for each in network.opset_import if each.domain in ("", "ai.onnx")]
    before = helper.make_model(
        _preprocessing(description), opset_imports=versions, ir_version=network.ir_version, producer_name="polychrome"
    )
    model = compose.merge_models(before, network, io_map=[("values", "images")])
    domains = {each.domain: each for each in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(domains.values())
    model.graph.node.append(helper.make_node("Softmax", ["logits"], [OUTPUT], axis=1))
    del model.graph.output[:]
    shape = ["batch", len(description.classes)]
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, shape))
    del model.metadata_props[:]
    helper.set_model_props(model, {KEY: json.dumps(about(description))})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def about(description: Description) -> dict:
    """Return the description of such a file, JSON-ready: as of the network alone, with other inputs and outputs."""
    description = replace(description, whole=True)
    found = description.as_dict()
    absent = description.absent_channels
    if not description.any_channels and description.scale != 1:
        absent += f" * {description.scale}, rounded"
    shape = list(description.shape)
    pixels = {"dtype": description.dtype, "shape": shape, "values": "as stored", "absent_channels": absent}
    inputs = {INPUT: pixels} | {name: each for name, each in found["inputs"].items() if name != "images"}
    output = {"dtype": "float32", "shape": ["batch", len(description.classes)]}
    return found | {"inputs": inputs, "outputs": {OUTPUT: output}}


def _preprocessing(description: Description) -> onnx.GraphProto:
    """Return the graph from "pixels" to "values", the input of the network: see `engine.data.readers.resizing`."""
    from onnx import TensorProto, helper, numpy_helper

    stored, count, size = description.dtype, len(description.channels), description.image_size
    kind = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}[stored]
    constants = {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "three": np.array([3], np.int64),
        "axes": np.array([2, 3], np.int64),
        "share": np.array([description.crop], np.float64),
        "small": np.array([count, size, size], np.int64),
        "scale": np.array(description.scale, np.float32),
    }
    if stored == "uint8":
        constants |= {"low": np.array(0, np.float32), "high": np.array(255, np.float32)}
    else:
        constants["mean"] = np.array(description.channels.mean, np.float32)[:, None, None]
    name = {each: f"preprocessing_{each}" for each in constants}

    def node(op: str, inputs: list[str], output: str, **attributes):
        given = [name.get(each, each and f"preprocessing_{each}") for each in inputs]
        given = [INPUT if each == f"preprocessing_{INPUT}" else each for each in given]
        made = output if output == "values" else f"preprocessing_{output}"
        return helper.make_node(op, given, [made], name=f"preprocessing_{op}_{output}", **attributes)

    known = [node("Cast", ["square"], "known", to=TensorProto.FLOAT)]
    if stored != "uint8":  # missing values are the channel's mean, as in `engine.data.files.stacks.opener`
        known = [node("IsNaN", ["square"], "missing"), node("Where", ["missing", "mean", "square"], "known")]
    nodes = [
        node("Transpose", [INPUT], "channels_first", perm=[0, 3, 1, 2]),
        node("Shape", [INPUT], "shape"),
        node("Slice", ["shape", "one", "three"], "height_width"),
        node("ReduceMin", ["height_width"], "short", keepdims=1),
        node("Cast", ["short"], "short_double", to=TensorProto.DOUBLE),
        node("Mul", ["short_double", "share"], "side_exact"),
        node("Round", ["side_exact"], "side_rounded"),
        node("Cast", ["side_rounded"], "side_whole", to=TensorProto.INT64),
        node("Max", ["side_whole", "one"], "side"),
        node("Sub", ["height_width", "side"], "margin"),
        node("Div", ["margin", "two"], "start"),
        node("Add", ["start", "side"], "end"),
        node("Slice", ["channels_first", "start", "end", "axes"], "square"),
        *known,
        node("Slice", ["shape", "zero", "one"], "batch"),
        node("Concat", ["batch", "small"], "sizes", axis=0),
        node(
            "Resize",
            ["known", "", "", "sizes"],
            "resized",
            mode="linear",
            antialias=1,
            coordinate_transformation_mode="half_pixel",
        ),
    ]
    if stored == "uint8":
        nodes += [node("Round", ["resized"], "rounded"), node("Clip", ["rounded", "low", "high"], "clipped")]
    nodes.append(node("Div", ["clipped" if stored == "uint8" else "resized", "scale"], "values"))
    return helper.make_graph(
        nodes,
        "preprocessing",
        [helper.make_tensor_value_info(INPUT, kind, ["batch", "height", "width", count])],
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", count, size, size])],
        [numpy_helper.from_array(value, name[each]) for each, value in constants.items()],
    )


@torch.no_grad()
def compare(
    run: Callable[..., Tensor], model: nn.Module, description: Description, images: Sequence[np.ndarray]
) -> WholeCheck:
    """Compare such a file, loaded, with its network on images [height, width, channels] as stored, one by one.

    Of float32 images some pixels are taken out, as files have missing ones.
    """
    pairs = [_results(run, model, description, image) for image in images]
    given, wanted = (torch.cat(each) for each in zip(*pairs, strict=True))
    return WholeCheck(
        images=len(images),
        difference=(given - wanted).abs().max().item(),
        agreement=agreement(given, wanted),
    )


def _results(run, model: nn.Module, description: Description, image: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the probabilities of an image by the file and by the model, [1, classes] each."""
    stored = np.array(image)
    if description.dtype == "float32":
        stored[::3, ::5] = np.nan
        image = np.where(np.isnan(stored), np.float32(description.channels.mean), stored)
    (crop,) = sampling.center_crops(np.array([image.shape[:2]]), description.crop)
    batch = cropped(image, crop, False, description.image_size)[None].to(next(model.parameters()).device)
    wanted = model(normalise(batch, description.channels)).float().softmax(1).cpu()
    mask = (torch.ones(1, image.shape[2], dtype=torch.bool),) * description.any_channels
    return run(torch.from_numpy(stored)[None], *mask), wanted
