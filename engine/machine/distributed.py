"""Several processes that train one model: started by torchrun, one for each device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polychrome.engine.errors import UserError
from polychrome.engine.machine.rendezvous import fresh

# Rank 0 may decode the whole set while the others wait for it.
PATIENCE = timedelta(hours=2)


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes, where torchrun started several, for the length of a `with` block.

    NCCL moves CUDA tensors, Gloo tensors on the CPU.

    Raises:
        UserError: there are more processes on this machine than CUDA devices, or the environment tells of several
            processes, but not how to find the others.
    """
    _join()
    yield
    # Not after an error: the others may be waiting in the middle of something, and torchrun ends them.
    if dist.is_initialized():
        dist.destroy_process_group()


def _join() -> None:
    size = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if dist.is_initialized() or size == "1":
        return
    cuda = torch.cuda.is_available() and torch.cuda.device_count() > 0
    wanted = ("RANK", "MASTER_ADDR", "MASTER_PORT", *(("LOCAL_RANK",) if cuda else ()))
    if missing := [name for name in wanted if not os.environ.get(name)]:
        names = ", ".join(missing)
        raise UserError(f"WORLD_SIZE is {size}, but there is no {names}: start by torchrun, or unset WORLD_SIZE")
    if not size.isdigit():
        raise UserError(f"WORLD_SIZE must be a number of processes, got {size}: start by torchrun, or unset it")
    if cuda:
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            wanted = os.environ.get("LOCAL_WORLD_SIZE", local + 1)
            raise UserError(f"torchrun started {wanted} processes here for {devices} CUDA devices: one for each")
        torch.cuda.set_device(local)
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE, store=fresh(store, rank, size), rank=rank, world_size=size)


def launch() -> str | None:
    """Return torchrun's id of this job, the same after a restart; None without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def is_restarted() -> bool:
    """Return whether torchrun has started this job before and a process failed, on whichever machine; all ask this."""
    return any(everyones(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0))


def rank() -> int:
    """Return this process's number, 0 for a process by itself."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the process that writes files and talks to the user."""
    return rank() == 0


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def summed(*values: Tensor) -> list[Tensor]:
    """Return the sums of scalars over all processes, in their dtypes."""
    if world_size() == 1:
        return list(values)
    packed = torch.stack([value.double() for value in values])
    dist.all_reduce(packed)
    return [total.to(value.dtype) for total, value in zip(packed, values, strict=True)]


def largest(values: Tensor) -> Tensor:
    """Return the elementwise maximum of `values`, of any shape [...], over all processes; in place."""
    if world_size() > 1:
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def everyones(value: Any) -> list:
    """Return every process's `value`, by rank."""
    if world_size() == 1:
        return [value]
    found: list = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def of_main(value: Any) -> Any:
    """Return rank 0's `value`."""
    if world_size() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared)
    return shared[0]


def wait() -> None:
    """Wait until every process has called this function."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Let the first process of each machine do something, such as filling a cache, before the others do it."""
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not first:
        wait()
    try:
        yield
    finally:
        if first:
            wait()


def wrapped(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with gradients averaged over all processes; in a lone process, the model itself."""
    if world_size() == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
        return model
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )


def share_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers, such as the statistics of batch normalisation, which differ by process."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


class Agreement:
    """Flags that any process may raise and that all processes see one call later, so that all act at the same step.

    The flags travel between two calls, so that no process waits for them.
    """

    def __init__(self) -> None:
        self._work, self._shared = None, None

    def __call__(self, *raised: bool) -> tuple[bool, ...]:
        """Raise this process's flags; return the flags raised anywhere by the last call, in a lone process by now."""
        if world_size() == 1:
            return raised
        agreed = (False,) * len(raised)
        if self._work is not None:
            self._work.wait()
            agreed = tuple(map(bool, self._shared.tolist()))
        self._shared = torch.tensor(raised, dtype=torch.int32)
        self._work = dist.all_reduce(self._shared, dist.ReduceOp.MAX, async_op=True)
        return agreed
