"""A pretended CUDA device: replacements for calls of `torch.cuda`, and of torch with a CUDA device.

`install` makes this process see one Hopper GPU. Its tensors lie in the host's memory and report cuda:0 as their device;
our kernels go through Triton's JIT to the stand-in driver, and the rest runs on the host. So only the calls replaced in
this module, and the kernels' results, are untested until a program runs on a GPU.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from bench.stand_in import driver

DEVICE = torch.device("cuda", 0)
_CPU = torch.device("cpu")
FREE = 8 * 2**30


class Card(NamedTuple):
    """A GPU's properties by torch."""

    name: str = "NVIDIA H200"
    multi_processor_count: int = 132
    L2_cache_size: int = 60 * 2**20
    major: int = 9
    minor: int = 0


def install(run: driver.Run = driver.nothing, card: Card | None = None, draws: bool = True) -> None:
    """Pretend for the rest of this process; `run` computes our kernels' results. `draws`: else random tensors are 0."""
    driver.install(_on_host(run))
    use(card or Card())
    for name, call in _calls().items():
        setattr(torch.cuda, name, call)
    torch.compile = lambda function=None, **_: function if function is not None else torch.compile
    torch.Generator = _Generator
    torch.profiler.profile = _Profile
    torch.autocast = torch.amp.autocast = torch.amp.autocast_mode.autocast = _Autocast
    _plain.update({name: getattr(torch, name) for name in ("is_autocast_enabled", "get_autocast_dtype")})
    for name, plain in _plain.items():
        setattr(torch, name, lambda kind="cuda", plain=plain: plain("cpu" if kind == "cuda" else kind))
    Tensor.is_cuda = property(lambda tensor: _pretending and _real_device(tensor) == _CPU)
    Tensor.device = property(_device_of)
    for name in FACTORIES:
        setattr(torch, name, _made_on_host(getattr(torch, name)))
    for name in METHODS:
        setattr(Tensor, name, _made_on_host(getattr(Tensor, name)))
    if not draws:
        torch.randn, torch.rand, torch.randint = map(_undrawn, (torch.randn, torch.rand, torch.randint))
    Tensor.to, Tensor.cuda = _to, lambda tensor, *_, **__: tensor.clone()


def use(card: Card) -> None:
    """Make torch report another GPU."""
    vars(_properties).update(card._asdict())


_properties = SimpleNamespace()
_pretending = True
_plain: dict[str, object] = {}
_real_device = torch._C.TensorBase.device.__get__


def _device_of(tensor: Tensor) -> torch.device:
    real = _real_device(tensor)
    return DEVICE if _pretending and real == _CPU else real


def _on_host(run: driver.Run) -> driver.Run:
    """Return `run` with tensors that report their real device."""

    def truthful(kernel, grid, arguments) -> None:
        global _pretending
        _pretending = False
        try:
            run(kernel, grid, arguments)
        finally:
            _pretending = True

    return truthful


FACTORIES = (
    *("arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "ones"),
    *("rand", "randint", "randn", "randperm", "tensor", "zeros"),
    *("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"),
)
METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")


def _made_on_host(function: Callable) -> Callable:
    """Return `function` with the host in place of a CUDA device."""

    @wraps(function)
    def make(*args, device=None, **kwargs):
        if device is None:
            return function(*args, **kwargs)
        return function(*args, device=_CPU if device is DEVICE or _is_cuda(device) else device, **kwargs)

    return make


def _undrawn(function: Callable) -> Callable:
    """Return a function that makes zeros without drawing random numbers, which takes most of the time."""

    @wraps(function)
    def make(*args, generator=None, **kwargs):
        sizes = args[1:] if function.__name__ == "randint" else args
        return torch.zeros(*sizes, **kwargs)

    return make


def _to(tensor: Tensor, *args, **kwargs) -> Tensor:
    """Replace Tensor.to; a copy to the pretended device is a copy of the host's tensor."""
    moved = any(_is_cuda(each) for each in (*args, *kwargs.values()))
    args = [_CPU if _is_cuda(each) else each for each in args]
    kwargs = {name: _CPU if _is_cuda(each) else each for name, each in kwargs.items()}
    made = _real_to(tensor, *args, **kwargs)
    return made.clone() if moved and made is tensor else made


_real_to = Tensor.to


def _is_cuda(value) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and (value == "cuda" or value.startswith("cuda:"))
    )


class _Generator(torch._C.Generator):
    """A generator of the host, for any device."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if _is_cuda(torch.device(device)) else device)


_HostAutocast = torch.autocast


class _Autocast(_HostAutocast):
    """Autocast of the host, in place of CUDA's autocast."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


class _Profile(torch.profiler.profile):
    """A profiler of the host: without a driver, CUDA's logs the stack of every op, milliseconds each."""

    def __init__(self, *, activities=None, **kwargs):
        super().__init__(activities=[torch.profiler.ProfilerActivity.CPU], **kwargs)


class _Event:
    """A moment of the host's clock."""

    def __init__(self, **_):
        self.at = None

    def record(self, *_) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: "_Event") -> float:
        return (other.at - self.at) * 1e3

    def synchronize(self) -> None:
        pass


class _Stream:
    """A stream on which all work is done at once."""

    def wait_stream(self, *_) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _calls() -> dict[str, object]:
    """Return the replacements for calls of `torch.cuda`, by name."""

    @contextmanager
    def inside(*_):
        yield

    def nothing():
        return lambda *_, **__: None  # new for each name: Dynamo keeps a rule for every function of torch.cuda

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": inside,
        "get_device_name": lambda *_: _properties.name,
        "get_device_properties": lambda *_: _properties,
        "get_device_capability": lambda *_: (_properties.major, _properties.minor),
        "is_bf16_supported": lambda *_, **__: True,
        "synchronize": nothing(),
        "Event": _Event,
        "Stream": _Stream,
        "stream": inside,
        "current_stream": lambda *_: _Stream(),
        "_sleep": nothing(),
        "mem_get_info": lambda *_: (FREE, FREE),
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": nothing(),
        "empty_cache": nothing(),
        "manual_seed_all": nothing(),
    }
