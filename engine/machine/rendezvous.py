"""A part of the rendezvous store that only the processes alive now share."""

from __future__ import annotations

import time
import uuid

import torch.distributed as dist

PAUSE = 0.01  # seconds between two polls


def fresh(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """Return a part of a store that only the processes which now call this function share.

    After a restart, torchrun may reuse the store with the addresses of dead processes, and its counts of restarts
    differ between machines. The first process therefore names the part, and sends the name to each other process in
    answer to a message.
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
            # The message may be from a dead process: every message is answered, and only living processes join.
            if store.check([key]) and (word := store.get(key).decode()) not in answered:
                store.set(f"answer {word}", own)
                answered.add(word)
        time.sleep(PAUSE)
    return dist.PrefixStore(own, store)
