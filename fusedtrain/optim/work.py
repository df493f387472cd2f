"""What one step works on: the tensors, checked and brought into one layout, in batches of one call each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fusedtrain import distributed, layout
from fusedtrain.distributed import Shards

FLOATS = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


@dataclass
class Batch:
    """The tensors of one call of ``optim_step_``: one rule, one device, one choice of dtypes."""

    rule: str
    device: torch.device
    dtypes: frozenset[torch.dtype]
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[Sequence[Tensor]] = field(default_factory=list)  # per parameter, in the order of the rule's slots
    steps: list[Tensor] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """``(parameter, dense stand-in)``: written back after the call."""

    def slot_major(self) -> list[Tensor]:
        return [states[slot] for slot in range(len(self.states[0])) for states in self.states] if self.states else []


@dataclass
class Work:
    """All batches of a step, and its gradients as the norm wants them."""

    batches: dict[tuple[object, ...], Batch] = field(default_factory=dict)
    split: dict[Shards | None, list[Tensor]] = field(default_factory=dict)
    written: list[Tensor] = field(default_factory=list)
    """Whose version counters a step raises: parameters, states, steps."""

    def add(
        self, rule: str, row: int, p: Tensor, g: Tensor, states: list[Tensor], step: Tensor, measured: bool
    ) -> None:
        """One parameter with its gradient and states, all checked; ``measured``: the gradient counts in the norm."""
        g = distributed.like(distributed.without_pending_sum(g), p)
        p_here, g_here = distributed.local(p), distributed.local(g)
        plain = layout.of(p_here) == "dense" and not is_negated(p_here)
        dense = p_here if plain else torch.empty_like(p_here).copy_(p_here)
        g_here = in_layout_of(g_here.resolve_neg() if is_negated(g_here) else g_here, dense)
        states_here = [distributed.local(s) for s in states]
        dtypes = (p_here.dtype, g_here.dtype, *(s.dtype for s in states_here))
        key = (rule, p_here.device, dtypes)
        batch = self.batches.get(key)
        if batch is None:
            batch = self.batches[key] = Batch(rule, p_here.device, frozenset(dtypes))
        batch.params.append(dense)
        batch.grads.append(g_here)
        batch.states.append(states_here)
        batch.steps.append(step)
        batch.group.append(row)
        if dense is not p_here:
            batch.copies.append((p_here, dense))
        self.written += (p, *states, step)
        if measured:
            self.split.setdefault(distributed.shards(g), []).append(g_here)

    def add_shards_without_gradients(self, groups: list[dict[str, Any]]) -> None:
        """A rank may lack a gradient that another has: it takes part in the norm all the same."""
        for group in groups:
            for p in group["params"]:
                shards = distributed.shards(p)
                if shards is not None:
                    self.split.setdefault(shards, [])

    def check_apart(self, call: str, seen: bool = True) -> None:
        """Raises RuntimeError if tensors of different calls, or copied ones, share memory. Of those of one call the
        operator sees it, before it writes, if these are ``seen`` by it; but then other calls have written."""
        if seen and len(self.batches) < 2 and not any(batch.copies for batch in self.batches.values()):
            return
        pieces = sorted(
            (
                (str(x.device), x.data_ptr(), i, x)
                for i, x in enumerate(map(distributed.local, self.written))
                if x.numel()
            ),
            key=lambda piece: piece[:3],
        )
        reaching: list[tuple[str, int, int, Tensor]] = []  # those that reach beyond where the next begins
        for device, begin, i, x in pieces:
            reaching = [piece for piece in reaching if piece[0] == device and begin < _end(piece[3])]
            for _, _, j, y in reaching:
                if share_memory(x, y):
                    raise RuntimeError(
                        f"{call}: two tensors that it writes share memory, of {tuple(y.shape)} and {tuple(x.shape)} "
                        f"(numbers {j} and {i} of its parameters, states and step counts): what one of them is given, "
                        "the other would overwrite. Pass each tensor once, and no views of one another"
                    )
            reaching.append((device, begin, i, x))


def _end(x: Tensor) -> int:
    """The address behind the last element."""
    return x.data_ptr() + x.itemsize * (1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)))


def share_memory(x: Tensor, y: Tensor) -> bool:
    """Whether any element of ``x`` is one of ``y``; their ranges of addresses overlap. Columns of one matrix do not."""
    if x.itemsize != y.itemsize or (x.data_ptr() - y.data_ptr()) % x.itemsize:
        return True
    first = min(x.data_ptr(), y.data_ptr())

    def places(t: Tensor) -> Tensor:
        at = torch.tensor((t.data_ptr() - first) // t.itemsize, device="cpu")
        for size, stride in zip(t.shape, t.stride(), strict=True):
            at = at.unsqueeze(-1) + torch.arange(size, device="cpu") * stride
        return at.flatten()

    return bool(torch.isin(places(x), places(y)).any())


def is_negated(x: Tensor) -> bool:
    """Whether memory holds the negative of what torch reads, as the imaginary part of conjugate numbers does. A graph
    is given plain tensors."""
    return not torch.compiler.is_compiling() and x.is_neg()


def in_layout_of(x: Tensor, p: Tensor) -> Tensor:
    """``x``, or a copy of it, with the strides of the dense ``p``."""
    return x if layout.same(x, p) else torch.empty_like(p, dtype=x.dtype).copy_(x)


def state_dtype(p: Tensor) -> torch.dtype:
    """That of a new state: fp32, fp64 for fp64."""
    return torch.float64 if p.dtype == torch.float64 else torch.float32


def fits(state: Tensor, p: Tensor) -> bool:
    """Whether a state of the right shape is where its parameter is, in its layout and precise enough."""
    if state.device != p.device or state.dtype.itemsize < state_dtype(p).itemsize:
        return False
    state, p = distributed.local(state), distributed.local(p)
    return layout.same(state, p if layout.of(p) == "dense" else torch.empty_like(p, device="meta"))


def check_pair(call: str, where: str, p: Tensor, g: Tensor) -> None:
    """Raises RuntimeError unless a step can be taken with this parameter and gradient. Writes nothing."""
    for what, x in (("parameter", p), ("gradient", g)):
        if x.layout != torch.strided:
            remedy = "use torch.optim.SparseAdam or a dense gradient" if what == "gradient" else "use a dense one"
            raise RuntimeError(f"{call} does not support sparse {what}s: that of {where} is {x.layout}; {remedy}")
        if x.dtype not in FLOATS:
            kind = "complex" if x.is_complex() else str(x.dtype)
            raise RuntimeError(
                f"{call} does not support {kind} {what}s: that of {where} is {x.dtype}; it takes float32, float64, "
                "bfloat16 and float16" + (" (torch.view_as_real gives a real view)" if x.is_complex() else "")
            )
    if distributed.is_dtensor(p) != distributed.is_dtensor(g):
        kinds = [type(x).__name__ for x in (p, g)]
        raise RuntimeError(f"{call}: {where} is a {kinds[0]} but its gradient is a {kinds[1]}; shard both or neither")
    if p.shape != g.shape:
        raise RuntimeError(f"{call}: {where} is {tuple(p.shape)} but its gradient is {tuple(g.shape)}")
    if p.device != g.device:
        raise RuntimeError(f"{call}: {where} is on {p.device} but its gradient is on {g.device}")
    if layout.of(distributed.local(p)) == "overlap":
        raise RuntimeError(
            f"{call}: {where} has elements that share memory (shape {tuple(p.shape)}, strides {p.stride()}), as after "
            "expand(): a step would write them more than once. Optimize the tensor it was expanded from, or a clone"
        )


def check_state(call: str, where: str, key: str, value: object, p: Tensor) -> None:
    """Raises RuntimeError unless ``value`` can be a state of ``p`` elementwise. Writes nothing."""
    if not isinstance(value, Tensor):
        raise RuntimeError(f"{call}: state {key!r} of {where} is no tensor but {type(value).__name__}")
    if value.layout != torch.strided or value.dtype not in FLOATS:
        raise RuntimeError(
            f"{call}: state {key!r} of {where} is {value.layout} of {value.dtype}, not a dense float tensor"
        )
    if value.shape != p.shape:
        raise RuntimeError(f"{call}: state {key!r} of {where} is {tuple(value.shape)}, the parameter {tuple(p.shape)}")
    if distributed.is_dtensor(value) != distributed.is_dtensor(p):
        raise RuntimeError(
            f"{call}: state {key!r} of {where} is a {type(value).__name__}, the parameter a {type(p).__name__}; load "
            "sharded states with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )
