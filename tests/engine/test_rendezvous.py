"""Where several processes meet."""

from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from polychrome.engine.machine.rendezvous import fresh


def test_only_those_that_come_now_share_what_they_write():
    """Three lives of three processes each over one store; a process of the second never comes to it."""
    store = dist.HashStore()

    def life(number):
        with ThreadPoolExecutor(3) as pool:
            parts = list(pool.map(lambda rank: fresh(store, rank, 3), range(3)))
        for rank, part in enumerate(parts):
            assert not part.check([str(rank)])
            part.set(str(rank), f"{number} {rank}")
        for part in parts:
            assert [part.get(str(rank)).decode() for rank in range(3)] == [f"{number} {rank}" for rank in range(3)]

    life(1)
    store.set("hello 1", "the word of a process that was killed before it was answered")
    life(2)
    life(3)


def test_a_process_that_comes_late_is_waited_for():
    store = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fresh, store, 0, 2)
        second = pool.submit(fresh, store, 1, 2)
        second.result(10).set("key", "value")
        assert first.result(10).get("key") == b"value"
