"""The tables of docs/scaling.md: a training on ImageNet-21k-like data on 8, 64 and 512 GPUs, by arithmetic."""

import json
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from bench.report import markdown, targets
from polychrome import models
from polychrome.engine.report.tables import Table

IMAGES, CLASSES, FILE_BYTES = 14_197_122, 21_841, 90_000
GPUS, EPOCHS, BATCH = (8, 64, 512), 90, 128  # BATCH: images of a step on each GPU
RATES = (1_000, 2_500, 5_000, 10_000)  # images a second on each GPU
LINKS = (12.5e9, 25e9, 50e9)  # bytes a second of each GPU's share of the network
SIDES = {64: 74, 128: 147, 256: 293}  # of the model's images, and of those that are kept: over 0.875, rounded up
MODELS = ("simple_cnn", "pool_attention_cnn", "attention_cnn", "adaptive_channel_cnn", "resnet34")
PER_MACHINE = 8


def steps(gpus: int) -> int:
    """Return the steps of an epoch."""
    return math.ceil(IMAGES / (BATCH * gpus))


def hours(gpus: int, rate: float) -> float:
    """Return the hours of all epochs at `rate` images a second on each GPU."""
    return EPOCHS * IMAGES / (gpus * rate) / 3600


def kept_bytes(side: int) -> int:
    """Return the bytes of the whole set, kept as uint8 squares of three channels."""
    return IMAGES * side * side * 3


def gradient_bytes(model: str) -> int:
    """Return the bytes of a model's gradients, float32."""
    return 4 * parameters(model)


def ring_bytes(count: int, gpus: int) -> float:
    """Return the bytes that each GPU sends, and receives, while so many are summed over a ring."""
    return 2 * (gpus - 1) / gpus * count


def checkpoint_bytes(model: str, average: bool = False) -> int:
    """Return the bytes of weights, Adam's two moments and, with `average`, the averaged weights."""
    return (3 + average) * 4 * parameters(model)


@cache
def parameters(model: str) -> int:
    """Return the number of a model's parameters."""
    with torch.device("meta"):
        return sum(each.numel() for each in models.create(model, CLASSES, 3, 256).parameters())


def time_table(results: Path) -> str:
    """Return the steps of an epoch and the hours of a training."""
    headings = ["GPUs", "images on each", "global batch", "steps an epoch", *(f"h at {rate:,}/s" for rate in RATES)]
    rows = [
        [f"{n}", f"{IMAGES / n:,.0f}", f"{BATCH * n:,}", f"{steps(n):,}", *(f"{hours(n, rate):.2f}" for rate in RATES)]
        for n in GPUS
    ]
    return grid(headings, rows)


def input_table(results: Path) -> str:
    """Return what is read and decoded, at each rate."""
    decoded = _decoded_by_a_core(results)
    headings = ["images/s on a GPU", "MB/s read by it", "GB/s by a machine of 8", "GB/s by 512", "cores for 8 GPUs"]
    rows = [
        [
            f"{rate:,}",
            f"{rate * FILE_BYTES / 1e6:,.0f}",
            f"{PER_MACHINE * rate * FILE_BYTES / 1e9:.2f}",
            f"{512 * rate * FILE_BYTES / 1e9:,.0f}",
            f"{PER_MACHINE * rate / decoded:,.0f}" if decoded else "not measured yet",
        ]
        for rate in RATES
    ]
    note = f"\n\nA core decoded {decoded:,.0f} images/s (DALI on the CPU; see engine.md)." if decoded else ""
    return grid(headings, rows) + note


def kept_table(results: Path) -> str:
    """Return what the set takes where it is kept decoded."""
    headings = ["model's images", "kept at", "KB each", "whole set, GB", *(f"1/{n} of it, GB" for n in GPUS)]
    rows = [
        [
            f"{size} px",
            f"{side} px",
            f"{3 * side * side / 1e3:.0f}",
            f"{kept_bytes(side) / 1e9:,.0f}",
            *(f"{kept_bytes(side) / n / 1e9:,.1f}" for n in GPUS),
        ]
        for size, side in SIDES.items()
    ]
    return grid(headings, rows)


def network_table(results: Path) -> str:
    """Return what a step sends over the network and how long that takes."""
    sent, times = [f"MB sent, {n}" for n in GPUS], [f"ms at {link / 1e9:g} GB/s" for link in LINKS]
    rows = []
    for model in MODELS:
        count = gradient_bytes(model)
        rows.append(
            [
                f"`{model}`",
                f"{parameters(model) / 1e6:.2f}",
                *(f"{ring_bytes(count, n) / 1e6:.1f}" for n in GPUS),
                *(f"{1e3 * ring_bytes(count, GPUS[-1]) / link:.1f}" for link in LINKS),
            ]
        )
    return grid(["model", "parameters, M", *sent, *times], rows)


def checkpoint_table(results: Path) -> str:
    """Return what checkpoints take."""
    headings = ["model", "`last.pt`, MB", "with `--ema`, MB", "`best.pt`, MB", "folder at most, MB", "MB/s at 300 s"]
    rows = []
    for model in MODELS:
        last, best = checkpoint_bytes(model), gradient_bytes(model)
        # step.pt, last.pt, previous.pt, one that is being written, and best.pt.
        most = 4 * last + best
        each = (last, checkpoint_bytes(model, True), best, most)
        rows.append([f"`{model}`", *(f"{count / 1e6:,.0f}" for count in each), f"{last / 300e6:.2f}"])
    return grid(headings, rows)


def measured_table(results: Path) -> str:
    """Return the images a second of an epoch on one GPU, as far as they were measured."""
    rows = [
        [section["device"], name, f"{targets.rate(entry, 'ours', 'epoch'):,.0f}"]
        for section in _sections(results, "training")
        if section["kind"] == "cuda"
        for name, entry in section["shapes"].items()
    ]
    return grid(["device", "model", "images/s"], rows) if rows else "Images a second of one GPU: not measured yet."


def grid(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown, its numbers to the right."""
    headings = tuple(headings)
    left = sum(heading in ("model", "device") for heading in headings)
    return markdown.grid(Table("", headings, tuple(map(tuple, rows)), left))


def _decoded_by_a_core(results: Path) -> float | None:
    for section in _sections(results, "input"):
        entry = section["shapes"].get("dali cpu")
        if section["kind"] == "cpu" and entry:
            return targets.rate(entry, "ours", "both") / entry["workers"]
    return None


def _sections(results: Path, name: str) -> list[dict]:
    found = [json.loads(path.read_text(encoding="utf-8")).get(name) for path in sorted(results.glob("*.json"))]
    return [section for section in found if section]


TABLES = {
    "scaling-measured": measured_table,
    "scaling-time": time_table,
    "scaling-input": input_table,
    "scaling-kept": kept_table,
    "scaling-network": network_table,
    "scaling-checkpoints": checkpoint_table,
}
