"""Registers, memory and instructions of the kernels, compiled without a GPU for every row of the tables.

python -m bench.compiled.report                  # the table in bench/results/compiled.md
python -m bench.compiled.report --json FILE      # the same numbers for the test suite
python -m bench.compiled.report --json FILE --sample uses    # of fewer cubins: each use and target once
python -m bench.compiled.report --json FILE --sample kernels    # of the fewest: each kernel and dtype once, on Hopper
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from bench.compiled.covering import covering
from bench.compiled.cubin import Cubin, read_launch, resident_blocks
from bench.stand_in.driver import SHARED_LIMIT
from polychrome.kernels.augment.arguments import Arguments
from polychrome.kernels.augment.triton import ops as augment
from polychrome.kernels.channel_gate.triton import ops as gate
from polychrome.kernels.dynamic_conv import configs
from polychrome.kernels.dynamic_conv.problem import Geometry
from polychrome.kernels.dynamic_conv.triton.contraction import contract, contract_few
from polychrome.kernels.dynamic_conv.triton.convolution import convolve
from polychrome.kernels.dynamic_conv.triton.depthwise import convolve_depthwise, depthwise_gradients, holds_weights
from polychrome.kernels.dynamic_conv.triton.mixing import mix_into
from polychrome.kernels.dynamic_conv.triton.reorder import channels_first, channels_last
from polychrome.kernels.dynamic_conv.triton.splits import Epilogue, add_up
from polychrome.kernels.dynamic_conv.triton.weight_gradient import expert_gradients, sample_gradients
from polychrome.kernels.launch import Launch, record_launches
from polychrome.kernels.spatial_attention.triton import ops as attention
from polychrome.kernels.sums import sum_outer_and_inner, sum_rows
from polychrome.kernels.tensors import is_channels_last

TABLE = Path(__file__).resolve().parents[1] / "results" / "compiled.md"
GEOMETRY = Geometry([1, 1], [1, 1, 1, 1], [1, 1], 1)
KERNEL = (3, 3)
BATCH, SIZE = 64, 28
SPLITS = 6
WORDS = ("kernel", "use", "dtype", "channels", "row", "warps", "stages")  # a variant's name
MAPS = (
    ((64, 256, 16, 16), torch.channels_last),
    ((256, 256, 28, 28), torch.channels_last),
    ((8, 512, 7, 7), torch.channels_last),
    ((64, 64, 128, 128), torch.contiguous_format),
    ((8, 512, 7, 7), torch.contiguous_format),
)


class Variant(NamedTuple):
    """A kernel with one row of its table, as a user's call would launch it.

    `config` is the row of a matrix product, and `with_config(row)` the same variant with another row.
    """

    kernel: str
    use: str
    dtype: str
    channels: str
    row: str
    stages: int
    warps: int
    launch: Launch
    config: tuple | None = None
    with_config: Callable[[tuple], "Variant"] | None = None

    @property
    def capabilities(self) -> tuple[int, ...]:
        """The targets: all for the common uses, Hopper alone for the rest."""
        common = self.dtype != "tf32" and self.channels in ("256->256", "256", "3")
        return tuple(SHARED_LIMIT) if common else (90,)


def variants() -> Iterator[Variant]:
    """Yield every row of the tables with its uses, on channel counts that are multiples of 16 and of 8 only."""
    wide, eights = (256, 256), (24, 40)
    for row in configs.CONVOLUTION + configs.SWAPPED:
        for channels in (wide, eights):
            yield _convolution("forward", row, torch.bfloat16, channels)
            yield _convolution("gradient of x", row, torch.bfloat16, channels, transposed=True)
    for row in configs.STACKED + configs.rows_together(4):
        yield _convolution("stacked forward", row, torch.bfloat16, wide, experts=4)
        yield _convolution("stacked gradients", row, torch.bfloat16, wide, transposed=True, experts=4)
    for experts in (2, 7):
        for row in configs.rows_together(experts):
            use = f"stacked gradients, {experts} experts"
            yield _convolution(use, row, torch.bfloat16, eights, transposed=True, experts=experts)
    for row in configs.CONVOLUTION_FLOAT32:
        for precision in ("ieee", "tf32"):
            yield _convolution("forward", row, torch.float32, wide, precision)
            yield _convolution("gradient of x", row, torch.float32, wide, precision, transposed=True)
    for row in configs.STACKED_FLOAT32:
        yield _convolution("stacked forward", row, torch.float32, wide, experts=4)
        yield _convolution("stacked gradients", row, torch.float32, wide, transposed=True, experts=4)
    for row in configs.CONVOLUTION:
        yield _convolution("forward, 3 channels", row, torch.bfloat16, (3, 64))
    for row, dtype in ((configs.CONVOLUTION[4], torch.bfloat16), (configs.CONVOLUTION_FLOAT32[1], torch.float32)):
        row = row._replace(splits=SPLITS)
        yield _convolution("forward", row, dtype, wide)
        yield _convolution("gradient of x", row, dtype, wide, transposed=True)
    yield from _added_up()
    for row in configs.SAMPLE_GRADIENT:
        yield _weight_gradient(row, torch.bfloat16, wide, 0)
        yield _weight_gradient(row, torch.bfloat16, eights, 0)
    for row in configs.SAMPLE_GRADIENT_FLOAT32:
        yield _weight_gradient(row, torch.float32, wide, 0)
    for experts in (4, 9):
        for dtype in (torch.bfloat16, torch.float32):
            yield _contraction(experts, dtype)
    for samples, experts, dtype in ((1, 4, torch.bfloat16), (3, 8, torch.float32)):
        yield _contraction_of_few(samples, experts, dtype)
    tables = {torch.bfloat16: configs.WEIGHT_GRADIENT, torch.float32: configs.WEIGHT_GRADIENT_FLOAT32}
    for dtype, table in tables.items():
        for experts, rows in table.items():
            for row in rows:
                yield _weight_gradient(row, dtype, wide, experts)
                if dtype == torch.bfloat16:
                    yield _weight_gradient(row, dtype, eights, experts)
    for experts, side in ((4, 3), (8, 3), (9, 3), (4, 7), (8, 11)):
        weight, mixing = _empty(experts, 256, 256, side, side), _empty(BATCH, experts, dtype=torch.float32)
        (launch,) = _launches_of(mix_into, _empty(BATCH, 256, side**2, 256), weight, mixing)
        yield _variant("mix", f"{experts} experts, {side}x{side}", "bfloat16", "256->256", launch)
    yield from _reorder()
    yield from _sums()
    yield from _depthwise()
    for shape, layout in MAPS:
        x = _empty(*shape).contiguous(memory_format=layout)
        yield from _recorded("spatial attention", x, _spatial_attention)
        yield from _recorded("spatial gate", x, _spatial_gate)
        yield from _recorded("channel gate", x, _channel_gate)
    small = _empty(64, 256, 8, 8).contiguous(memory_format=torch.channels_last)
    yield from _recorded("spatial attention", small, _spatial_attention)
    large = _empty(64, 256, 28, 28).contiguous(memory_format=torch.channels_last)
    yield from _recorded("channel gate", large, _channel_gate)
    yield from _recorded("channel gate, single", _empty(8, 512, 7, 7), partial(_channel_gate, single=True))
    yield from _recorded("channel statistics", _empty(64, 13, 32, 32), _statistics)
    for channels in (3, 13):
        yield from _augment(channels)


def _launches_of(call: Callable, *arguments, **options) -> list[Launch]:
    with record_launches() as launches:
        call(*arguments, **options)
    return launches


def _variant(kernel: str, use: str, dtype: str, channels: str, launch: Launch, *blocks: str) -> Variant:
    """Return the variant of a kernel without pipelined loads; `blocks` are the options with its tile's sizes."""
    label = _label(*(launch.options[block] for block in blocks if block in launch.options)) if blocks else "-"
    return Variant(kernel, use, dtype, channels, label, 1, launch.options["num_warps"], launch)


