"""The columns of each section's tables: a column is a function from an entry to the text of a cell."""

from collections.abc import Callable
from typing import NamedTuple

from bench.report import metrics
from bench.report.metrics import Entry, Metric

Cell = Callable[[Entry], str]


class Columns(NamedTuple):
    """The columns of a section's tables after column `first`, each a function from entry to cell, and their legend."""

    cells: dict[str, Cell]
    legend: str
    first: str = "shape"


def ratio(value: float) -> str:
    """Return the text of a ratio."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def three_digits(value: float) -> str:
    """Return the text of a time in ms, or of a rate."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}" if value >= 1 else f"{value:.3f}"


def percent(share: float) -> str:
    """Return the text of a share in percent, without the sign."""
    return f"{100 * share:.1f}"


def cell(metric: Metric, text: Callable[[float], str] = ratio) -> Cell:
    """Return the column of a metric, "-" where an entry lacks it."""

    def shown(entry: Entry) -> str:
        value = metric(entry)
        return "-" if value is None else text(value)

    return shown


def _time(part: str) -> Cell:
    return cell(metrics.time("ours", part), three_digits)


def _over_ours(way: str, part: str = "both") -> Cell:
    return cell(metrics.over_ours(way, part))


def _rate(way: str, part: str = "both") -> Cell:
    return cell(metrics.rate(way, part), three_digits)


def _share(direction: str) -> Cell:
    return cell(metrics.share_of_bound(direction), lambda share: f"{100 * share:.0f}")


def _in_same_round(way: str) -> Cell:
    def shown(entry: Entry) -> str:
        error = f" +-{entry['ratio_error']:.3f}" if "ratio_error" in entry else ""
        return f"{metrics.in_same_round(way)(entry):.3f}{error}"

    return shown


def _accuracies(entry: Entry) -> str:
    return ", ".join(f"{model} {percent(share)}%" for model, share in entry.get("accuracy", {}).items()) or "-"


