"""One part of `bench.warm`, in a process of its own: `python -m bench.warm_part NAME`."""

import sys

from bench.stand_in import cuda

# The common Hopper GPUs, with the properties that the rules read.
CARDS = (cuda.Card(), cuda.Card("NVIDIA H100 80GB HBM3", L2_cache_size=50 * 2**20))


def main(name: str) -> int:
    """Launch the kernels of a part on each card."""
    cuda.install(draws=False)
    from polychrome.kernels.dynamic_conv import plan

    for card in CARDS:
        cuda.use(card)
        plan.forget()
        PARTS[name.split()[0]](name)
    return 0


def _op(name: str) -> None:
    """Launch our op at every shape of its benchmark, forward and backward."""
    from bench.gpu import counters
    from bench.measuring import timing

    for call, make in counters.calls():
        if call.startswith(f"{name} "):
            timing.run(make())


def _growth(_: str) -> None:
    import torch

    from bench.measuring import timing
    from bench.measuring.measure import parts_of
    from bench.ops import dynamic_conv as baselines
    from bench.ops.dynamic_conv import data_of, growths_on

    for growth in growths_on("cuda"):
        data = data_of(growth.shape, torch.bfloat16, "cuda")
        timing.run(parts_of(baselines.ours, data.leaves, data.grad, *growth.shape.geometry))


def _tune(name: str) -> None:
    """Launch every candidate of tuning in a dtype."""
    from bench import tune
    from bench.ops.dynamic_conv import data_of
    from polychrome.kernels.dynamic_conv import configs

    device = configs.device_of(0)
    for shape, dtype in tune.calls():
        if str(dtype) == f"torch.{name.split()[1]}":
            data = data_of(shape, dtype, "cuda")
            for regime in tune.regimes(shape.problem(dtype)):
                for candidate in tune.candidates_of(shape, dtype, regime, device):
                    tune.call_of(candidate, data, device)(None)


def _check(_: str) -> None:
    from polychrome.kernels import check

    for case, dtype in check.listed():
        check.check(case, dtype)


def _host_time(_: str) -> None:
    from bench import host_time

    for case in host_time.cases():
        y = case.function(*case.leaves, **case.options)
        y.backward(y)


PARTS = {
    "dynamic_conv": _op,
    "spatial_attention": _op,
    "channel_gate": _op,
    "augment": _op,
    "growth": _growth,
    "tune": _tune,
    "check": _check,
    "host_time": _host_time,
}

if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
