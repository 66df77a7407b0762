"""The predicted time of a launch on a GPU that is not present: the largest of the times of its parts."""

import re
from math import ceil, prod
from typing import NamedTuple

from torch import Tensor

from bench.compiled.cubin import resident_blocks
from bench.machine import H200, Machine
from bench.predict import code
from bench.predict.code import Code, body_of, kind_of, name_of
from bench.predict.passes import Library
from bench.predict.trace import Trace, trace
from bench.stand_in.driver import compile_launch
from polychrome.kernels.launch import Launch

# Instructions that move bytes through L1 or shared memory, and the least bytes of an instruction: a clock's.
MOVES, LEAST = ("LDG", "STG", "LDS", "STS", "LDL", "STL"), 128
# The least share of the trace's bytes that the code must move: the compiler joins loads of one address.
LEAST_LOADED = 0.8
# Bytes of an operand's element in the matrix units.
OPERAND = 2


class Block(NamedTuple):
    """The work of one block of a launch: instructions of a warp, FLOPs of matrix units, bytes through L1 and L2."""

    instructions: float
    flops: float
    shared_bytes: float
    l2_bytes: float


class Work(NamedTuple):
    """The work of a launch: blocks, resident blocks and warps, the work of a block, and L2 bytes by argument."""

    kernel: str
    blocks: int
    resident: int
    warps: int
    block: Block
    reads: dict[int, float]
    writes: dict[int, float]


class Time(NamedTuple):
    """The microseconds of a launch under each limit."""

    matrix: float
    issue: float
    shared: float
    l2: float
    memory: float
    launch: float

    @property
    def us(self) -> float:
        """The largest of the five limits, plus the launch."""
        return max(self[:5]) + self.launch

    @property
    def limit(self) -> str:
        """The name of the largest limit."""
        return max(self._fields[:5], key=lambda name: getattr(self, name))


def work_of(launch: Launch) -> Work:
    """Return the work of a launch, from its machine code for Hopper and from a trace of some of its programs.

    Raises:
        ValueError: the compiler made several copies of a loop, or the code makes other matrix products than the trace,
            or moves fewer bytes: the counts of its instructions are not known.
    """
    compiled = compile_launch(launch, 90)
    listing, traced = code.read(compiled), trace(launch)
    warps, blocks = launch.options["num_warps"], prod(launch.grid)
    instructions, flops, shared_bytes, bypassing = _counted(listing, traced, warps)
    reads, writes = {}, {}
    for each in traced.touched:
        # A load through L1 hits sectors that the block has read before.
        moved = each.each if each.stores or each.place in bypassing else each.once
        into = writes if each.stores else reads
        into[each.argument] = into.get(each.argument, 0) + moved * blocks
    through_l2 = (sum(reads.values()) + sum(writes.values())) / blocks
    resident = resident_blocks(listing.registers, compiled.metadata.shared, warps, 90)
    block = Block(instructions, flops, shared_bytes, through_l2)
    return Work(launch.kernel.fn.__name__, blocks, resident, warps, block, reads, writes)


