"""The attention that mixes the experts of a layer, and the schedule of its temperature."""

import math

import torch
from torch import Tensor, nn

from polychrome.kernels.channel_gate.reference import linear
from polychrome.kernels.checks import check_float, check_shape
from polychrome.kernels.leaves import leaf
from polychrome.kernels.modules.layers import Lasting, are_plain, checked_size, layered, parameters_of, wide
from polychrome.kernels.tensors import wide_dtype, without_autocast

ROUTINGS = ("softmax", "sigmoid")


class Tempered(Lasting):
    """A module whose logits are divided by a temperature, a buffer that a schedule sets.

    Raises:
        ValueError: the temperature is not positive.
    """

    # Buffers set by a schedule, not by training: a moving average of a model's weights has to copy them.
    SCHEDULED = ("temperature",)
    LASTING = "temperature"

    def __init__(self, temperature: float, device=None):
        super().__init__()
        check_temperature("temperature", temperature)
        self.first_temperature = float(temperature)
        self.register_buffer("temperature", self._first(device, torch.float32))

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        if prefix + "temperature" not in state_dict:
            given = (value for name, value in state_dict.items() if name.startswith(prefix))
            place = next((value.device for value in given if isinstance(value, Tensor) and not value.is_meta), "cpu")
            own = self.temperature
            state_dict[prefix + "temperature"] = self._first(place, own.dtype) if own.is_meta else own
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _first(self, device, dtype: torch.dtype) -> Tensor:
        return torch.tensor(self.first_temperature, dtype=dtype, device=device)


class ExpertAttention(Tempered):
    """The mixing weights of a `DynamicConv2d`: [batch, channels, height, width] -> [batch, experts].

    softmax or sigmoid of `fc2(relu(fc1(mean over pixels))) / temperature`. Everything is computed in float32 (float64
    for float64), under autocast too. State dict and arguments: see `DynamicConv2d`.

    Raises:
        ValueError: a size, the routing or the temperature is out of range.
    """

    def __init__(
        self,
        channels: int,
        experts: int,
        routing: str = "softmax",
        hidden_channels: int | None = None,
        temperature: float = 1.0,
        device=None,
        dtype=None,
    ):
        super().__init__(temperature, device)
        if routing not in ROUTINGS:
            raise ValueError(f"routing must be {' or '.join(map(repr, ROUTINGS))}, got {routing!r}")
        channels, experts = checked_size("channels", channels, least=1), checked_size("experts", experts, least=1)
        if hidden_channels is None:
            hidden_channels = channels // 4 + 1 if routing == "softmax" else 0
        hidden_channels = checked_size("hidden_channels", hidden_channels, least=0)
        self.routing = routing
        made = {"device": device, "dtype": dtype}
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1, bias=False, **made) if hidden_channels else None
        self.fc2 = nn.Conv2d(hidden_channels or channels, experts, 1, **made)

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        for name in (f"{prefix}fc1.weight", f"{prefix}fc2.weight"):
            if isinstance(value := state_dict.get(name), Tensor) and value.dim() == 3:  # of an nn.Conv1d
                state_dict[name] = value.unsqueeze(3)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def reset_parameters(self) -> None:
        """Reinitialise the parameters and reset the temperature to the constructor's."""
        for layer in self.children():
            layer.reset_parameters()
        self.temperature.fill_(self.first_temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixing weights in float32 (float64 for float64); softmax's sum to one."""
        if are_plain(self.fc1, self.fc2, x):
            layers = (*parameters_of(self.fc1), *parameters_of(self.fc2))
            return _mixing(x, *layers, self.temperature, self.routing)
        with without_autocast(x):
            return _routed(layered(self.fc1, self.fc2, x), self.temperature, self.routing)

    def extra_repr(self) -> str:
        return f"routing={self.routing!r}"


def anneal_temperature(
    model: nn.Module, epoch: float, epochs: float = 10, start: float = 30.0, end: float = 1.0
) -> float:
    """Set the temperature of every dynamic convolution in `model` for `epoch`, which counts from 0, and return it.

    It falls linearly from `start` at epoch 0 to `end` at `epochs` and stays there (Chen et al. 2020: 30 to 1 in ten
    epochs). Fractions of an epoch anneal per step. The buffers change in place: a compiled model is not recompiled, and
    CUDA graphs see the new value.

    Raises:
        ValueError: `epoch` is negative, or `epochs`, `start` or `end` is not positive.
    """
    if not (epoch >= 0 and epochs > 0):
        raise ValueError(f"epoch must be at least 0 and epochs above 0, got epoch={epoch!r}, epochs={epochs!r}")
    check_temperature("start", start)
    check_temperature("end", end)
    temperature = start + (end - start) * min(epoch / epochs, 1)
    for module in model.modules():
        if isinstance(module, Tempered):
            module.temperature.fill_(temperature)
    return temperature


def _mixing(x: Tensor, w1, b1, w2, b2, temperature: Tensor, routing: str) -> Tensor:
    """Return the mixing weights of an `ExpertAttention` with plain layers, [batch, experts]; w1 may be None."""
    check_float("x", x)
    channels = (w2 if w1 is None else w1).shape[1]
    check_shape("x", x, batch=None, channels=channels, height=None, width=None)
    with without_autocast(x):
        features = x.mean((2, 3), dtype=wide_dtype(x.dtype))
        if w1 is not None:
            features = linear(features, w1, b1).relu()
        return _routed(linear(features, w2, b2), temperature, routing)


@leaf
def _routed(logits: Tensor, temperature: Tensor, routing: str) -> Tensor:
    """Return the mixing weights of logits [batch, experts] or [batch, experts, 1, 1]."""
    logits = wide(logits.flatten(1)) / temperature
    return logits.softmax(1) if routing == "softmax" else logits.sigmoid()


def check_temperature(name: str, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"{name} must be a positive number, got {temperature!r}")
