"""Steps over a table that stays on the device, in Triton: the kernels of `triton_norm` and `triton_step`, which
`fusedtrain._plan` tells where the tensors are, without a list of them.

What the device has already is not brought there again: where nothing but the values of tensors has changed since the
last step on the same stream, nothing is.
"""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedtrain.backends import step_tables, triton_norm, triton_step
from fusedtrain.backends import triton_checks as checks
from fusedtrain.backends.triton_table import (
    ALIGNMENT,
    HEAD,
    bits,
    capturing,
    current,
    fields,
    head,
    positions,
    refill,
    stream_of,
)

Dtypes = tuple[torch.dtype, ...]

NEAR = 4096
"""Integers: a copy takes so many along sooner than another copy is begun."""


class Launch(NamedTuple):
    """The table of one launch."""

    dtypes: Dtypes
    """Of the gradients, or of p, g and the states."""
    rows: Any
    """An ``IntegerRows`` of `fusedtrain._plan`."""
    chunks: int
    begin: int
    """Where its head is among the integers of all tables,"""
    body: int
    """its first row,"""
    end: int
    """and what comes after the last."""


def on_host(x: Tensor) -> bool:
    """Whether it must be brought to the device; the interpreter's is the host, and treated alike."""
    return x.device.type == "cpu"


class DeviceMemory:
    """The tables of all launches where the device reads them, hyperparameters of the host behind them, and an image of
    what it has. All of it is used on the stream that was current when it was made: what an earlier step has yet to read
    is overwritten behind it."""

    def __init__(self, table: KeptTable, hyper: int) -> None:
        """``hyper``: how many hyperparameters there are on the host."""
        device = table.device
        self.stream, self.hyper = stream_of(device), hyper
        self.begin_hyper = table.launches[-1].end
        self._image = array("q", bytes(8 * (self.begin_hyper + hyper)))
        self._host = torch.frombuffer(self._image, dtype=torch.int64)
        self._bytes = memoryview(self._image)
        self._stale = [[0, len(self._image)]]
        self._there = torch.empty(len(self._image), dtype=torch.int64, device=device)
        self.tables = {launch.begin: self._there[launch.begin : launch.end] for launch in table.launches}
        self.values = self._there[self.begin_hyper :].view(torch.float64)
        self.partials = torch.empty((table.partials, 2), dtype=torch.float64, device=device)
        self.norm = torch.empty((), dtype=table.norm_dtype, device=device)
        self.nonfinite = torch.empty((), dtype=torch.float32, device=device)

    def _changed(self, begin: int, end: int) -> None:
        """Called from the first place to the last."""
        last = self._stale[-1] if self._stale else None
        if last is not None and begin - last[1] <= NEAR:
            last[1] = max(last[1], end)
        else:
            self._stale.append([begin, end])

    def draw(self, launch: Launch, extra: list[int], tensors: Any) -> None:
        """The head and the rows of a launch as they are now."""
        now = array("q", head(len(launch.rows), launch.chunks, extra))
        if self._image[launch.begin : launch.body] != now:
            self._image[launch.begin : launch.body] = now
            self._changed(launch.begin, launch.body)
        begin, end = tensors.write(launch.rows, self._bytes[launch.body : launch.end])
        if begin < end:
            self._changed(launch.body + begin, launch.body + end)

    def draw_hyper(self, hyper: Tensor) -> None:
        """By their bits: a zero may change its sign."""
        here, now = self._host[self.begin_hyper :], hyper.view(torch.int64).view(-1)
        if not torch.equal(here, now):
            here.copy_(now)
            self._changed(self.begin_hyper, len(self._image))

    def bring(self) -> None:
        """Brings the device up to date."""
        stale, self._stale = self._stale, []
        for begin, end in stale:
            refill(self._there[begin:end], self._host[begin:end])


