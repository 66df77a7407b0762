"""The targets of each section of the results, and the verdicts on a run."""

from collections.abc import Callable
from statistics import geometric_mean
from typing import NamedTuple

from bench.machine import H200
from bench.measuring.record import NOT_ASKED
from bench.report import metrics
from bench.report.metrics import Entry, Metric, is_small, ours_over, over_ours, share_of_bound

# Microseconds of the host beyond the launches, for a call that records gradients, and with its backward pass.
HOST_US = {"forward": 30, "both": 100}
# The training of task 1 that is extrapolated from a measured epoch.
EPOCHS, IMAGES = 25, 63_325
INFERENCE = ("float32 inference", "bfloat16 inference")


class Target(NamedTuple):
    """The `least` or `most` that a metric may be at every entry of a section, or on geometric `mean`.

    where: whether an entry counts. names: the keys of the entries that count, if not all.
    """

    what: str
    metric: Metric
    least: float | None = None
    most: float | None = None
    where: Callable[[Entry], bool] = lambda entry: True
    names: tuple[str, ...] = ()
    mean: bool = False


class Verdict(NamedTuple):
    """A target in words, the measured value, and whether the target is met: None if that is not measured.

    partly: whether the target is met as far as it is measured, and not measured at every entry.
    """

    demand: str
    measured: str
    met: bool | None
    partly: bool = False


def verdicts(name: str, section: dict) -> list[Verdict]:
    """Return the verdicts on a section of results, "dynamic_conv" for example."""
    return [_verdict(target, section["shapes"]) for target in TARGETS[name].get(section["kind"], ())]


def _verdict(target: Target, entries: dict[str, Entry]) -> Verdict:
    chosen = {key: entry for key, entry in entries.items() if key in (target.names or entries) and target.where(entry)}
    values = {key: value for key, entry in chosen.items() if (value := target.metric(entry)) is not None}
    sign, limit, worst = (">=", target.least, min) if target.most is None else ("<=", target.most, max)
    demand = f"{target.what}: {'geometric mean ' * target.mean}{sign} {limit:g}"
    if not values:
        return Verdict(demand, "-", None)
    # A baseline that cannot run at a shape leaves nothing to measure there.
    lacking = sum(NOT_ASKED in entry.get("skipped", {}).values() for key, entry in chosen.items() if key not in values)
    lacking += len(set(target.names) - entries.keys())
    if target.mean:
        values = {"": geometric_mean(values.values())}
    missed = sum(worst(value, limit) != limit for value in values.values())
    at = worst(values, key=values.get)
    where = "" if target.mean else f" at {at}; {missed} of {len(values)} miss"
    if lacking:
        where += f"; {lacking} not measured"
    open_ = lacking > 0 and (target.mean or not missed)
    return Verdict(demand, f"{values[at]:.2f}{where}", None if open_ else missed == 0, open_ and not missed)


def _launches(direction: str, launches: int, share: float) -> Target:
    """Return the target that a small call takes no longer than `launches` launches plus the bound over `share`."""
    return Target(
        f"bound under {metrics.SMALL_US:g} us: us beyond the bound at {share:.0%} {direction}, "
        f"against {launches} launches",
        metrics.beyond_bound(direction, share),
        most=launches * H200.launch_us,
        where=is_small,
    )


def _is_large(entry: Entry) -> bool:
    return not is_small(entry)


def _is_of_28_pixels(entry: Entry) -> bool:
    """Return whether a map on a CPU has 28 x 28 pixels or more, whose forward pass moves 9.6 MB."""
    return entry["bytes"]["forward"] >= 8e6


def _pixels(least: int, below: float = float("inf")) -> Callable[[Entry], bool]:
    return lambda entry: least <= entry["pixels"] < below


def _shares(size: str, forward: float, backward: float, where: Callable[[Entry], bool]) -> list[Target]:
    """Return the targets for the share of the bound, of calls that are not bound by their launches."""
    return [
        Target(
            f"share of the bound {direction}, {size}",
            share_of_bound(direction),
            least,
            where=lambda entry: where(entry) and _is_large(entry),
        )
        for direction, least in {"forward": forward, "backward": backward}.items()
    ]


def _has(**wanted: object) -> Callable[[Entry], bool]:
    return lambda entry: all(entry[name] == value for name, value in wanted.items())


def _is_small_bf16(entry: Entry) -> bool:
    return entry["pixels"] <= 196 and entry["dtype"] == "bfloat16"


def _thousands(entry: Entry) -> float:
    return metrics.rate(part="forward")(entry) / 1e3


def _minutes(entry: Entry) -> float:
    return EPOCHS * IMAGES / metrics.rate(part="epoch")(entry) / 60


_ODCONV = ("bfloat16 ODConv C256 14x14",)
_FEW_PIXELS = tuple(
    f"{dtype} ODConv {shape}" for dtype in ("bfloat16", "float32") for shape in ("C256 14x14", "C512 7x7")
)
_PENALTY = ("float32 penalty step, 64 px", "bfloat16 penalty step, 64 px")
_ODCONV_MEMORY = Target(
    "memory of ODConv of 3x3 at 14x14 and below over the public form's",
    metrics.peak_memory("public"),
    most=0.25,
    names=_FEW_PIXELS,
)
_28, _14, _7 = _pixels(784), _pixels(196, 784), _pixels(0, 196)
_FEATURE_MAPS = {
    "cuda": [
        Target("eager / ours on every shape", over_ours("eager"), 3),
        Target("compiled / ours on every shape", metrics.compiled_over_ours, 1.3),
        Target("slower than no baseline on any shape", metrics.best_over_ours, 1),
        *_shares("large maps", 0.8, 0.7, _is_large),
        _launches("forward", 3, 0.8),
        _launches("backward", 4, 0.7),
    ],
    "cpu": [
        Target("ours / eager on every shape", ours_over("eager"), most=1.03),
        Target("eager / ours, 28x28 and above", over_ours("eager"), 1.5, where=_is_of_28_pixels),
    ],
}
_START = [Target("seconds before the first step", metrics.seconds, most=5, names=("second start",))]
_PROCESSES = [Target("two processes / one with two threads, images/s", over_ours("one"), 0.85)]
_COMMANDS = [
    Target("seconds to start", metrics.seconds, most=2, names=("import train.run", "--help")),
    Target("seconds of task1 from nothing", metrics.seconds, most=180, names=("task1 from nothing",)),
    Target("its peak memory, GB", lambda e: e["peak_bytes"] / 1e9, most=3, names=("task1 from nothing",)),
    Target("the least of its accuracies", lambda e: min(e["accuracy"].values()), 0.5, names=("task1 from nothing",)),
]
_FASTEST_FORM = [
    Target("best baseline / ours on every shape", metrics.best_over_ours, 0.97),
    Target("best baseline / ours", metrics.best_over_ours, 1, mean=True),
]
# By section and by the kind of the device.
TARGETS: dict[str, dict[str, list[Target]]] = {
    "dynamic_conv": {
        "cuda": [
            Target("float32 naive / ours, forward + backward", over_ours("naive fp32"), 10, mean=True),
            Target("same-dtype naive / ours, forward + backward", over_ours("naive"), 5, mean=True),
            Target("best baseline / ours on every shape", metrics.best_over_ours, 1.3),
            Target("slower than no baseline on any shape", metrics.best_over_ours, 1),
            # At 14x14 every weight is made and read for 196 pixels, and at 7x7 each product is made for all experts.
            *_shares("28x28 and above", 0.6, 0.5, _28),
            *_shares("14x14", 0.35, 0.3, _14),
            *_shares("7x7", 0.15, 0.15, _7),
            _launches("forward", 2, 0.6),
            _launches("backward", 5, 0.5),
            Target("ours / static convolution, 28x28 and above", ours_over("static"), most=1.25, where=_28),
            Target("ours / static convolution, 14x14", ours_over("static"), most=2, where=_14),
            Target("ours / static convolution, 7x7", ours_over("static"), most=4, where=_7),
            Target("memory beyond inputs and results / naive's", metrics.extra_memory("naive"), most=0.25),
            *(
                Target(f"host time of {said} beyond the launches, us", metrics.host_overhead(part), most=HOST_US[part])
                for part, said in {"forward": "forward", "both": "forward + backward"}.items()
            ),
        ],
        "cpu": [
            *_FASTEST_FORM,
            Target("bfloat16 naive / ours, 14x14 and below", over_ours("naive"), 2, where=_is_small_bf16, mean=True),
        ],
    },
    "spatial_attention": _FEATURE_MAPS,
    "channel_gate": _FEATURE_MAPS,
    "augment": {
        "cuda": [
            Target(
                "share of the bound forward, plain recipe", share_of_bound("forward"), 0.6, where=_has(recipe="plain")
            ),
            Target("thousand images a second at 224 px, 3 channels", _thousands, 200, where=_has(channels=3)),
        ],
        "cpu": [Target("ours / torchvision on every shape", ours_over("torchvision"), most=1.03)],
    },
    "growth": {"cpu": _FASTEST_FORM},
    "fuse": {
        "cuda": [
            Target("training in bfloat16, unfused / fused", over_ours("unfused"), 2, names=("bfloat16 training",)),
            Target("inference, unfused / fused", over_ours("unfused"), 1, names=INFERENCE),
        ],
        "cpu": [
            Target(
                "fused / unfused, training and inference in each dtype, in the same round",
                metrics.in_same_round("unfused"),
                most=1.03,
            ),
        ],
    },
    "layers": {
        "cuda": [
            Target("ODConv of 3x3 at 14x14, public / ours", over_ours("public"), 2, names=_ODCONV),
            Target("step with a gradient penalty, public / ours", over_ours("public"), 1.5, names=_PENALTY),
            _ODCONV_MEMORY,
        ],
        "cpu": [
            Target("bfloat16 ODConv of 3x3 at 14x14, public / ours", over_ours("public"), 2, names=_ODCONV),
            Target(
                "step with a gradient penalty, ours / public, in the same round",
                metrics.in_same_round("public"),
                most=1,
                names=_PENALTY,
            ),
            _ODCONV_MEMORY,
        ],
    },
    "training": {
        "cuda": [
            Target("epoch, reports' way / ours, each model", over_ours("reports", "epoch"), 8),
            Target("input from cached images alone / step", metrics.input_share, most=0.05),
            Target("idle share of a step in the second epoch", metrics.gpu_idle, most=0.1),
            Target(
                f"{EPOCHS} epochs of {IMAGES:,} images at 256 px, extrapolated from measured epochs, minutes",
                _minutes,
                most=3,
            ),
        ],
        "cpu": [
            Target(
                "bfloat16 epoch of resnet34 at 84 px, reports' way / ours",
                over_ours("reports", "epoch"),
                2,
                where=_has(dtype="bfloat16"),
                names=("resnet34 84 px",),
            )
        ],
    },
    "input": {
        "cuda": [Target("DALI on the GPU / torch with 16 workers", over_ours("torch"), 3, names=("dali gpu",))],
    },
    "start": {"cuda": _START, "cpu": _START},
    "processes": {"cuda": _PROCESSES, "cpu": _PROCESSES},
    "commands": {"cuda": _COMMANDS, "cpu": _COMMANDS},
}
