"""The machine code of a kernel: its instructions, and the loop or branch of the source each belongs to."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bench.compiled.cubin import disassembled

# A place in the source: file and the first line of a statement.
Place = tuple[str, int]


class Region(NamedTuple):
    """Instructions `first` to `last`, run as often as the body of the loop or `if` at `place`."""

    first: int
    last: int
    place: Place


class Code(NamedTuple):
    """Instructions of a kernel, the source statement of each, and the loops and branches, outermost first."""

    registers: int
    instructions: list[str]
    places: list[Place]
    regions: list[Region]

    def times(self, counts: dict[Place, float]) -> Iterator[tuple[str, Place, float]]:
        """Yield each instruction, its statement, and its runs by a warp where each body runs `counts` times."""
        weights = [1.0] * len(self.instructions)
        for region in self.regions:
            weights[region.first : region.last + 1] = [counts[region.place]] * (region.last + 1 - region.first)
        yield from zip(self.instructions, self.places, weights, strict=True)


def read(compiled) -> Code:
    """Return the code of a kernel that Triton compiled for Hopper."""
    usage, listing = disassembled(compiled, "--print-line-info")
    instructions, places, labels = [], [], {}
    place = ("", 0)
    for line in listing.splitlines():
        if said := re.match(r'\s+//## File "(.+)", line (\d+)', line):
            place = (said[1], int(said[2]))
        elif label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.+?)\s*;", line):
            instructions.append(found[1])
            places.append(statement_of(place))
    # The code ends with a loop of one instruction, which catches runaways, and padding.
    end = next(i for i, each in enumerate(instructions) if labels.get(_target_of(each)) == i)
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    return Code(registers, instructions[:end], places[:end], _regions(instructions[:end], places[:end], labels))


def _regions(instructions: list[str], places: list[Place], labels: dict[str, int]) -> list[Region]:
    """Return the loops, each ended by a backward branch, and the `if` bodies, each skipped by a forward branch."""
    found = []
    for index, instruction in enumerate(instructions):
        target = labels.get(_target_of(instruction))
        if target is None:
            continue
        if target <= index and (loop := _loop_around(places[index])):
            found.append(Region(target, index, loop))
        elif target > index + 1 and kind_of(places[index]) == "if" and instruction.startswith("@"):
            found.append(Region(index + 1, target - 1, places[index]))
    return sorted(found, key=lambda region: (region.first, -region.last))


def _target_of(instruction: str) -> str | None:
    """Return the target label of a branch, None for any other instruction."""
    found = re.search(r"BRA.*?(\.L_\w+)", instruction)
    return found and found[1]


def name_of(instruction: str) -> str:
    """Return an instruction's name with its modifiers, without its predicate."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


def kind_of(place: Place) -> str:
    """Return "for" for a loop, "if" for an `if`, "" for any other statement."""
    return {ast.For: "for", ast.While: "for", ast.If: "if"}.get(type(_statements(place[0]).get(place[1])), "")


def _loop_around(place: Place) -> Place | None:
    """Return the innermost loop at or around a statement: a loop left half-way may end with any of its statements."""
    loops = [
        start
        for start, node in _statements(place[0]).items()
        if isinstance(node, ast.For | ast.While) and start <= place[1] <= node.end_lineno
    ]
    return (place[0], max(loops)) if loops else None


def body_of(place: Place) -> Place:
    """Return where the body of a loop or `if` begins."""
    return place[0], _statements(place[0])[place[1]].body[0].lineno


@cache
def statement_of(place: Place) -> Place:
    """Return the start of the statement that a line belongs to; of a compound statement only the head counts."""
    file, line = place
    starts = [
        start
        for start, node in _statements(file).items()
        if start <= line <= (node.body[0].lineno - 1 if hasattr(node, "body") else node.end_lineno)
    ]
    return file, max(starts, default=line)


@cache
def _statements(file: str) -> dict[int, ast.stmt]:
    if not Path(file).is_file():
        return {}
    nodes = ast.walk(ast.parse(Path(file).read_text(encoding="utf-8")))
    return {node.lineno: node for node in nodes if isinstance(node, ast.stmt)}