class KeptTable:
    """A ``StepTable`` of `fusedtrain._plan`, with what the device keeps of it."""

    def __init__(self, plan: Any, tensors: Any, device: torch.device, groups: int) -> None:
        """``groups``: how many rows of hyperparameters a step must have."""
        self.tensors, self.device, self.groups = tensors, device, groups
        self.refresh, self.holds = tensors.refresh, tensors.holds
        self.written, self.has_double_gradient = tensors.written, tensors.has_double_gradient
        self.norm_dtype = torch.float64 if tensors.has_double_gradient() else torch.float32
        self.launches: list[Launch] = []

        def add(dtypes: Dtypes, chosen: list[int], names: list[str], chunk: int) -> Launch:
            rows = plan.IntegerRows(tensors, chosen, names, chunk, ALIGNMENT.value)
            begin = self.launches[-1].end if self.launches else 0
            body = begin + HEAD.value
            self.launches.append(Launch(dtypes, rows, rows.chunks, begin, body, body + len(rows) * rows.width))
            return self.launches[-1]

        types: list[Dtypes] = [tuple(getattr(torch, name) for name in row) for row in tensors.types()]
        self.blocks = triton_norm.blocks_for(tensors.elements)
        chunk = self.blocks * triton_norm.BLOCK
        by_gradient = positions(row[1] for row in types)
        self.norms = [add((dtype,), chosen, fields(["g"]), chunk) for dtype, chosen in by_gradient.items()]
        self.partials = sum(launch.chunks for launch in self.norms)
        states = [f"state{k}" for k in range(len(types[0]) - 2)]
        names = fields(["p", "g", *states], triton_step.MORE)
        self.steps = [add(dtypes, chosen, names, triton_step.BLOCK) for dtypes, chosen in positions(types).items()]
        self._memory: DeviceMemory | None = None

    def __len__(self) -> int:
        return len(self.tensors)

    def stands_aside(self) -> bool:
        """Whether a step would be captured now: a graph would use the memory for as long as it is replayed."""
        return capturing(self.device)

    def step(
        self,
        rule: str,
        hyper: Tensor,
        norm_type: float,
        scales: tuple[Tensor | None, ...],
        max_norm: float,
        skip_nonfinite: bool,
        outputs: tuple[Tensor | None, ...],
        skipped_steps: Tensor | None,
    ) -> None:
        """As `StepLauncher.step`, of what was checked. ``scales``: inv_scale, found_inf; ``outputs``: grad_norm,
        clip_coef, nonfinite."""
        # Taken out of the table, and put back when all went well: a launch that failed may leave tickets behind.
        memory, self._memory = self._memory, None
        with current(self.device):
            here = hyper.numel() if on_host(hyper) else 0
            if memory is None or memory.hyper != here or memory.stream != stream_of(self.device):
                memory = None  # so that its place may be taken
                with torch.inference_mode(False):  # it is written in later steps
                    memory = DeviceMemory(self, here)
            measured = self.norms if norm_type > 0 else []
            extras = triton_norm.head_extras([launch.chunks for launch in measured], norm_type, self.blocks)
            for launch, extra in zip(measured, extras, strict=True):
                memory.draw(launch, extra, self.tensors)
            bound = bits([max_norm])
            for launch in self.steps:
                memory.draw(launch, bound, self.tensors)
            if here:
                memory.draw_hyper(hyper)
            memory.bring()

            grad_norm, clip_coef, flag = outputs
            nonfinite = memory.nonfinite if flag is None else flag
            for launch in measured:
                triton_norm.launch(
                    memory.tables[launch.begin],
                    launch.chunks,
                    memory.partials,
                    memory.norm,
                    nonfinite,
                    launch.dtypes[0],
                    norm_type,
                )
            inputs = (memory.norm if measured else None, nonfinite if skip_nonfinite else None, *scales)
            for launch in self.steps:
                # Written, and counted, once: when no launch has the inputs yet to read.
                last = launch is self.steps[-1]
                triton_step.launch(
                    memory.tables[launch.begin],
                    launch.chunks,
                    memory.values if here else hyper,
                    inputs,
                    (grad_norm, clip_coef, skipped_steps) if last else (None, None, None),
                    rule,
                    launch.dtypes,
                )
        self._memory = memory


