"""`torch.export` keeps the batch free in every op and layer, whichever way it traces them."""

import io
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim

from polychrome import kernels
from polychrome.kernels import use_backend
from polychrome.kernels.modules import DynamicConv2d, ODConv2d
from tests.grids import grid, usual
from tests.kernels.op_calls import function_arguments, public
from tests.kernels.oracle import randn
from tests.kernels.test_tracing import MODULES, Styled

LAYERS = {
    **MODULES,
    "four attentions, one kernel": lambda: ODConv2d(6, 4, 1, experts=1),
    "four attentions, depthwise": lambda: ODConv2d(6, 6, 3, groups=6),
    "styled, not normalised": lambda: Styled(6, demodulate=False),
}
# Calls of other kinds than those of `function_arguments`, and which of the arguments have a batch.
ONE_KERNEL = {
    "convolution": (kernels.per_sample_conv2d, randn(4, 6, 3, 3), None, {"padding": (1, 0, 2, 1)}),
    "reflecting": (kernels.per_sample_conv2d, randn(4, 6, 3, 3), None, {"padding": 1, "padding_mode": "reflect"}),
    "transposed": (kernels.per_sample_conv_transpose2d, randn(6, 4, 3, 3), None, {"stride": 2}),
}
# Arguments without a batch, by place.
SHARED = {"dynamic": (1, 3), "modulated": (1,), "spatial_attention": (1, 2), "channel_gate": (1, 2, 3, 4)}


class Calls(nn.Module):
    def __init__(self, function, options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, x, *others):
        return self.function(x, *others, **self.options)


def assert_batch_is_free(module, arguments, shared=(), tolerance=1e-4):
    """Assert that the exported program's batch has a symbol, and that it computes other batches as `module` does."""
    batch = Dim("batch", min=1, max=64)
    free = [isinstance(each, torch.Tensor) and place not in shared for place, each in enumerate(arguments)]
    sizes = tuple({0: batch} if each else None for each in free)
    shapes = (sizes[0], sizes[1:]) if isinstance(module, Calls) else sizes
    program = torch.export.export(module, tuple(arguments), dynamic_shapes=shapes, strict=False)
    (result,) = next(node for node in program.graph.nodes if node.op == "output").args[0]
    assert isinstance(result.meta["val"].shape[0], torch.SymInt), result.meta["val"].shape
    for count in (1, 5):
        given = [torch.cat([each, each])[:count] if f else each for each, f in zip(arguments, free, strict=True)]
        expected = module(*given)
        torch.testing.assert_close(program.module()(*given), expected, rtol=tolerance, atol=tolerance)


@grid(
    lambda function, backend, **_: (function.__name__, backend) != ("augment", "reference"),  # sizes depend on values
    strength=1,
    function={f.__name__: f for f in public()},
    backend=["auto", "reference"],
    dtype=[torch.float32, torch.bfloat16],
)
def test_a_functions_batch_is_free(function, backend, dtype):
    name = function.__name__
    arguments, options = function_arguments(name, dtype)
    shared = next((places for start, places in SHARED.items() if name.startswith(start)), ())
    with use_backend(backend):
        assert_batch_is_free(Calls(function, options), arguments, shared, 1e-4 if dtype == torch.float32 else 0.05)


@grid(call=list(ONE_KERNEL), dtype=[torch.float32, torch.bfloat16])
def test_the_batch_of_one_kernel_for_all_samples_is_free(call, dtype):
    function, weight, bias, options = ONE_KERNEL[call]
    x = randn(3, 6, 7, 8, dtype=dtype)
    assert_batch_is_free(Calls(function, options), [x, weight.to(dtype), bias], shared=(1,), tolerance=0.05)


def test_the_number_of_kernels_for_one_image_is_free():
    x, weight = randn(6, 7, 8), randn(3, 4, 6, 3, 3)
    assert_batch_is_free(Calls(kernels.per_sample_conv2d, {}), [x, weight], shared=(0,))


@pytest.mark.parametrize("layer", usual(LAYERS, *(name for name in LAYERS if ", " not in name)))
def test_a_layers_batch_is_free(layer):
    torch.manual_seed(0)
    assert_batch_is_free(LAYERS[layer]().eval(), [randn(3, 6, 7, 8)])


class Counting(nn.Module):
    """Asks for the batch in a way that fixes it, unless Dynamo traces."""

    def __init__(self):
        super().__init__()
        self.conv = DynamicConv2d(6, 4, 3)

    def forward(self, x):
        return self.conv(x).reshape(len(x), -1)


def test_a_model_that_only_dynamo_can_trace_is_written_to_onnx_with_a_free_batch():
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model, stream = Counting().eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (randn(2, 6, 7, 8),), stream, input_names=["x"], dynamic_shapes=({0: "batch"},), verbose=False
        )
    session, x = onnxruntime.InferenceSession(stream.getvalue()), randn(5, 6, 7, 8, seed=1)
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)