def _convolution(use, row, dtype, channels, precision="ieee", transposed=False, experts=0) -> Variant:
    inputs, outputs = channels
    x, y = _image(inputs, dtype), _image(outputs, dtype)
    source, out = (y, x) if transposed else (x, y)
    mixing = _empty(BATCH, experts, dtype=torch.float32) if experts else None
    probe = products = None
    if transposed and experts:
        probe = x
        products = _empty(-(-inputs // row.block_n), experts, BATCH, SIZE * SIZE, dtype=torch.float32)
    weight = _empty(experts or BATCH, outputs, 9, inputs, dtype=dtype)
    given = (source, weight, out, GEOMETRY, KERNEL, row, precision, transposed, mixing)
    launch = _launches_of(convolve, *given, probe=probe, products=products)[0]
    known = {"dtype": dtype, "channels": channels, "precision": precision, "transposed": transposed, "experts": experts}
    again = partial(_convolution, use, **known)
    return _product("convolution", use, _name(dtype, precision), channels, row, launch, again)


def _added_up() -> Iterator[Variant]:
    """Yield sums of a product's splits, in both output layouts."""
    for layout in (torch.channels_last, torch.contiguous_format):
        y = _empty(1, 256, 14, 14).contiguous(memory_format=layout)
        parts = _empty(SPLITS, 1, 14, 14, 256, dtype=torch.float32)
        launch = _launches_of(add_up, parts, y, Epilogue(_empty(1, 256, dtype=torch.float32)))[0]
        use = f"{SPLITS} splits, {'channels_last' if launch.options['CHANNELS_LAST'] else 'contiguous'}"
        yield _variant("add up", use, "bfloat16", "256", launch, "BLOCK_P", "BLOCK_C")


def _weight_gradient(row, dtype, channels, experts) -> Variant:
    inputs, outputs = channels
    grad, x = _image(outputs, dtype), _image(inputs, dtype)
    if experts:
        mixing = _empty(BATCH, experts, dtype=torch.float32)
        kernels = _empty(experts, outputs, 9, inputs, dtype=dtype)
        given = (grad, x, kernels, mixing, GEOMETRY, KERNEL, row._replace(splits=2), "ieee")
        launch = _launches_of(expert_gradients, *given)[0]
    else:
        own = _empty(BATCH, outputs, 9, inputs, dtype=dtype)
        launch = _launches_of(sample_gradients, grad, x, own, GEOMETRY, KERNEL, row, "ieee")[0]
    use = f"{experts} experts" if experts else "one sample's own"
    again = partial(_weight_gradient, dtype=dtype, channels=channels, experts=experts)
    return _product("weight gradient", use, _name(dtype), channels, row, launch, again)


def _contraction(experts: int, dtype: torch.dtype) -> Variant:
    own, mixing = _empty(BATCH, 256, 9, 256, dtype=dtype), _empty(BATCH, experts, dtype=torch.float32)
    weight, gradient = (_empty(experts, 256, 9, 256, dtype=each) for each in (dtype, torch.float32))
    launch = _launches_of(contract, own, weight, mixing, gradient, add=False)[0]
    return _variant("contraction", f"{experts} experts", _name(dtype), "256->256", launch, "BLOCK_S", "BLOCK_W")


def _contraction_of_few(samples: int, experts: int, dtype: torch.dtype) -> Variant:
    own, weight = _empty(samples, 256, 9, 256, dtype=dtype), _empty(experts, 256, 256, *KERNEL, dtype=dtype)
    mixing = _empty(samples, experts, dtype=torch.float32)
    launch = _launches_of(contract_few, own, weight, mixing, for_mixing=True)[0]
    use = f"{experts} experts, samples: {samples}"
    return _variant("contraction", use, _name(dtype), "256->256", launch, "BLOCK_R", "TAPS")


def _product(kernel, use, dtype, channels, row, launch, with_config) -> Variant:
    inputs, outputs = channels
    label = _label(row.block_m, row.block_n, row.block_k)
    if isinstance(row, configs.ConvolutionConfig):
        label += " swapped" * row.swap + " together" * row.together
        label += f", {row.splits} splits" * (row.splits > 1)
    known = (kernel, use, dtype, f"{inputs}->{outputs}", label, row.stages, row.warps)
    return Variant(*known, launch, row, with_config)


def _reorder() -> Iterator[Variant]:
    """Yield moves of weights to channels last and gradients back, rounded or not, of one or several blocks of taps."""
    uses = ("to channels last", "to channels first", "to channels first, rounded")
    for side in (3, 9):
        weight, wide = _empty(4, 256, 256, side, side), _empty(4, 256, side**2, 256, dtype=torch.float32)
        with record_launches() as launches:
            channels_first(channels_last(weight), weight)
            channels_first(wide, weight)
        for use, launch in zip(uses, launches, strict=True):
            yield _variant("reorder", f"{use}, {side}x{side}", "bfloat16", "256->256", launch, "BLOCK_T", "BLOCK_C")


def _sums() -> Iterator[Variant]:
    """Yield sums of products and maps (many rows, few columns), of partial gradients, of products per pixel."""
    rows = ((4608, BATCH, 4), (1024, 2, 49), (2, 4, 256, 9, 256))
    pixels = tuple((2, 4, BATCH, each) for each in (256, 49))
    for sum_up, sizes in ((sum_rows, rows), (sum_outer_and_inner, pixels)):
        for size in sizes:
            (launch,) = _launches_of(sum_up, _empty(*size, dtype=torch.float32))
            yield _variant("sum", "x".join(map(str, size)), "float32", "-", launch, "BLOCK_R", "BLOCK_C")


def _depthwise() -> Iterator[Variant]:
    """Yield strips with weights mixed inside or given, strips of kernels too large to hold, and blocks."""
    strip, blocks = configs.DepthwiseConfig(16, 64, rows=8), configs.DepthwiseConfig(32, 64)
    parts = configs.DepthwiseConfig(16, 64, splits=2)
    for side, experts in ((3, 4), (3, 0), (7, 0), (9, 0)):
        yield from _depthwise_form(side, experts, strip, strip)
    yield from _depthwise_form(3, 0, blocks, parts)


def _depthwise_form(side, experts, row, gradient_row) -> Iterator[Variant]:
    x, how = _image(256, torch.bfloat16), (GEOMETRY._replace(padding=[side // 2] * 4, groups=256), (side, side))
    held = holds_weights(row, side * side)
    weight = _empty(experts or BATCH, *((256, side * side) if held else (side * side, 256)))
    weight = weight if held else weight.float()
    mixing = _empty(BATCH, experts, dtype=torch.float32) if experts else None
    own = _empty(BATCH * configs.own_parts(tuple(x.shape[2:]), gradient_row), side * side, 256)
    with record_launches() as launches:
        convolve_depthwise(x, weight, torch.empty_like(x), *how, row, False, mixing)
        convolve_depthwise(x, weight, torch.empty_like(x), *how, row, True, mixing)
        depthwise_gradients(x, x, own, *how, gradient_row)
    form = f"{side}x{side} {'strips' if row.strips else 'blocks'}" + (f", {experts} experts" if experts else "")
    uses = ("forward", "gradient of x", "gradient of the weights")
    for use, each, launch in zip(uses, (row, row, gradient_row), launches, strict=True):
        if use != "gradient of the weights" or not experts:  # the same with given weights
            label = _label(each.block_p, each.block_c)
            yield Variant("depthwise", f"{use}, {form}", "bfloat16", "256", label, 1, each.warps, launch)


def _recorded(op: str, x: torch.Tensor, call: Callable[[torch.Tensor], None]) -> Iterator[Variant]:
    """Yield the launches of `call(x)`, named after their kernels."""
    layout = "channels_last" if is_channels_last(x) else "contiguous"
    size = "x".join(map(str, x.shape))
    seen = set()
    for launch in _launches_of(call, x):
        name = launch.kernel.__name__.removesuffix("_kernel").replace("_", " ")
        use = f"{size} {layout}" + (", backward" if name in seen else "")
        seen.add(name)
        blocks = ("BLOCK_P", "BLOCK_C", "BLOCK_O", "BLOCK_W")
        yield _variant(f"{op}: {name}", use, "bfloat16", str(x.shape[1]), launch, *blocks)


def _spatial_attention(x: torch.Tensor) -> None:
    weight = _empty(1, 2, 7, 7, dtype=torch.float32)
    y, *saved = attention.spatial_attention(x, weight, None)
    attention.spatial_attention_backward(y, x, weight, None, *saved, [True, True, False])


def _spatial_gate(x: torch.Tensor) -> None:
    logits = _empty(x.shape[0], 1, *x.shape[2:], dtype=torch.float32)
    y = attention.spatial_gate(x, logits)
    attention.spatial_gate_backward(y, x, logits, [True, True])


def _statistics(x: torch.Tensor) -> None:
    mask = _empty(*x.shape[:2], dtype=torch.bool)
    stats, argmax = attention.channel_stats(x, mask)
    attention.channel_stats_backward(stats, mask, argmax, x.shape[1], is_channels_last(x))


def _channel_gate(x: torch.Tensor, single: bool = False) -> None:
    channels = x.shape[1]
    hidden = channels // 16
    sizes = [None, None, (channels, channels), None]
    if not single:
        sizes = [(hidden, channels), (hidden,), (channels, hidden), (channels,)]
    weights = [None if size is None else _empty(*size) for size in sizes]
    y, *saved = gate.channel_gate(x, *weights, "sigmoid")
    needed = [True, *(weight is not None for weight in weights)]
    gate.channel_gate_backward(y, x, *weights, *saved, "sigmoid", needed)


def _augment(channels: int) -> Iterator[Variant]:
    images = _empty(1024, 256, 256, channels, dtype=torch.uint8)
    indices, flips = _empty(BATCH, dtype=torch.int64), _empty(BATCH, dtype=torch.bool)
    boxes, factors = _empty(BATCH, 4, dtype=torch.int64), _empty(BATCH, dtype=torch.float32)
    gray = flips if channels == 3 else None
    recipes = {
        "copied": (indices, None, flips, *[None] * 8),
        "cropped": (indices, boxes, flips, *[None] * 8),
        "whole recipe": (indices, boxes, flips, None, factors, factors, factors, factors, gray, None, boxes),
    }
    for use, parameters in recipes.items():
        size = 256 if use == "copied" else 224
        statistics = [0.5] * channels
        given = Arguments(images, *parameters, statistics, statistics, size, size, torch.bfloat16)
        launch = _launches_of(augment.augment, given)[0]
        blocks = ("ROWS", "VALUES") if "VALUES" in launch.options else ("BLOCK_H", "BLOCK_W")
        yield _variant("augment", use, "bfloat16", str(channels), launch, *blocks)


def compile_all(sample: str | None = None) -> list[dict]:
    """Return a row of findings per variant and target, in the order of `variants`; of a sample, if one is named."""
    listed = list(variants())
    jobs = [(index, capability) for index, variant in enumerate(listed) for capability in variant.capabilities]
    if sample:
        jobs = covering(jobs, lambda job: SAMPLES[sample](listed[job[0]], job[1]))
    if sample == "kernels":  # other processes would take as long to start as several cubins to compile
        _variants[:] = listed
        return list(map(_compile, jobs))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn"), _collect) as pool:
        return list(pool.map(_compile, jobs, chunksize=4))


def _uses(variant: Variant, capability: int) -> set[tuple]:
    """Return the traits that a sample covers: on Hopper every use and layout; on other targets the products."""
    kernel = variant.kernel
    streaming = ":" in kernel
    if capability != 90:
        return set() if streaming else {(kernel, variant.dtype, capability)}
    if streaming:
        size, _, layout = variant.use.partition(" ")
        return {(kernel, layout, layout.startswith("contiguous") and size.endswith("7x7"))}
    return {(kernel, variant.dtype), (kernel, variant.use), (kernel, variant.channels)}


def _kernels(variant: Variant, capability: int) -> set[tuple]:
    """Return the traits of the smallest sample: on Hopper every kernel and dtype; on other targets one product."""
    kernel = variant.kernel
    if capability != 90:
        return {(kernel, capability)} if kernel == "convolution" and variant.dtype == "bfloat16" else set()
    # of tables apart, whose rows have registers of their own
    rows = {"convolution": variant.channels, "weight gradient": variant.use}
    return {(kernel, variant.dtype), (kernel, rows.get(kernel))}


SAMPLES = {"kernels": _kernels, "uses": _uses}
_variants: list[Variant] = []


def _collect() -> None:
    _variants[:] = variants()


def _compile(job: tuple[int, int]) -> dict:
    index, capability = job
    variant = _variants[index]
    cubin: Cubin = read_launch(variant.launch, capability)
    words = {name: value for name, value in variant._asdict().items() if name in WORDS}
    words["instead"] = _row_without_spills(variant) if cubin.spilled and variant.config else None
    resident = resident_blocks(cubin.registers, cubin.shared, variant.warps, capability)
    return words | {"capability": capability, **cubin._asdict(), "resident": resident}


def _row_without_spills(variant: Variant) -> str | None:
    """Return the row nearest to a variant's that spills on no target, or None."""
    row = variant.config
    nearby = (
        row._replace(block_k=max(16, row.block_k // 2), stages=row.stages + 1),
        row._replace(stages=max(2, row.stages - 1)),
        row._replace(warps=min(16, 2 * row.warps)),
        row._replace(block_n=max(16, row.block_n // 2)),
    )
    for other in nearby:
        launch = variant.with_config(other).launch
        if not any(read_launch(launch, capability).spilled for capability in SHARED_LIMIT):
            return str(other)
    return None


def markdown(rows: list[dict]) -> str:
    """Return the findings as a table, one line per variant."""
    lines = [
        "# What the kernels compile to",
        "",
        f"`python -m bench.compiled.report`, triton {triton.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}; no GPU needed. Each cell: registers a thread / shared memory in KB / blocks "
        "that fit one multiprocessor, and the matrix instruction found, or, without one, the number of 16-byte loads + "
        "stores. The test suite asserts that no row spills, none serialises wgmma, loads of products are 16-byte "
        "asynchronous copies, (stages - 1) steps ahead (3 channels apart), and streaming kernels read and write 16 "
        "bytes at a time where the shape lets them.",
        "",
        "| kernel | use | dtype | channels | tile | warps | stages | sm_80 | sm_90 | sm_100 |",
        "|---|---|---|---|---|---:|---:|---|---|---|",
    ]
    table: dict[tuple, dict[int, str]] = {}
    for row in rows:
        found = " ".join(row["matrix"]) or f"{row['wide_loads']} + {row['wide_stores']}"
        cell = f"{row['registers']} / {row['shared'] / 1024:.0f} / {row['resident']}, {found}"
        table.setdefault(tuple(row[word] for word in WORDS), {})[row["capability"]] = cell
    for key, cells in table.items():
        targets = [cells.get(capability, "") for capability in SHARED_LIMIT]
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(targets)} |")
    return "\n".join(lines) + "\n"


def _image(channels: int, dtype: torch.dtype) -> torch.Tensor:
    return _empty(BATCH, channels, SIZE, SIZE, dtype=dtype).to(memory_format=torch.channels_last)


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _name(dtype: torch.dtype, precision: str = "ieee") -> str:
    return "tf32" if precision == "tf32" else str(dtype).removeprefix("torch.")


def _label(*blocks: int) -> str:
    return " x ".join(map(str, blocks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the findings to this file, not the table")
    parser.add_argument("--sample", choices=SAMPLES, help="compile each kernel or each use only once; needs --json")
    arguments = parser.parse_args()
    if arguments.sample and not arguments.json:
        parser.error("--sample makes no whole table: give --json FILE")
    rows = compile_all(arguments.sample)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows), encoding="utf-8")
        return
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(markdown(rows), encoding="utf-8")
    print(f"{TABLE}: {len(rows)} cubins")


if __name__ == "__main__":
    main()