_TIMES = {"fwd ms": _time("forward"), "bwd ms": _time("backward"), "both ms": _time("both")}
_SHARES = {"% fwd": _share("forward"), "% bwd": _share("backward")}
_BEST = {
    "best": cell(metrics.best_over_ours),
    "which": cell(metrics.best_baseline, lambda best: best[0]),
}
_STATIC = cell(metrics.ours_over("static"))
_FEATURE_MAPS = Columns(
    {
        **_TIMES,
        "eager": _over_ours("eager"),
        "compiled": cell(metrics.compiled_over_ours),
        **_BEST,
        **_SHARES,
        "memory": cell(metrics.extra_memory("eager")),
    },
    "shape: batch x channels x height x width. ms: ours. eager (the definition), compiled (torch.compile with "
    "max-autotune, the faster with CUDA graphs or without), best (which): their time over ours, forward + backward. "
    "% fwd, % bwd: the least possible time over ours. memory: ours over eager's, beyond inputs and results.",
)
OPS = {
    "dynamic_conv": Columns(
        {
            **_TIMES,
            "naive fp32": _over_ours("naive fp32"),
            "naive": _over_ours("naive"),
            **_BEST,
            "static": _STATIC,
            **_SHARES,
            "memory": cell(metrics.extra_memory("naive")),
        },
        "ms: ours. naive fp32, naive, best (which): their time over ours, forward + backward; on a CPU the best is "
        "chosen in every other run and compared in the runs between. static: our time over a plain convolution's. "
        "% fwd, % bwd: the least possible time over ours. memory: ours over naive's, beyond inputs and results.",
    ),
    "spatial_attention": _FEATURE_MAPS,
    "channel_gate": _FEATURE_MAPS._replace(
        legend="hidden N: two layers with biases; single: one layer without. " + _FEATURE_MAPS.legend
    ),
    "augment": Columns(
        {
            "ms": _time("forward"),
            "images/s": cell(metrics.rate(part="forward"), "{:,.0f}".format),
            **{name: _over_ours(name) for name in ("eager", "torchvision", "workers", "dali")},
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
            "ms": _time("both"),
            **{name: _over_ours(name) for name in ("naive", "stacked", "loop", "unfold", "vmap", "timm")},
            "static": _STATIC,
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
            "ms": _time("both"),
            "img/s": _rate("ours"),
            "unfused img/s": _rate("unfused"),
            "time, fused / unfused": _in_same_round("unfused"),
        },
        "timm's tf_efficientnet_cc_b0_4e with random weights: milliseconds of a batch and images a second after "
        "kernels.fuse, and images a second before it. training: forward, loss and all gradients. fused / unfused: the "
        "median over rounds of the times' ratio in the same round, and its standard error.",
        "what",
    ),
}
LAYERS = {
    "layers": Columns(
        {
            "batch": lambda entry: str(entry["samples"]),
            "ms": _time("both"),
            "public ms": cell(metrics.time("public", "both"), three_digits),
            "time, ours / public": _in_same_round("public"),
            "memory": cell(metrics.peak_memory("public")),
        },
        "Forward and backward of a layer of `kernels.modules` and of the public project's form with the same weights: "
        "ODConv with four experts, x and all parameters; penalty step: images of a StyleGAN2-like generator and the "
        "gradients of a loss with the path-length penalty, which differentiates twice. ours / public: the median over "
        "rounds of the times' ratio in the same round, and its standard error. memory: our peak above the inputs over "
        "the public form's.",
        "layer",
    ),
}
ENGINE = {
    "training": Columns(
        {
            "batch": lambda entry: str(entry["batch"]),
            "step img/s": _rate("ours", "step"),
            "reports step": _rate("reports", "step"),
            "ratio step": _over_ours("reports", "step"),
            "epoch img/s": _rate("ours", "epoch"),
            "reports epoch": _rate("reports", "epoch"),
            "ratio epoch": _over_ours("reports", "epoch"),
            "timm epoch": _rate("timm", "epoch"),
            "ratio to timm": _over_ours("timm", "epoch"),
            "% input": cell(metrics.input_share, percent),
            "% idle": cell(metrics.gpu_idle, percent),
        },
        "Images a second of ours, of the reports' way (float32, eager, NCHW, torchvision in a DataLoader with a worker "
        "per core), and of a plain loop over timm's loader (eager, autocast, channels_last, a worker per core), an "
        "epoch of each in turn. step: from the batch to the new weights; for ours that has crop, "
        "resize and normalisation in it where images are cached on the GPU. epoch: the training part, input and all. "
        "% input: the time in which cached images alone become a batch, over that of a step. % idle: the share of a "
        "step in which the GPU runs nothing.",
        "model",
    ),
    "input": Columns(
        {
            "images/s": _rate("ours"),
            "to torch": _over_ours("torch"),
            "workers": lambda entry: str(entry["workers"] or "-"),
        },
        "JPEGs of 500x375 pixels, a random crop resized to 256 pixels, mirrored, normalised; nothing else runs. to "
        "torch: the rate over the torch backend's.",
        "source",
    ),
    "start": Columns(
        {"seconds": cell(metrics.seconds, "{:.1f}".format), "images": lambda entry: f"{entry['images']:,}"},
        "Seconds from the start of the process to the first step of its training; the images of all splits are decoded "
        "in the first start and read from the disk cache in the second.",
        "start",
    ),
    "processes": Columns(
        {
            "images/s": _rate("ours"),
            "one process": _rate("one"),
            "ratio": _over_ours("one"),
        },
        "Images a second of resnet34 at 84 pixels, batches of 64, on two cores: by two processes with one thread each "
        "(torchrun, Gloo), and by one process with two threads.",
        "processes",
    ),
}
COMMANDS = {
    "commands": Columns(
        {
            "seconds": cell(metrics.seconds, "{:.2f}".format),
            "runs": lambda entry: str(entry["runs"]),
            "peak MB": lambda entry: f"{entry['peak_bytes'] / 1e6:,.0f}" if "peak_bytes" in entry else "-",
            "accuracy": _accuracies,
        },
        "Whole commands, from start to exit. task1 from nothing: `python -m train.run task1` with an empty cache: "
        "generate the set, scan it, train and test both models, write the report; accuracy: of these on the test "
        "images in RGB. peak: of the process's own memory.",
        "command",
    ),
}
SECTIONS = OPS | GROWTH | FUSE | LAYERS | ENGINE | COMMANDS
ON_CPU = "processes"  # the section measured on two cores of a CPU
