"""What forward and backward allocate on a GPU, listed on meta tensors at full size: nothing is launched."""

import json
from pathlib import Path

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from bench.ops.dynamic_conv import shapes_on
from polychrome.kernels import dynamic_conv2d
from polychrome.kernels.dynamic_conv import configs
from polychrome.kernels.dynamic_conv.problem import Geometry, problem_of
from polychrome.kernels.dynamic_conv.triton import ops

META = torch.device("meta")
# batch, in, out, size, kernel, stride, groups
SHAPES = {
    "C64 56x56": (64, 64, 64, 56, 3, 1, 1),
    "C128 28x28": (64, 128, 128, 28, 3, 1, 1),
    "C256 14x14": (64, 256, 256, 14, 3, 1, 1),
    "C512 7x7": (64, 512, 512, 7, 3, 1, 1),
    "C32 128x128": (64, 32, 32, 128, 3, 1, 1),
    "3->32 256x256": (64, 3, 32, 256, 3, 1, 1),
    "3->64 k7 stride 2 224x224": (64, 3, 64, 224, 7, 2, 1),
    "1x1 C256 28x28": (64, 256, 256, 28, 1, 1, 1),
    "depthwise C256 28x28": (64, 256, 256, 28, 3, 1, 256),
    "stride 2 C128 56x56": (64, 128, 128, 56, 3, 2, 1),
    "batch 1 C256 14x14": (1, 256, 256, 14, 3, 1, 1),
    "batch 256 C256 14x14": (256, 256, 256, 14, 3, 1, 1),
}


def inputs(shape, experts=4):
    batch, channels, outputs, size, kernel, stride, groups = shape
    x = torch.empty(batch, channels, size, size, dtype=torch.bfloat16, device=META)
    weight = torch.empty(experts, outputs, channels // groups, kernel, kernel, dtype=torch.bfloat16, device=META)
    geometry = Geometry([stride, stride], [kernel // 2] * 4, [1, 1], groups)
    return x.to(memory_format=torch.channels_last), weight, torch.empty(batch, experts, device=META), geometry


def workspace(tensors, run) -> int:
    """Return the peak bytes of `run()` beyond the inputs, the output, and a gradient for each of these."""
    tracker = MemTracker()
    tracker.track_external(*tensors)
    with tracker:
        before = tracker.get_tracker_snapshot("current")[META]["Total"]
        y = run()
        peak = tracker.get_tracker_snapshot("peak")[META]["Total"]
    everyone = (*tensors, y, y)
    return peak - before - sum(tensor.numel() * tensor.element_size() for tensor in everyone)


@pytest.mark.parametrize(("name", "experts"), [*((name, 4) for name in SHAPES), ("C128 28x28", 9), ("C256 14x14", 9)])
def test_workspace_is_at_most_a_quarter_of_the_naive_forms(name, experts):
    x, experts, mixing, geometry = inputs(SHAPES[name], experts)
    stride, padding, dilation, groups = geometry

    def ours():
        y = ops.dynamic_conv2d(x, experts, mixing, None, geometry)
        grad = torch.empty_like(y)
        gradients = ops.dynamic_conv2d_backward(grad, x, experts, mixing, None, geometry, [True, True, True, False])
        assert [gradient.shape for gradient in gradients[:3]] == [x.shape, experts.shape, mixing.shape]
        return y

    def naive():
        leaves = [tensor.requires_grad_() for tensor in (x, experts, mixing)]
        y = dynamic_conv2d.reference(*leaves, None, stride, padding[0], dilation, groups)
        y.backward(torch.empty_like(y))
        return y

    own = workspace((x, experts, mixing), ours)
    problem = problem_of(x, experts, geometry, per_sample=False)
    usual = max(workspace((x, experts, mixing), naive), configs.naive_bytes(problem))
    assert 0 < own <= 0.25 * usual


def test_the_naive_form_allocates_on_a_gpu_what_is_said_of_it():
    """Copies into the layout of a grouped convolution are made there, which meta tensors do not show."""
    (path,) = Path(__file__).parents[2].glob("bench/results/nvidia_h200.json")
    shapes = json.loads(path.read_text(encoding="utf-8"))["dynamic_conv"]["shapes"]
    for shape in shapes_on("cuda"):
        measured = shapes[f"bfloat16 {shape.name}"]["memory_bytes"]["naive"]["extra"]
        assert configs.naive_bytes(shape.problem(torch.bfloat16)) <= 1.1 * measured


class Sizes(TorchDispatchMode):
    """Remembers how many elements the tensors made inside had."""

    def __init__(self):
        super().__init__()
        self.elements = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        self.elements |= {leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)}
        return out


@pytest.mark.parametrize("experts", [4, 12])
@pytest.mark.parametrize("name", ["C512 7x7", "C256 14x14", "batch 256 C256 14x14"])
def test_backward_allocates_neither_a_weight_per_sample_nor_im2col(name, experts):
    x, weight, mixing, geometry = inputs(SHAPES[name], experts)
    grad = ops.dynamic_conv2d(x, weight, mixing, None, geometry)
    with Sizes() as sizes:
        ops.dynamic_conv2d_backward(grad, x, weight, mixing, None, geometry, [True, True, True, False])
    assert weight.numel() in sizes.elements
    assert max(sizes.elements) < len(x) * weight[0].numel()
    im2col = x.numel() * weight[0, 0, 0].numel()
    assert all(size < im2col or size <= weight.numel() for size in sizes.elements)
