"""A part of the rendezvous store that only the processes alive now share."""

from __future__ import annotations

import time
import uuid

import torch.distributed as dist

PAUSE = 0.01  # seconds between two looks for the others


def fresh(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """Return a part of a store that the processes which call this now share, and no process before them.

    torchrun may keep the store when processes are started anew, with the addresses of processes that are gone, and its
    numbers of restarts differ between machines. So the first process names the part, and tells the name to each other
    process in answer to a word from there.
    """
    own = uuid.uuid4().hex
    if rank != 0:
        store.set(f"hello {rank}", own)
        name = store.get(f"answer {own}").decode()
        store.add(f"met {name}", 1)
        return dist.PrefixStore(name, store)
    answered: set[str] = set()
    while store.add(f"met {own}", 0) < world_size - 1:
        for key in (f"hello {other}" for other in range(1, world_size)):
            # The word may be from a process that is gone: every word is answered, and only living processes come.
            if store.check([key]) and (word := store.get(key).decode()) not in answered:
                store.set(f"answer {word}", own)
                answered.add(word)
        time.sleep(PAUSE)
    return dist.PrefixStore(own, store)
