"""Machine code of NVIDIA GPUs, as `cuobjdump -sass` prints it: its loops, and what an iteration of the main one costs.

A kernel's main loop moves its tensors by vectors: 8 bytes at once for a thread, or better 16. Its body may hold other
ways too: with an operand that is rarely there, or element by element. What counts is the longest way among those that
move, by vectors alone, as many bytes as the kernel has to for each element; so the number of elements of an iteration
follows.
"""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass, replace
from itertools import pairwise

VECTOR_BYTES = 8
DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b")
INTEGER = re.compile(r"U?(I(?!MAD\.MOV|2F)|LOP|PLOP|SHF|SHL|SHR|LEA|PRMT|SGXT|BMSK|BREV|FLO|POPC|VI)")
MEMORY = re.compile(r"(LDG|STG|LD|ST|ATOM|ATOMG|RED|REDG)(?=\.|$)")
WIDTH = re.compile(r"\.(?:[US])?(8|16|64|128|256)(?=\.|$)")
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", re.MULTILINE)


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str | None
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def is_local(self) -> bool:
        return self.name in ("LDL", "STL")

    @property
    def target(self) -> int | None:
        """Where a branch goes, if it says so: a jump by a table does not."""
        found = re.search(r"\b0x([0-9a-f]+)$", self.operands)
        return int(found[1], 16) if found and self.name not in ("BRX", "JMX") else None

    @property
    def ends_block(self) -> bool:
        return self.name in ("BRA", "BSYNC", "EXIT", "RET", "BRX", "JMP", "JMX")

    @property
    def moved(self) -> Moved:
        """What it does to global memory. Narrow and under a predicate it does nothing: then it is of another way, for
        memory that is not aligned, which was merged into this one; the vectors of this way have to be there as well."""
        found = MEMORY.match(self.opcode)
        if not found:
            return Moved()
        width = WIDTH.search(self.opcode)
        size = int(width[1]) // 8 if width else 4
        if size < VECTOR_BYTES or found[1] not in ("LDG", "STG", "LD", "ST"):
            return Moved(otherwise=int(self.predicate is None))
        return Moved(loaded=size) if found[1].startswith("LD") else Moved(stored=size)

    @property
    def cost(self) -> Cost:
        moved = self.moved
        return Cost(
            total=1,
            integer=int(INTEGER.match(self.opcode) is not None),
            double=int(DOUBLE.match(self.opcode) is not None),
            wide_loads=int(moved.loaded >= 16),
            wide_stores=int(moved.stored >= 16),
            until_loaded=int(moved.loaded > 0),
        )


@dataclass(frozen=True)
class Moved:
    """Bytes that an instruction, or a way through the code, moves by vectors; and its other accesses."""

    loaded: int = 0
    stored: int = 0
    otherwise: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.loaded + other.loaded, self.stored + other.stored, self.otherwise + other.otherwise)


@dataclass(frozen=True)
class Cost:
    """Instructions of an iteration of a loop: all, those of integers and of doubles, loads and stores of 16 bytes; and
    all from the first up to the last load of a vector, with that: how early a loop that loads ahead does so."""

    total: int = 0
    integer: int = 0
    double: int = 0
    wide_loads: int = 0
    wide_stores: int = 0
    until_loaded: int = 0

    def __add__(self, other: Cost) -> Cost:
        """What comes of doing the other after this."""
        sums = Cost(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))
        until = self.total + other.until_loaded if other.until_loaded else self.until_loaded
        return replace(sums, until_loaded=until)


@dataclass(frozen=True)
class MainLoop:
    """An iteration of a kernel's main loop."""

    elements: int
    loaded: int
    stored: int
    cost: Cost


