"""The predictions of a shape, pass by pass."""

from bench.predict import model, passes
from polychrome.kernels.launch import Launch


def predictions(index: int) -> list[dict]:
    """Return a row for each pass of shape number `index`."""
    return [row_of(each) for each in passes.shapes()[index].passes()]


def row_of(each: passes.Pass) -> dict:
    """Return the predicted times of a pass, by launch, beside its bound."""
    memory = model.Memory(each.results)
    launches = []
    for launch in each.launches:
        if isinstance(launch, Launch):
            work = _work(launch)
            time = model.time_of(work, memory.moved(launch.arguments, work))
            found = {"kernel": work.kernel, "us": round(time.us, 2), "limit": time.limit, "blocks": work.blocks}
        else:
            us = model.library_us(launch, memory.moved_by(launch))
            found = {"kernel": launch.name, "us": round(us, 2), "limit": "torch"}
        launches.append(found)
    bound = round(model.bound_us(each.least_bytes, each.least_flops), 2)
    return {"op": each.op, "shape": each.shape, "pass": each.name, "bound_us": bound, "launches": launches}


_known: dict[str, model.Work] = {}


def _work(launch: Launch) -> model.Work:
    """Return a launch's work, computed once for equal launches."""
    sizes = [(tuple(a.shape), a.stride(), a.dtype) if hasattr(a, "shape") else a for a in launch.arguments]
    key = str((launch.kernel.__name__, launch.grid, sizes, launch.options))
    if key not in _known:
        _known[key] = model.work_of(launch)
    return _known[key]