class StepLauncher(step_tables.TableMaker):
    """Steps over tables with launches of Triton."""

    def table(
        self,
        groups: list[dict[str, Any]],
        rows: list[int],
        state: dict[Tensor, Any],
        keys: tuple[str, ...],
        entries: list[dict[str, Any] | None],
        steps: list[Tensor],
    ) -> KeptTable:
        """See `TableMaker.table`."""
        tensors = super().table(groups, rows, state, keys, entries, steps)
        return KeptTable(self._plan, tensors, steps[0].device, max(rows) + 1)

    def step(
        self,
        table: KeptTable,
        rule: str,
        hyper: Tensor,
        norm_type: float,
        inv_scale: Tensor | None,
        found_inf: Tensor | None,
        max_norm: float,
        skip_nonfinite: bool,
        outputs: Tensor | None,
        skipped_steps: Tensor | None,
    ) -> bool:
        """The norm of the gradients, unless ``norm_type`` is 0, and the step: two launches for each choice of dtypes.
        ``outputs`` (3,) receives grad_norm, clip_coef and nonfinite; the other arguments are those of the schema of
        ``optim_step_``. False, and nothing was done, if the stream is being captured.

        Raises:
            RuntimeError: no ``table.refresh()`` that returned true before this step.
            ValueError: a scalar that a step cannot take; nothing was done.
        """
        table.tensors.begin()
        try:
            if table.stands_aside():
                return False
            scalars = {"inv_scale": inv_scale, "found_inf": found_inf}
            try:
                _check(table, rule, hyper, norm_type, scalars, max_norm, skip_nonfinite, outputs, skipped_steps)
            except RuntimeError as error:
                raise ValueError(str(error)) from None
            results: tuple[Tensor | None, ...] = (None, None, None) if outputs is None else outputs.unbind()
            scales = (inv_scale, found_inf)
            table.step(rule, hyper, norm_type, scales, max_norm, skip_nonfinite, results, skipped_steps)
        finally:
            table.tensors.end()
        return True


def _check(
    table: KeptTable,
    rule: str,
    hyper: Tensor,
    norm_type: float,
    scalars: dict[str, Tensor | None],
    max_norm: float,
    skip_nonfinite: bool,
    outputs: Tensor | None,
    skipped_steps: Tensor | None,
) -> None:
    """Raises RuntimeError for arguments that the operators would refuse, or that keep their data elsewhere."""
    op = "optim_step_"
    named = {**scalars, "hyper": hyper, "outputs": outputs, "skipped_steps": skipped_steps}
    for name, x in named.items():
        if type(x) is not Tensor and (x is not None or name == "hyper"):
            checks.refuse(op, f"{name} is of {type(x)}; a step by a table takes plain tensors")
    checks.check_max_norm(op, max_norm)
    checks.check_launch(op, rule, hyper, table.device, scalars, skipped_steps)
    if hyper.shape[0] < table.groups:
        checks.refuse(op, f"hyper has {hyper.shape[0]} rows; the table needs {table.groups}")
    if not norm_type >= 0:
        checks.refuse(op, f"norm_type is {norm_type}; it must be >= 0")
    if norm_type == 0 and (max_norm >= 0 or skip_nonfinite):
        checks.refuse(op, "norm_type is 0; clipping and skipping need a norm")
    if outputs is not None:
        checks.check_tensor(op, "outputs", outputs, table.device)
        if outputs.shape != (3,):
            checks.refuse(op, f"outputs has shape {tuple(outputs.shape)}; it must have three elements")


def step_launcher(device_type: str) -> StepLauncher | None:
    """For tensors of a device type; None if there are no tables here: see `step_tables.parts`."""
    found = step_tables.parts()
    return None if found is None else StepLauncher(found, device_type)
