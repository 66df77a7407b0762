"""The public function: it checks the arguments and picks the implementation."""

from torch import Tensor

from polychrome.kernels.backend import call_reference, chosen_backend
from polychrome.kernels.channel_gate import reference, register  # noqa: F401  (registers the op)
from polychrome.kernels.checks import check_device, check_input, check_shape, check_small_dtype, sizes
from polychrome.kernels.leaves import leaf
from polychrome.kernels.library import call

GATES = ("sigmoid", "softmax")


@leaf
def channel_gate(
    x: Tensor, w1: Tensor | None, b1: Tensor | None, w2: Tensor, b2: Tensor | None, gate: str = "sigmoid"
) -> Tensor:
    """Return x * gate(w2 relu(w1 mean(x) + b1) + b2), squeeze-excitation (Hu et al. 2018; reports C and D).

    Args:
        x: [batch, channels, height, width], float32, float64, float16 or bfloat16; mean is over height and width.
        w1: [hidden, channels] or [hidden, channels, 1, 1]; None leaves a single layer, w2, with no ReLU before it.
        b1: [hidden] or None; None where w1 is.
        w2: [channels, hidden] or [channels, hidden, 1, 1]; hidden is channels where w1 is None.
        b2: [channels] or None. Weights and biases are float32 or x's dtype.
        gate: `sigmoid`, or `softmax` over the channels.

    Returns:
        [batch, channels, height, width] in x's dtype, channels_last if x is. Means, layers and gate stay in float32
        (float64 for float64), under autocast too; only the product is rounded.

    Raises:
        ValueError: a shape or device does not fit, or gate is neither of the two.
        TypeError: a dtype is none of the above.
        RuntimeError: the backend in force cannot run on x's device, or follow a transform of `torch.func`: see
            `use_backend`.
    """
    check_input(x)
    check_gate(gate)
    channels = x.shape[1]
    features = channels
    if w1 is not None:
        _check_layer("w1", w1, "b1", b1, x, hidden=None, channels=channels)
        features = w1.shape[0]
    elif b1 is not None:
        raise ValueError("b1 must be None where w1 is None, got a tensor")
    _check_layer("w2", w2, "b2", b2, x, channels=channels, hidden=features)
    backend = chosen_backend("channel_gate", x)
    if backend == "reference":
        return call_reference(reference.channel_gate, x, w1, b1, w2, b2, gate)
    return call("channel_gate", x, w1, b1, w2, b2, gate, backend)[0]


channel_gate.reference = reference.channel_gate


def check_gate(gate: str) -> None:
    """Raise ValueError unless `gate` is known."""
    if gate not in GATES:
        raise ValueError(f"gate must be one of {', '.join(GATES)}, got {gate!r}")


def _check_layer(name: str, weight: Tensor, bias_name: str, bias: Tensor | None, x: Tensor, **wanted) -> None:
    check_small_dtype(name, weight, x)
    check_device(name, weight, x)
    if weight.dim() == 4 and weight.shape[2:] != (1, 1):
        raise ValueError(f"{name} must be [out, in] or [out, in, 1, 1], got {sizes(weight)}")
    check_shape(name, weight.flatten(1) if weight.dim() == 4 else weight, **wanted)
    if bias is not None:
        check_small_dtype(bias_name, bias, x)
        check_device(bias_name, bias, x)
        check_shape(bias_name, bias, features=weight.shape[0])
