"""What the rows of the config tables compile to, read from cubins: no GPU needed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from polychrome.kernels.dynamic_conv.configs import WeightGradientConfig

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
SHARED_LIMIT = {80: 163, 90: 227, 100: 227}
MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


@pytest.fixture(scope="module")
def listed():
    """Every kernel, row, use and target that the report compiles, not compiled."""
    from bench.compiled.report import variants

    return [variant._asdict() | {"capability": each} for variant in variants() for each in variant.capabilities]


@pytest.fixture(
    scope="module", params=["kernels", *(pytest.param(each, marks=pytest.mark.slow) for each in ("uses", "whole"))]
)
def extent(request):
    """Of what cubins are made: each kernel once, each use once, or the whole report."""
    return request.param


@pytest.fixture(scope="module")
def cubins(extent, tmp_path_factory):
    """What was found in the cubins; made by another process: in this one Triton interprets."""
    found = tmp_path_factory.mktemp("cubins") / "found.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.compiled.report", "--json", str(found)]
    command += [] if extent == "whole" else ["--sample", extent]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return json.loads(found.read_text())


def products(cubins):
    """The kernels with a matrix product whose loads are wide: three channels are gathered one by one."""
    return [c for c in cubins if c["kernel"] in ("convolution", "weight gradient") and c["channels"] != "3->64"]


def failing(cubins, holds):
    shown = ("kernel", "use", "dtype", "channels", "row", "capability")
    return [
        " ".join(str(cubin[key]) for key in shown) + (f"; no spill: {cubin['instead']}" if cubin["spilled"] else "")
        for cubin in cubins
        if not holds(cubin)
    ]


def test_every_row_of_every_table_is_compiled_for_three_targets(listed):
    from polychrome.kernels.dynamic_conv import configs

    rows = len(configs.CONVOLUTION + configs.SWAPPED + configs.STACKED + configs.rows_together(4)) * 2
    rows += len(configs.CONVOLUTION_FLOAT32 + configs.STACKED_FLOAT32) * 2
    rows += 2 * 2  # a row of each dtype, split
    for table in (configs.WEIGHT_GRADIENT, configs.WEIGHT_GRADIENT_FLOAT32):
        rows += sum(map(len, table.values()))
    rows += len(configs.SAMPLE_GRADIENT + configs.SAMPLE_GRADIENT_FLOAT32)
    for capability in SHARED_LIMIT:
        seen = [c for c in products(listed) if c["capability"] == capability]
        assert len([c for c in seen if c["channels"] == "256->256" and c["dtype"] != "tf32"]) == rows
    of_convolutions = {c["kernel"] for c in listed if ":" not in c["kernel"]} - {"augment"}
    multiplying = {"convolution", "weight gradient", "contraction", "depthwise"}
    assert of_convolutions == multiplying | {"mix", "reorder", "add up", "sum"}


def test_every_streaming_kernel_is_compiled(listed):
    gate = {"reduce", "gate", "scale", "gate gradient", "fused gate", "fused gate gradient"}
    attention = {"stats", "attend", "attend sample", "dot", "maps", "spread"}
    for capability in SHARED_LIMIT:
        seen = {c["kernel"] for c in listed if c["capability"] == capability}
        assert {f"spatial attention: {name}" for name in attention} <= seen
        assert {f"channel gate: {name}" for name in gate} <= seen
        assert {"spatial gate: scale pixels", "spatial gate: scale pixels backward"} <= seen
        assert "augment" in seen
    assert {"channel statistics: stats", "channel statistics: spread"} <= {c["kernel"] for c in listed}
    assert {c["use"] for c in listed if c["kernel"] == "augment"} == {"copied", "cropped", "whole recipe"}


def test_the_whole_report_leaves_nothing_out_and_a_sample_most(cubins, listed, extent):
    least, most = {"kernels": (30, len(listed) / 12), "uses": (50, len(listed) / 4), "whole": (len(listed),) * 2}[
        extent
    ]
    assert least <= len(cubins) <= most
    assert {cubin["capability"] for cubin in cubins} == set(SHARED_LIMIT)


def test_every_kernel_use_and_dtype_is_among_what_was_compiled_for_hopper(cubins, listed, extent):
    of_uses = (("kernel", "use"), ("kernel", "channels")) if extent != "kernels" else ()
    for traits in (("kernel",), ("kernel", "dtype"), *of_uses):
        wanted, found = (
            {tuple(c[trait] for trait in traits) for c in some if ":" not in c["kernel"] and c["capability"] == 90}
            for some in (listed, cubins)
        )
        assert found == wanted
    assert {c["kernel"] for c in cubins if c["capability"] == 90} == {c["kernel"] for c in listed}


def test_no_register_is_spilled(cubins):
    # the rotation's sine keeps a table in local memory, for angles of more turns than it is ever given
    assert not failing(cubins, lambda cubin: cubin["spilled"] == 0 or cubin["use"] == "whole recipe")
    assert not failing(cubins, lambda cubin: cubin["spilled"] < 64)


@pytest.mark.parametrize(
    ("stack", "instructions", "spilled"),
    [(0, "", 0), (8, "", 0), (8, "STL [R1], R2", 9), (16, "@!P0 LDL.64 R4, [R1+0x8]", 17), (0, "LDL R2, [R3]", 1)],
)
def test_a_stack_frame_is_a_spill_where_it_is_read_or_written(monkeypatch, stack, instructions, spilled):
    from bench.compiled import cubin

    code = f"        /*0130*/   IADD3 R1, R1, -0x8, RZ ;\n        /*0140*/   {instructions or 'EXIT'} ;\n"
    monkeypatch.setattr(cubin, "disassembled", lambda *_: (f"REG:96 STACK:{stack} SHARED:0", code))
    compiled = SimpleNamespace(asm={"ptx": ""}, metadata=SimpleNamespace(shared=0))
    assert cubin.read(compiled, 90).spilled == spilled


LANES = """
import json, re
from bench.compiled.report import variants
from bench.stand_in.driver import compile_launch, install
install()
found = {}
for variant in variants():
    if variant.kernel == "augment":
        code = compile_launch(variant.launch).asm["ttgir"]
        layouts = dict(re.findall(r"(#blocked[0-9]*) = #ttg.blocked<{(.*)}>", code))
        loads = re.findall(r"tt.load .*tensor<([0-9x]+)x!tt.ptr<i8>, (#blocked[0-9]*)>", code)
        stores = re.findall(r"tt.store .*tensor<([0-9x]+)x!tt.ptr<bf16>, (#blocked[0-9]*)>", code)
        places = [(shape, layouts[name]) for shape, name in loads + stores]
        carried = re.findall(r"scf.(for|while) .* -> \\((.*)\\)", code)
        found[f"{variant.use} {variant.channels}"] = places, [(kind, types.count("f32, #")) for kind, types in carried]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def augmentations():
    """Of each use of `augment` its loads' and stores' shape and layout, and its loops' kinds and carried tensors."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", LANES]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_the_threads_of_a_warp_augment_values_or_pixels_beside_each_other(augmentations):
    """Left to itself Triton chose the worst place of a thread for pixels, and eight values in a row for values."""
    assert len(augmentations) == 6
    for use, (places, _) in augmentations.items():
        shape, values = ("512", 1) if use.startswith("whole recipe") else ("256", 2)
        assert len(places) >= 2
        for found, layout in places:
            assert found == shape
            assert f"sizePerThread = [{values}], threadsPerWarp = [32]" in layout


def test_the_compiler_keeps_two_source_rows_from_line_to_line(augmentations):
    """Triton takes a variable for unchanged in a loop that gives it another's value, where both began as one tensor."""
    for channels in (3, 13):
        _, loops = augmentations[f"cropped {channels}"]
        assert ["for", 2] in loops  # the two rows
        assert ["while", 3] in loops  # and what they add up to


