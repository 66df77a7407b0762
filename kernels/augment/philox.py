"""Philox4x32-10, a counter-based generator: the numbers depend on key and counter alone (Salmon et al. 2011)."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return four words for each counter; words are int64 tensors or ints below 2**32, counters broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # the low 64 bits of a product are right whatever its sign, and it has no more
        left, right = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> 32 & MASK) ^ c1 ^ k0, right & MASK, (left >> 32 & MASK) ^ c3 ^ k1, left & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def uniforms(indices: Tensor, seed: int, epoch: int, draws: Sequence[int]) -> Tensor:
    """Return float64 [n, draws, 4] in [0, 1) for the images `indices` [n]: by seed, epoch, index and draw alone."""
    numbers = kept(_numbers, tuple(draws), indices.device)
    index = indices.long()[:, None]
    key = seed & MASK, seed >> 32 & MASK
    words = philox((index & MASK, index >> 32 & MASK, torch.full_like(index, epoch & MASK), numbers), key)
    return torch.stack(torch.broadcast_tensors(*words), -1).double() / 2**32


def kept(table: Callable[..., Tensor], *arguments) -> Tensor:
    """Return `table(*arguments)`, kept from call to call; by `torch.compile`'s trace it is made anew."""
    if torch.compiler.is_compiling():
        return table(*arguments)
    return _kept(_fake_mode(), table, *arguments)


def is_traced() -> bool:
    """Return whether tensors are those of a trace: of `torch.compile` or of fake tensors."""
    return torch.compiler.is_compiling() or _fake_mode() is not None


def _fake_mode() -> object | None:
    """Return the mode of fake tensors that is on, whose tensors are no other mode's; None without any."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)


@lru_cache(128)
def _kept(_mode: object | None, table: Callable[..., Tensor], *arguments) -> Tensor:
    return table(*arguments)


def _numbers(draws: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the numbers of draws, int64, on a device: every copy makes the host wait."""
    return torch.tensor(draws, dtype=torch.int64, device=device)
