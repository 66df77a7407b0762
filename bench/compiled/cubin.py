"""Registers, memory and instructions of a kernel, read from machine code compiled without a GPU."""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.nvidia.compiler import get_ptxas

from bench.stand_in.driver import SHARED_LIMIT, compile_launch
from polychrome.kernels.launch import Launch


class Cubin(NamedTuple):
    """Registers per thread, bytes spilled and shared, counts of instructions; wide loads and stores move 16 bytes."""

    registers: int
    spilled: int
    shared: int
    matrix: dict[str, int]
    async_copies: int
    prefetched: int
    serialised: bool
    wide_loads: int
    wide_stores: int


def read_launch(launch: Launch, capability: int) -> Cubin:
    """Return the `Cubin` of the kernel that Triton's JIT compiles for this launch on a GPU of `capability`."""
    return read(compile_launch(launch, capability), capability)


def read(compiled, capability: int) -> Cubin:
    """Return the `Cubin` of a compiled kernel."""
    usage, code = disassembled(compiled, "--no-dataflow")
    said = _assembler_output(compiled.asm["ptx"]) if "wgmma" in compiled.asm["ptx"] else ""
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))
    instructions = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", code, re.MULTILINE)
    matrix = {op: sum(i.split(".")[0] == op for i in instructions) for op in ("HGMMA", "HMMA", "UTCHMMA")}
    # a stack frame that no instruction reads or writes, as with Triton 3.9, holds nothing spilled
    kept = sum(op.startswith(("LDL", "STL")) for op in instructions)
    copies = [index for index, op in enumerate(instructions) if op.startswith("LDGSTS") and ".128" in op]
    first = next((i for i, op in enumerate(instructions) if op.split(".")[0] in matrix), len(instructions))
    return Cubin(
        registers,
        stack + kept if kept else 0,
        compiled.metadata.shared,
        {op: count for op, count in matrix.items() if count},
        len(copies),
        sum(index < first for index in copies),
        "serialized" in said,
        sum(op.startswith("LDG") and ".128" in op for op in instructions),
        sum(op.startswith("STG") and ".128" in op for op in instructions),
    )


def disassembled(compiled, *options: str) -> tuple[str, str]:
    """Return a compiled kernel's use of resources by cuobjdump, and its code by nvdisasm with `options`."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin)
        return usage, _run(triton.knobs.nvidia.nvdisasm.path, *options, cubin)


def resident_blocks(registers: int, shared: int, warps: int, capability: int) -> int:
    """Return the blocks that fit one multiprocessor: registers per thread; shared bytes and warps per block."""
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    return min(by_registers, (SHARED_LIMIT[capability] + 1024) // (shared + 1024), 64 // warps)


def _assembler_output(ptx: str) -> str:
    """Return ptxas's verbose output, the only report of wgmma instructions that were serialised."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        return _run(get_ptxas(90).path, "-v", "--gpu-name=sm_90a", source, "-o", Path(folder, "again.cubin"))


def _run(*command: Iterable) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
