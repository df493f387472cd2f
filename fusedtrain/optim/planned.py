"""The eager step on plain tensors of one device without lists: a table in C++, built once and checked before every use.

Handing thousands of tensors to an operator costs more than stepping them when they are small. The table holds on to
the tensors of the last step by lists, looks at each of them again at every step (gradients are freed and reallocated,
states loaded, parameters exchanged), and steps aside as soon as anything but the gradients' memory differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusedtrain import dispatch
from fusedtrain.optim import hyper, launch
from fusedtrain.optim.hyper import Settings
from fusedtrain.optim.work import Work
from fusedtrain.rules import UPDATES

if TYPE_CHECKING:
    from fusedtrain.optim.base import ClippedOptimizer

_PATIENCE = 4
"""After so many tables in a row that served no step, as when gradients come and go,"""
_PAUSE = 64
"""this many steps pass before another is built."""


class Table:
    """The table of one optimizer, for as long as its tensors stay what they are."""

    def __init__(
        self,
        opt: ClippedOptimizer,
        settings: Settings,
        launcher: Any,
        device: torch.device,
        dtypes: frozenset[torch.dtype],
    ) -> None:
        """Raises ValueError if the tensors are not what a table can hold."""
        self.rules, self.rule = settings.rules, settings.rules[0]
        self.launcher, self.device, self.dtypes = launcher, device, dtypes
        keys = UPDATES[self.rule].slots
        params = [p for p in opt._parameters() if p.grad is not None]
        entries = [opt.state[p] if keys else None for p in params]
        steps = [opt._step_count(p, keys) for p in params]
        self.table = launcher.table(opt.param_groups, settings.rows, opt.state, keys, entries, steps)
        # Views of one block share its version counter.
        bases = (x if x._base is None else x._base for x in self.table.written())
        self.written = list({id(x): x for x in bases}.values())
        self.norm_dtype = torch.float64 if self.table.has_double_gradient() else torch.float32

    def stands_aside(self) -> bool:
        """Whether the step of this moment is not for a table, although it may hold: one that is captured into a graph,
        which works on a table of its own, and one that a mode of torch's dispatcher wants to see."""
        return hyper.under_mode() or self.table.stands_aside()  # type: ignore[no-any-return]

    def step(self, opt: ClippedOptimizer, settings: Settings) -> bool:
        """Steps; or does nothing and returns False if the table no longer holds."""
        if settings.rules is not self.rules and settings.rules != self.rules:
            return False
        if not _all_here(opt, settings, self.device):
            return False
        scale, found_inf = launch.amp(opt)
        outputs = torch.empty(3, dtype=self.norm_dtype, device=self.device) if settings.measures else None
        if not self.table.refresh(opt.param_groups, opt.state):
            return False
        try:
            stepped = self.launcher.step(
                self.table,
                self.rule,
                settings.tables[self.rule],
                settings.norm_type if settings.measures else 0.0,
                scale,
                found_inf,
                settings.max_norm,
                settings.nonfinite != "propagate",
                outputs,
                opt._skipped,
            )
        except ValueError:  # a scalar that it cannot take; nothing was done, and the lists say what is wrong
            return False
        if not stepped:
            return False
        torch.autograd.graph.increment_version(self.written)
        opt._outputs, opt._held = outputs, None
        opt._note(settings, None if outputs is None else outputs[2])
        return True


def _all_here(opt: ClippedOptimizer, settings: Settings, device: torch.device) -> bool:
    """Whether the scalars of a step are on its device; hyperparameters may be on the host."""
    scalars = [getattr(opt, "grad_scale", None), getattr(opt, "found_inf", None), opt._skipped]
    scalars += [table for table in settings.tables.values() if not table.is_cpu]
    return all(x.device == device for x in scalars if isinstance(x, torch.Tensor))


class Planner:
    """The table of an optimizer, and whether building another is worthwhile."""

    def __init__(self) -> None:
        self.table: Table | None = None
        self.served = True
        self.failures = self.wait = 0

    def build(
        self, opt: ClippedOptimizer, settings: Settings, device: torch.device, dtypes: frozenset[torch.dtype]
    ) -> None:
        """A table for the steps to come, if that can be, after a step by lists on such tensors."""
        self.table = None
        if self.wait > 0:
            self.wait -= 1
            return
        self.failures = 0 if self.served else self.failures + 1
        self.served = False
        backend = dispatch.resolve(opt._call, device, dtypes, settings.rules[0], opt.backend)
        if self.failures >= _PATIENCE or backend.step_launcher is None:
            self.failures, self.wait = 0, _PAUSE
            return
        try:
            self.table = Table(opt, settings, backend.step_launcher, device, dtypes)
        except ValueError:  # what a table cannot hold the lists can, or they say why not
            self.wait = _PAUSE


def step(opt: ClippedOptimizer, settings: Settings) -> bool:
    """Performs the step by the optimizer's table; False, and nothing is done, if it has none that holds."""
    planner = opt._planner
    if planner is None or planner.table is None:
        return False
    table = planner.table
    if table.stands_aside():
        if not table.table.holds(opt.param_groups, opt.state):
            planner.table = None  # else it stays for the steps to come
        return False
    backend = dispatch.resolve(opt._call, table.device, table.dtypes, table.rule, opt.backend)
    if backend.step_launcher is not table.launcher or not table.step(opt, settings):
        planner.table = None
        return False
    planner.served = True
    return True


def prepare(opt: ClippedOptimizer, settings: Settings, todo: Work) -> None:
    """Called after a step by lists."""
    devices = {batch.device for batch in todo.batches.values()}
    if not opt._by_table or len(settings.tables) != 1 or len(devices) != 1 or hyper.under_mode():
        return
    (device,) = devices
    if not _all_here(opt, settings, device):
        return
    if opt._planner is None:
        opt._planner = Planner()
    if opt._planner.table is not None:  # it stood aside
        return
    dtypes = [batch.dtypes for batch in todo.batches.values()]
    opt._planner.build(opt, settings, device, frozenset().union(*dtypes))