SPILLING = """
import json, torch
from bench.compiled.report import _compile, _variants, _weight_gradient
from polychrome.kernels.dynamic_conv.configs import WeightGradientConfig
_variants.append(_weight_gradient(WeightGradientConfig(64, 64, 64, 4), torch.bfloat16, (256, 256), 8))
print(json.dumps(_compile((0, 90))))
"""


@pytest.mark.slow
def test_of_a_row_that_spills_the_nearest_that_does_not_is_named():
    """Nine tiles of 64 x 64 take 288 registers a thread of 4 warps; of 8 they fit."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SPILLING]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    cubin = json.loads(done.stdout)
    assert cubin["spilled"] > 0
    assert cubin["instead"] == str(WeightGradientConfig(64, 64, 64, 8))
    assert failing([cubin], lambda each: not each["spilled"])[0].endswith(f"; no spill: {cubin['instead']}")


def test_streaming_kernels_read_and_write_16_bytes_at_a_time(cubins, extent):
    """x, y and their gradients; 49 pixels beside each other are no multiple of 16 bytes."""
    passes = ("scale pixels", "scale pixels backward")
    reading = ("stats", "attend", "attend sample", "dot", "spread", "reduce", "scale", *passes)
    streaming = [
        c
        for c in cubins
        if c["kernel"].partition(": ")[2] in reading and c["channels"] != "13" and "7x7 contiguous" not in c["use"]
    ]
    assert {cubin["kernel"].partition(": ")[2] for cubin in streaming} == set(reading)
    assert len(streaming) >= {"kernels": len(reading), "uses": 20, "whole": 40}[extent]
    assert not failing(streaming, lambda cubin: cubin["wide_loads"] > 0)
    writing = [c for c in streaming if c["kernel"].partition(": ")[2] not in ("stats", "dot", "reduce")]
    assert not failing(writing, lambda cubin: cubin["wide_stores"] > 0)


def test_shared_memory_fits_the_target(cubins):
    assert not failing(cubins, lambda cubin: cubin["shared"] <= SHARED_LIMIT[cubin["capability"]] * 1024)


def test_bf16_products_run_on_the_matrix_units(cubins):
    bf16 = [cubin for cubin in products(cubins) if cubin["dtype"] == "bfloat16"]
    assert not failing(bf16, lambda cubin: MATRIX_INSTRUCTION[cubin["capability"]] in cubin["matrix"])
    assert not failing(cubins, lambda cubin: not cubin["serialised"])
    ieee = [cubin for cubin in products(cubins) if cubin["dtype"] == "float32"]
    assert not failing(ieee, lambda cubin: not cubin["matrix"])


def test_loads_are_16_byte_copies_started_ahead(cubins):
    """Both operands, stages - 1 steps before the loop; TF32 on Hopper has to turn one of them in registers."""
    wide = [cubin for cubin in products(cubins) if cubin["dtype"] != "tf32"]
    assert {"24->40", "256->256"} == {cubin["channels"] for cubin in wide}
    assert not failing(wide, lambda cubin: cubin["prefetched"] >= 2 * (cubin["stages"] - 1))
    assert not failing(products(cubins), lambda cubin: cubin["prefetched"] >= cubin["stages"] - 1)


def test_the_committed_table_lists_the_rows_of_today(listed):
    table = (ROOT / "bench/results/compiled.md").read_text(encoding="utf-8")
    keys = ("kernel", "use", "dtype", "channels", "row", "warps", "stages")
    rows = {" | ".join(str(variant[key]) for key in keys) for variant in listed}
    assert not [row for row in rows if f"| {row} |" not in table]
