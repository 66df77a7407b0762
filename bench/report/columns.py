"""What the tables of each section show: a column is a function from an entry to the text of a cell."""

from collections.abc import Callable
from typing import NamedTuple

from bench.report import targets
from bench.report.targets import Entry


class Columns(NamedTuple):
    """The columns of a section's tables after the `first`, each a function from entry to cell, and what they mean."""

    cells: dict[str, Callable[[Entry], str]]
    legend: str
    first: str = "shape"


def ratio(value: float | None) -> str:
    """Return the text of a ratio, "-" for None."""
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def three_digits(value: float) -> str:
    """Return the text of a time in ms, or of a rate."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}" if value >= 1 else f"{value:.3f}"


def best(entry: Entry) -> tuple[str, float] | None:
    """Return the name of the fastest baseline and its time over ours; None where no baseline ran."""
    if not set(entry["ms"]) - {"ours", "static"}:
        return None
    name, speedup = targets.best_baseline(entry)
    return name.replace(" fp32", "32").removesuffix(" no graphs"), speedup


def _ours(part: str) -> Callable[[Entry], str]:
    return lambda entry: three_digits(entry["ms"]["ours"][part])


def _over(name: str) -> Callable[[Entry], str]:
    return lambda entry: ratio(targets.speedup(entry, name))


def _share(direction: str) -> Callable[[Entry], str]:
    return lambda entry: f"{100 * targets.share_of_bound(entry, direction):.0f}"


def _memory(usual: str) -> Callable[[Entry], str]:
    return lambda entry: ratio(targets.extra_memory(entry, usual) if entry.get("memory_bytes") else None)


def _static(entry: Entry) -> str:
    return ratio(targets.to_static(entry) if "static" in entry["ms"] else None)


def _to_unfused(entry: Entry) -> str:
    error = f" +-{entry['ratio_error']:.3f}" if "ratio_error" in entry else ""
    return f"{targets.to_unfused(entry):.3f}{error}"


def _rate(way: str, part: str) -> Callable[[Entry], str]:
    return lambda entry: three_digits(targets.rate(entry, way, part)) if way in entry["ms"] else "-"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _accuracies(found: dict[str, float]) -> str:
    return ", ".join(f"{model} {_percent(share)}%" for model, share in found.items()) or "-"


_TIMES = {"fwd ms": _ours("forward"), "bwd ms": _ours("backward"), "both ms": _ours("both")}
_SHARES = {"% fwd": _share("forward"), "% bwd": _share("backward")}
_BEST = {
    "best": lambda entry: ratio((best(entry) or (None, None))[1]),
    "which": lambda entry: (best(entry) or ("-",))[0],
}
_MEMORY_BOUND = Columns(
    {
        **_TIMES,
        "eager": _over("eager"),
        "compiled": lambda entry: ratio(targets.compiled_speedup(entry)),
        **_BEST,
        **_SHARES,
        "memory": _memory("eager"),
    },
    "shape: batch x channels x height x width. ms: ours. eager (the definition), compiled (torch.compile with "
    "max-autotune, the faster with CUDA graphs or without), best (which): their time over ours, forward + backward. "
    "% fwd, % bwd: the least possible time over ours. memory: ours over eager's, beyond inputs and results.",
)
OPS = {
    "dynamic_conv": Columns(
        {
            **_TIMES,
            "naive fp32": _over("naive fp32"),
            "naive": _over("naive"),
            **_BEST,
            "static": _static,
            **_SHARES,
            "memory": _memory("naive"),
        },
        "ms: ours. naive fp32, naive, best (which): their time over ours, forward + backward. static: our time over a "
        "plain convolution's. % fwd, % bwd: the least possible time over ours. memory: ours over naive's, beyond "
        "inputs and results.",
    ),
    "spatial_attention": _MEMORY_BOUND,
    "channel_gate": _MEMORY_BOUND._replace(
        legend="hidden N: two layers with biases; single: one layer without. " + _MEMORY_BOUND.legend
    ),
    "augment": Columns(
        {
            "ms": _ours("forward"),
            "images/s": lambda entry: f"{targets.images_per_second(entry):,.0f}",
            **{name: _over(name) for name in ("eager", "torchvision", "workers", "dali")},
            "% bound": _share("forward"),
        },
        "shape: batch x height x width x channels of the uint8 images, and the side of the output; random resized "
        "crop, flip and normalisation; whole: also rotation, brightness, contrast, gamma, grayscale, cutout and "
        "channel subsets. ms, images/s: ours. eager (the definition), torchvision (v2 functions on the device, sample "
        "by sample), workers (the same in CPU processes, in steady state), dali (DALI's operators): their time over "
        "ours. % bound: the least possible time over ours.",
    ),
}
GROWTH = {
    "growth": Columns(
        {
            "ms": _ours("both"),
            **{name: _over(name) for name in ("naive", "stacked", "loop", "unfold", "vmap", "timm")},
            "static": _static,
        },
        "dynamic_conv2d with 256 channels in and out and a 3x3 kernel, on maps of 14x14 with 4 experts unless these "
        "grow. ms: ours, forward + backward. naive to timm: their time over ours. static: our time over a plain "
        "convolution's.",
        "along",
    ),
}
FUSE = {
    "fuse": Columns(
        {
            "ms": _ours("both"),
            "img/s": _rate("ours", "both"),
            "unfused img/s": _rate("unfused", "both"),
            "time, fused / unfused": _to_unfused,
        },
        "timm's tf_efficientnet_cc_b0_4e with random weights: milliseconds of a batch and images a second after "
        "kernels.fuse, and images a second before it. training: forward, loss and all gradients. fused / unfused: the "
        "median over rounds of the times' ratio in the same round, and its standard error.",
        "what",
    ),
}
ENGINE = {
    "training": Columns(
        {
            "batch": lambda entry: str(entry["batch"]),
            "step img/s": _rate("ours", "step"),
            "reports step": _rate("reports", "step"),
            "ratio step": lambda entry: ratio(targets.to_other(entry, "reports", "step")),
            "epoch img/s": _rate("ours", "epoch"),
            "reports epoch": _rate("reports", "epoch"),
            "ratio epoch": lambda entry: ratio(targets.to_other(entry, "reports", "epoch")),
            "timm epoch": _rate("timm", "epoch"),
            "ratio to timm": lambda entry: ratio(targets.to_other(entry, "timm", "epoch")),
            "% input": lambda entry: _percent(targets.input_share(entry)),
            "% idle": lambda entry: _percent(entry.get("gpu_idle")),
        },
        "Images a second of ours, of the reports' way (float32, eager, NCHW, torchvision in a DataLoader with a worker "
        "per core), and of a plain loop over timm's loader (eager, autocast, channels_last, a worker per core), an "
        "epoch of each in turn. step: from the batch to the new weights; for ours that has crop, "
        "resize and normalisation in it where images are kept on the GPU. epoch: the training part, input and all. "
        "% input: the time that the kept images alone take for a batch, over that of a step. % idle: the share of a "
        "step in which the GPU runs nothing.",
        "model",
    ),
    "input": Columns(
        {
            "images/s": _rate("ours", "both"),
            "to torch": _over("torch"),
            "workers": lambda entry: str(entry["workers"] or "-"),
        },
        "JPEGs of 500x375 pixels, a random crop resized to 256 pixels, mirrored, normalised; nothing else runs. to "
        "torch: the rate over the torch backend's.",
        "source",
    ),
    "start": Columns(
        {"seconds": lambda entry: f"{targets.seconds(entry):.1f}", "images": lambda entry: f"{entry['images']:,}"},
        "Seconds from the start of the process to the first step of its training; the images of all splits are decoded "
        "in the first start and read from the disk cache in the second.",
        "start",
    ),
    "processes": Columns(
        {
            "images/s": _rate("ours", "both"),
            "one process": _rate("one", "both"),
            "ratio": _over("one"),
        },
        "Images a second of resnet34 at 84 pixels, batches of 64, on two cores: by two processes with one thread each "
        "(torchrun, Gloo), and by one process with two threads.",
        "processes",
    ),
}
COMMANDS = {
    "commands": Columns(
        {
            "seconds": lambda entry: f"{targets.seconds(entry):.2f}",
            "runs": lambda entry: str(entry["runs"]),
            "peak MB": lambda entry: f"{entry['peak_bytes'] / 1e6:,.0f}" if "peak_bytes" in entry else "-",
            "accuracy": lambda entry: _accuracies(entry.get("accuracy", {})),
        },
        "Whole commands, from start to exit. task1 from nothing: `python -m train.run task1` with an empty cache: "
        "generate the set, scan it, train and test both models, write the report; accuracy: of these on the test "
        "images in RGB. peak: of the process's own memory.",
        "command",
    ),
}
SECTIONS = OPS | GROWTH | FUSE | ENGINE | COMMANDS
ON_CPU = "processes"  # the section that is for two cores of a CPU