def functions(listing: str) -> dict[str, list[Instruction]]:
    """The instructions of each function of a listing, by its mangled name."""
    parts = re.split(r"^\s*Function : (\S+)$", listing, flags=re.MULTILINE)
    return {name: instructions(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def instructions(text: str) -> list[Instruction]:
    return [Instruction(int(at, 16), predicate or None, *rest) for at, predicate, *rest in LINE.findall(text)]


def always(branch: Instruction) -> bool:
    """Whether it is taken on no condition."""
    return branch.predicate is None and not re.match(r"!?U?P\d", branch.operands)


class Blocks:
    """The instructions between two branches, by the address of the first, and the blocks that may follow each."""

    def __init__(self, code: list[Instruction]) -> None:
        joins = {}  # where the threads that a BSSY names meet again: BSYNC goes on from there
        targets = {code[0].address}
        goes_to: dict[int, int | None] = {}
        for here in code:
            if here.name == "BSSY":
                joins[here.operands.split(",")[0]] = here.target
            if here.ends_block:
                goes_to[here.address] = joins.get(here.operands) if here.name == "BSYNC" else here.target
                targets.add(goes_to[here.address] or 0)
        self.code: dict[int, list[Instruction]] = {}
        start = code[0].address
        for before, here in zip([None, *code], code, strict=False):
            if here.address in targets or before is None or before.ends_block:
                start = here.address
            self.code.setdefault(start, []).append(here)
        # Where a jump by a table may go to is not listed: it is where nothing before leads.
        known = {way for at, way in goes_to.items() if way is not None and way > at}
        after_end = [here.address for before, here in pairwise(code) if before.ends_block and always(before)]
        tables = [at for at in after_end if at not in known]
        following = dict(zip(self.code, list(self.code)[1:], strict=False))
        self.next: dict[int, list[int]] = {}
        for start, block in self.code.items():
            last = block[-1]
            ways = tables if last.name in ("BRX", "JMX") else [goes_to[last.address]] if last.ends_block else []
            ways = ways if last.ends_block and always(last) else [*ways, following.get(start)]
            self.next[start] = [way for way in dict.fromkeys(ways) if way in self.code]

    def dominators(self) -> dict[int, set[int]]:
        """For each block that is reached, those that every way to it goes through."""
        entry = next(iter(self.code))
        order, came_from = [entry], {entry: set()}
        for block in order:
            for way in self.next[block]:
                if way not in came_from:
                    came_from[way] = set()
                    order.append(way)
                came_from[way].add(block)
        dominated = {block: set(order) for block in order}
        dominated[entry] = {entry}
        changed = True
        while changed:
            changed = False
            for block in order[1:]:
                now = set.intersection(*(dominated[before] for before in came_from[block])) | {block}
                changed |= now != dominated[block]
                dominated[block] = now
        return dominated

    def loops(self) -> dict[int, set[int]]:
        """The blocks of each loop, by its first."""
        dominated = self.dominators()
        came_from: dict[int, set[int]] = {}
        for block in dominated:
            for way in self.next[block]:
                came_from.setdefault(way, set()).add(block)
        found: dict[int, set[int]] = {}
        for block in dominated:
            for head in self.next[block]:
                if head not in dominated[block]:
                    continue
                body = found.setdefault(head, {head})
                pending = [block]
                while pending:
                    inside = pending.pop()
                    if inside not in body:
                        body.add(inside)
                        pending += came_from[inside]
        return found

    def ways_through(self, head: int, body: set[int]) -> dict[Moved, Cost]:
        """For everything that an iteration may move by vectors alone: the longest way that moves it. A loop within
        this one counts as if it ran once."""
        order: list[int] = []
        seen = {head}
        stack = [(head, iter(self.next[head]))]
        open_blocks = {head}
        edges: dict[int, list[int]] = {block: [] for block in body}
        while stack:
            block, ways = stack[-1]
            way = next(ways, None)
            if way is None:
                order.append(block)
                open_blocks.discard(block)
                stack.pop()
            elif way in body and way not in open_blocks:
                edges[block].append(way)
                if way not in seen:
                    seen.add(way)
                    open_blocks.add(way)
                    stack.append((way, iter(self.next[way])))
        best: dict[int, dict[Moved, Cost]] = {block: {} for block in order}
        best[head][Moved()] = Cost()
        whole: dict[Moved, Cost] = {}
        for block in reversed(order):
            moved = sum((i.moved for i in self.code[block]), Moved())
            cost = sum((i.cost for i in self.code[block]), Cost())
            if moved.otherwise:
                continue
            reached = {before + moved: so_far + cost for before, so_far in best[block].items()}
            into = [best[way] for way in edges[block]] + ([whole] if head in self.next[block] else [])
            for ways in into:
                for key, value in reached.items():
                    ways[key] = max(ways.get(key, Cost()), value, key=lambda c: c.total)
        return whole


def main_loops(code: list[Instruction], loads: int, stores: int, doubles: int | None = None) -> list[MainLoop]:
    """The loops in which `loads` and `stores` bytes are moved for each element, by vectors alone, and if that is given,
    so many instructions of doubles are done; of nested ones the innermost."""
    blocks = Blocks(code)
    found: list[tuple[set[int], MainLoop]] = []
    for head, body in sorted(blocks.loops().items(), key=lambda item: len(item[1])):
        if any(inner <= body for inner, _ in found):
            continue
        for moved, cost in blocks.ways_through(head, body).items():
            elements = moved.stored // stores if stores else moved.loaded // loads
            if not elements or (moved.loaded, moved.stored) != (elements * loads, elements * stores):
                continue
            if doubles is None or cost.double == elements * doubles:
                found.append((body, MainLoop(elements, moved.loaded, moved.stored, cost)))
    return [loop for _, loop in found]


def main_loop(code: list[Instruction], loads: int, stores: int, doubles: int | None = None) -> MainLoop | None:
    """Of such loops beside each other the one that takes the most elements at once. None if there is none."""
    loops = main_loops(code, loads, stores, doubles)
    return max(loops, key=lambda loop: (loop.elements, loop.cost.total), default=None)