def time_of(work: Work, device_bytes: float, machine: Machine = H200) -> Time:
    """Return the time of a launch that moves `device_bytes` of device memory."""
    mine = ceil(work.blocks / machine.multiprocessors)  # on the multiprocessor with the most blocks
    turns = [work.resident] * (mine // work.resident) + [mine % work.resident]

    def issued(together: int) -> float:
        # Few warps cannot fill the slots: each waits for its own results.
        alone = work.block.instructions * machine.warp_clocks if together else 0
        return max(alone, work.block.instructions * work.warps * together / machine.issue_slots)

    matrix = mine * work.block.flops / machine.matrix_flops
    shared = mine * work.block.shared_bytes / machine.shared
    total = work.blocks * work.block.l2_bytes / machine.multiprocessors / machine.l2
    port = mine * work.block.l2_bytes / machine.l2_port
    clocks = (matrix, sum(map(issued, turns)), shared, max(total, port))
    return Time(
        *(machine.seconds(each) * 1e6 for each in clocks), device_bytes / machine.memory * 1e6, machine.launch_us
    )


class Memory:
    """The device memory traffic of a pass: tensors met before are in the L2 cache, if half of the cache holds them."""

    def __init__(self, results: list[Tensor], machine: Machine = H200):
        self.machine = machine
        self.met: set[int] = set()
        self.results = {_storage(tensor) for tensor in results}

    def moved(self, arguments: tuple, work: Work) -> float:
        """Return the bytes of device memory that a launch reads and writes."""
        tensors = {index: each for index, each in enumerate(arguments) if isinstance(each, Tensor)}
        read = sum(self._read(tensors[index], moved) for index, moved in work.reads.items())
        return read + sum(self._written(tensors[index], moved) for index, moved in work.writes.items())

    def moved_by(self, library: Library) -> float:
        """Return the bytes of device memory that a torch kernel reads and writes."""
        read = sum(self._read(tensor, tensor.nbytes) for tensor in library.reads)
        return read + sum(self._written(tensor, tensor.nbytes) for tensor in library.writes)

    def _read(self, tensor: Tensor, through_l2: float) -> float:
        cached = _storage(tensor) in self.met and self._fits(tensor)
        self.met.add(_storage(tensor))
        return 0 if cached else min(tensor.nbytes, through_l2)

    def _written(self, tensor: Tensor, through_l2: float) -> float:
        self.met.add(_storage(tensor))
        leaves = _storage(tensor) in self.results or not self._fits(tensor)
        return min(tensor.nbytes, through_l2) if leaves else 0

    def _fits(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().nbytes() <= self.machine.l2_bytes / 2


def library_us(library: Library, device_bytes: float, machine: Machine = H200) -> float:
    """Return the microseconds of a torch kernel, assumed to reach the rates of memory and products."""
    touched = sum(tensor.nbytes for tensor in (*library.reads, *library.writes))
    through_l2 = machine.seconds(touched / machine.multiprocessors / machine.l2)
    return max(bound_us(device_bytes, library.flops, machine), through_l2 * 1e6) + machine.launch_us


def bound_us(nbytes: float, flops: float, machine: Machine = H200) -> float:
    """Return the least microseconds in which any implementation moves `nbytes` and makes `flops`."""
    return max(nbytes / machine.memory, flops / machine.products) * 1e6


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _counted(listing: Code, traced: Trace, warps: int) -> tuple[float, float, float, set]:
    """Return a warp's instructions, a block's FLOPs in matrix units and L1 bytes, and statements that bypass L1."""
    loops = [region.place for region in listing.regions if kind_of(region.place) == "for"]
    if len(set(loops)) < len(loops):
        raise ValueError(f"several copies of one loop: {sorted(loops)}")
    bodies = {region.place: traced.counts.get(body_of(region.place), 0.0) for region in listing.regions}
    instructions = together = alone = shared = moved = 0.0
    bypassing = set()
    for instruction, place, times in listing.times(bodies):
        instructions += times
        name = name_of(instruction)
        if name.startswith("HGMMA"):  # made by four warps together
            rows, columns, depth = map(int, name.split(".")[1].split("x"))
            together += times * warps / 4 * 2 * rows * columns * depth
            held = re.search(r"^\S+ R\d+, R\d+", instruction)  # the rows lie in registers
            shared += times * warps / 4 * OPERAND * depth * (columns if held else rows + columns)
        elif name.startswith("HMMA"):
            alone += times * warps * 2 * 16 * 8 * 16
        elif name.startswith(MOVES):
            shared += times * warps * max(bytes_of(name), LEAST)
        if name.startswith(("LDG.", "STG.", "LDGSTS.")):
            moved += times * warps * bytes_of(name)
        if name.startswith("LDGSTS") and "BYPASS" in name:
            bypassing.add(place)
    # Several warps may make the same HMMA product.
    if together + alone and not 0.99 < (together + alone) / traced.flops < (1.01 if not alone else float("inf")):
        raise ValueError(f"{together + alone:.4g} FLOPs in the code, {traced.flops:.4g} in the trace")
    if moved < LEAST_LOADED * traced.asked:
        raise ValueError(f"{moved:.4g} bytes loaded and stored in the code, {traced.asked:.4g} in the trace")
    return instructions, together + alone, shared, bypassing


def bytes_of(name: str) -> int:
    """Return the bytes that a load, store or copy moves for the 32 lanes of a warp."""
    if matrices := re.search(r"M88(?:\.(\d))?", name):
        return 128 * int(matrices[1] or 1)
    found = re.search(r"\.[US]?(8|16|64|128)\b", name)
    return 32 * (int(found[1]) // 8 if found else 4)
