"""The clipped step that all optimizers share: read the settings, gather the tensors, launch.

A subclass names its rule and the row of its hyperparameters; nothing here knows what an update computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor

from fusedtrain import dispatch
from fusedtrain.clip import total_norm
from fusedtrain.optim import arena, checkpoint, hooks, hyper, launch, pending, planned, work
from fusedtrain.optim.hyper import Group, Settings
from fusedtrain.optim.pending import Pending
from fusedtrain.optim.work import Work
from fusedtrain.rules import UPDATES, clip_coefficient


class ClippedOptimizer(torch.optim.Optimizer):
    """Clip and step in one: unscale, look for non-finite gradients, clip by global norm and by value, decay, update.

    ``.grad`` is only read. Nothing is waited for but a ``max_norm`` that is a tensor on a GPU, and by ``"raise"`` the
    step before. Besides torch's arguments every subclass takes, by keyword:

    Args:
        max_norm: bound >= 0 of the norm of all gradients of all groups together, as ``clip_grad_norm_``. inf measures
            the norm and clips nothing; None does neither.
        norm_type: order p > 0 of that norm, or inf.
        clip_value: bound >= 0 of each element of the gradient, after clipping by norm.
        l1: coefficient >= 0 of an L1 penalty; its subgradient is not clipped.
        nonfinite: what an inf or NaN among the gradients does. ``"propagate"``: what it does in torch. ``"skip"``: the
            step leaves parameters, states and step counts bitwise as they are; decided on the device. ``"raise"``: as
            "skip", and the next call of ``step()`` raises FloatingPointError before it does anything: it waits for the
            step before, not for what has been queued since.
        backend: ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"reference"``; the first capable one by default. It belongs
            to the object, not to checkpoints.

    ``foreach=`` and ``fused=`` are accepted, since frameworks pass them, and mean nothing. ``capturable=`` too: the
    step never waits. Hyperparameters live in the parameter groups, may be changed between steps and are checked
    again then; ``max_norm``, ``norm_type`` and ``nonfinite`` must be the same in all groups.

    States are fp32 for bf16 and fp16 parameters, else of the parameter's dtype, in its layout, mostly zero at first.
    With ``torch.amp.GradScaler`` the step unscales, and skips on overflow, itself: ``_step_supports_amp_scaling`` is
    true. Lightning refuses its own ``gradient_clip_val`` with such optimizers; use ``max_norm`` there instead, or set
    the attribute to False on the object.

    Raises:
        ValueError, TypeError: a hyperparameter that is negative, not finite or no number; duplicate parameters.
        RuntimeError: at ``step()``, before anything is written: sparse, complex or integer parameters or gradients,
            parameters whose elements share memory, states that do not fit, a backend that cannot run it,
            ``nonfinite="raise"`` in a CUDA graph or a compiled step.
    """

    _step_supports_amp_scaling = True
    _reads: ClassVar[tuple[str, ...]] = ("lr", "maximize", *checkpoint.OWN_DEFAULTS, "differentiable")
    """Keys of a group that a step depends on; subclasses add theirs."""
    _get: ClassVar[Any]
    _run = staticmethod(launch.run)  # steps a batch
    _by_table: ClassVar[bool] = True  # whether eager steps go by a table
    _state_keys: ClassVar[frozenset[str]] = frozenset()
    """The states that are tensors like the parameter."""
    _optional_states: ClassVar[frozenset[str]] = frozenset()
    """Those that may be missing where others are there; zero then."""

    backend: str | None = None
    _own_defaults: Group = {}  # noqa: RUF012  replaced, never changed
    _outputs: Tensor | tuple[Tensor, Tensor] | None = None
    """grad_norm and clip_coef of the last step."""
    _held: tuple[Tensor, Tensor] | None = None
    """Where a compiled step leaves grad_norm and clip_coef: it can write tensors, not attributes of an optimizer."""
    _skipped: Tensor | None = None
    _pending: Pending | None = None
    _calls: int = 0
    _seen: tuple[Any, list[Any], Settings] | None = None
    """The settings of the last step, what was read of the groups, and a snapshot of the groups if `_plan` is there."""
    _planner: planned.Planner | None = None
    _arena: arena.Arena | None = None

    @staticmethod
    def profile_hook_step(func: Callable[hooks.P, hooks.R]) -> Callable[hooks.P, hooks.R]:
        """What torch wraps ``step`` with."""
        return hooks.only_if_observed(func)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._get = itemgetter(*cls._reads)

    # What a subclass says

    def _rule(self, group: Group) -> str:
        """The name of the update rule of a group."""
        raise TypeError(f"{type(self).__name__} names no update rule")

    def _row(self, group: Group) -> list[Any]:
        """The hyperparameters of that rule, in its order."""
        raise TypeError(f"{type(self).__name__} names no hyperparameters")

    # Construction

    @property
    def _call(self) -> str:
        return f"{type(self).__name__}.step"

    def _configure(self, backend: str | None, own: Group, others: Group) -> None:
        """Checks everything before torch's constructor keeps any of it."""
        call = type(self).__name__
        dispatch.check_name(backend, call)
        hyper.check_settings(call, {**others, **own})
        self.backend = backend
        self._own_defaults = own

    @torch._disable_dynamo
    def add_param_group(self, param_group: Group) -> None:
        for key, value in self._own_defaults.items():
            self.defaults.setdefault(key, value)
        call = f"{type(self).__name__}.add_param_group"
        if isinstance(param_group, dict) and not isinstance(param_group.get("params"), (Tensor, set, type(None))):
            params = param_group["params"] = list(param_group["params"])
            ids = [id(p[1]) if isinstance(p, tuple) else id(p) for p in params]
            if len(set(ids)) != len(ids):
                first = next(i for i, x in enumerate(ids) if x in ids[:i])
                raise ValueError(
                    f"{call}: a parameter group with duplicate parameters: number {first} was listed before; it would "
                    "be updated twice in a step. List each once"
                )
        if isinstance(param_group, dict):
            group = {**self.defaults, **param_group}
            hyper.check_settings(call, group)
            hyper.check_shared(call, [*self.param_groups, group])
        super().add_param_group(param_group)
        self._seen = None
        if self._skipped is None:
            device = next((p.device for p in self._parameters()), None)
            self._skipped = torch.zeros((), dtype=torch.int64, device=device)

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def set_max_norm(self, max_norm: float | None) -> None:
        """Sets ``max_norm`` of all groups, and of groups added later."""
        hyper.check_max_norm(f"{type(self).__name__}.set_max_norm", max_norm)
        self.defaults["max_norm"] = max_norm
        for group in self.param_groups:
            group["max_norm"] = max_norm

    # What the last step did

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm of all (unscaled) gradients before clipping, in the last step: 0-dim on the device, fp32, or fp64 if
        any gradient is. A new tensor each step, so it may be kept. None if the step did not need it: it does with
        ``max_norm`` (inf only measures) or a ``nonfinite`` other than "propagate"."""
        return self._output(0)

    @property
    def clip_coef(self) -> Tensor | None:
        """The factor that clipping by norm applied to the gradients in the last step, like `grad_norm`: at most 1."""
        return self._output(1)

    def _output(self, i: int) -> Tensor | None:
        if self._held is None:
            return None if self._outputs is None else self._outputs[i]
        return self._held[i].clone() if hyper.measures(self.param_groups[0]) else None

    @property
    def skipped_steps(self) -> Tensor:
        """How many steps were skipped for non-finite gradients, by ``nonfinite`` or by a GradScaler: int64 ()."""
        return torch.zeros((), dtype=torch.int64) if self._skipped is None else self._skipped.clone()

    # The step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Performs one step.

        Args:
            closure: reevaluates the model and returns the loss; called first, with gradients enabled.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            settings = self._settings_while_compiling()
        else:
            settings = self._settings()
            if settings.nonfinite == "raise" or self._pending is not None:
                self._tell_pending()
            if planned.step(self, settings):
                return loss
        todo = self._gather(settings)
        self._launch(todo, settings)
        if not torch.compiler.is_compiling():
            planned.prepare(self, settings, todo)
        return loss

    def _tell_pending(self) -> None:
        pending.check_not_captured(self._call, next(self._parameters(), None))  # to wait would break the capture
        told, self._pending = self._pending, None
        if told is not None:
            told.tell(type(self).__name__)

    def _settings(self) -> Settings:
        """The hyperparameters of this step; checked and tabulated anew only if any has changed."""
        mode = hyper.under_mode()  # then the table is of its tensors: for this step alone
        snapshot, known, seen = (None if mode else self._seen) or (None, [], None)
        if seen is not None and snapshot is not None and snapshot.same(self.param_groups):
            return seen
        read = [self._get(group) for group in self.param_groups]
        if seen is not None:
            try:
                if known == read:
                    self._seen = hyper.snapshot(self.param_groups), known, seen
                    return seen
            except RuntimeError:  # a tensor of several elements has no truth value: the check below says it better
                pass
        for i, group in enumerate(self.param_groups):
            changed = group
            if i < len(known):  # the values known are good: of many groups a scheduler changes one or two keys each
                changed = {k: v for k, v, old in zip(self._reads, read[i], known[i], strict=True) if v is not old}
            hyper.check_settings(f"{self._call}, group {i}", changed)
        hyper.check_shared(self._call, self.param_groups)
        settings = hyper.tabulate(self)
        if mode:
            return settings
        # What can change while it stays the same object is read every time.
        flat = list(chain.from_iterable(read))
        kinds = {*map(type, flat), *(type(x) for value in flat if type(value) is tuple for x in value)}
        fixed = not any(issubclass(kind, (Tensor, list)) for kind in kinds)
        self._seen = (hyper.snapshot(self.param_groups), read, settings) if fixed else None
        return settings

    def _settings_while_compiling(self) -> Settings:
        # The checks are in _init_group, which is not traced but called.
        if any(group["nonfinite"] == "raise" for group in self.param_groups):
            raise RuntimeError(f"{self._call}: nonfinite='raise' cannot be compiled; use 'skip' and see skipped_steps")
        return hyper.tabulate(self)

    # Gathering

    def _states_replaced(self) -> None:
        """Called after a load: what was derived from the former states is void."""
        self._seen = self._planner = None

    def _gather(self, settings: Settings) -> Work:
        """Everything that this step works on. All checks come first; then missing states are made."""
        compiling = torch.compiler.is_compiling()
        if not compiling:
            for i, group in enumerate(self.param_groups):
                self._check_group(f"group {i}", group)
        todo = Work()
        for i, group in enumerate(self.param_groups):
            params: list[Tensor] = []
            grads: list[Tensor] = []
            states: list[Tensor] = []
            steps: list[Tensor] = []
            (self._init_group if compiling else self._collect)(group, params, grads, states, steps)
            slots = len(UPDATES[settings.rules[i]].slots)
            for j, p in enumerate(params):
                own = states[slots * j : slots * (j + 1)]
                todo.add(settings.rules[i], settings.rows[i], p, grads[j], own, steps[j], settings.measures)
        if settings.measures:
            todo.add_shards_without_gradients(self.param_groups)
        if not compiling:
            todo.check_apart(self._call, self._by_table)
        return todo

    def _check_group(self, name: str, group: Group) -> None:
        """Raises if any parameter of the group that has a gradient cannot be stepped. Writes nothing."""
        keys = UPDATES[self._rule(group)].slots
        for i, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            where = f"parameter {i} of {name}"
            work.check_pair(self._call, where, p, p.grad)
            state = self.state.get(p)
            if state:
                for key in keys:
                    if state.get(key) is not None:
                        work.check_state(self._call, where, key, state[key], p)
                    elif key not in self._optional_states:
                        raise RuntimeError(f"{self._call}: the state of {where} lacks {key!r} (it has {sorted(state)})")

    def _init_group(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[Tensor], steps: list[Tensor]
    ) -> None:
        """`_collect` for torch.compile, which calls this by its name instead of tracing it."""
        hyper.check_settings(self._call, group)
        hyper.check_shared(self._call, self.param_groups)
        self._check_group("a group", group)
        if self._held is None and hyper.measures(group):
            self._held = launch.held(p.grad for p in self._parameters())
        arena.leave(self)
        self._collect(group, params, grads, states, steps)

    def _collect(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[Tensor], steps: list[Tensor]
    ) -> None:
        """Appends what a step of this group works on: states parameter by parameter, in the order of the slots."""
        keys = UPDATES[self._rule(group)].slots
        for p in group["params"]:
            if p.grad is not None:
                params.append(p)
                grads.append(p.grad)
                steps.append(self._step_count(p, keys))
                states.extend(self._states(p, keys))

    def _step_count(self, p: Tensor, keys: tuple[str, ...]) -> Tensor:
        """The 0-dim counter of steps done for ``p``, whose rule has states of these ``keys``."""
        state = self.state[p]
        step = state.get("step")
        if not isinstance(step, Tensor) or step.dim() or step.device != p.device:
            state["step"] = step = checkpoint.step_counter(step or 0.0, p.device, arena.of(self))
        return step

    def _states(self, p: Tensor, keys: tuple[str, ...]) -> list[Tensor]:
        """The states of ``p``, made if missing, moved if the parameter has another layout or device by now."""
        if not keys:
            return []
        state = self.state[p]
        for key in keys:
            if state.get(key) is None:
                state[key] = self._new_state(p, key)
            elif not work.fits(state[key], p):
                state[key] = checkpoint.state_for(p, state[key], arena.of(self))
        return [state[key] for key in keys]

    def _new_state(self, p: Tensor, key: str) -> Tensor:
        """The state ``key`` of ``p`` before its first step."""
        return checkpoint.zeros_for(p, memory=arena.of(self))

    # Launching

    def _launch(self, todo: Work, settings: Settings) -> None:
        norm = nonfinite = grad_norm = clip_coef = None
        scale, found_inf = launch.amp(self)
        if settings.measures:
            norm, nonfinite = total_norm(self._call, todo.split, settings.norm_type, self.backend)
            if self._held is not None and torch.compiler.is_compiling():
                grad_norm, clip_coef = self._held
            else:
                grad_norm, clip_coef = torch.zeros_like(norm), torch.ones_like(norm)
            if not todo.batches:  # no gradient here; other ranks may have some
                grad_norm.copy_(norm if scale is None else norm * scale)
                clip_coef.copy_(clip_coefficient(grad_norm, settings.max_norm if settings.max_norm >= 0 else torch.inf))
        batches = todo.batches.values()
        backends = [dispatch.resolve(self._call, b.device, b.dtypes, b.rule, self.backend) for b in batches]
        if not torch.compiler.is_compiling():
            self._skipped = launch.follow(self._skipped, batches)
        outputs = (grad_norm, clip_coef, self._skipped)
        for batch, backend in zip(batches, backends, strict=True):
            self._run(backend, batch, settings, norm, nonfinite, scale, found_inf, outputs)
            outputs = (None, None, None)  # written, and counted, once
        if torch.compiler.is_compiling():
            return
        self._outputs = None if grad_norm is None or clip_coef is None else (grad_norm, clip_coef)
        self._held = None
        if any(backend.name != "reference" for backend in backends):  # its kernels write behind autograd's back
            torch.autograd.graph.increment_version(todo.written)
        self._note(settings, nonfinite)

    def _note(self, settings: Settings, nonfinite: Tensor | None) -> None:
        """What the next step must know of this one."""
        if settings.nonfinite == "raise":
            self._calls += 1
            if nonfinite is not None and getattr(self, "found_inf", None) is None and not hyper.under_mode():
                self._pending = Pending(nonfinite, self._calls)

    # Checkpoints

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{k: v for k, v in self.__dict__.items() if k in checkpoint.KEPT}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for key, value in {**checkpoint.OWN_DEFAULTS, **self._own_defaults}.items():
            self.defaults.setdefault(key, value)
            for group in self.param_groups:
                group.setdefault(key, self.defaults[key])
        self._seen = None

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class or of torch's. States keep their dtype (torch would cast fp32 states to the
        dtype of a bf16 parameter), and are copied to the parameter's device and layout.

        Raises:
            ValueError: a state of another shape, not finite or not a tensor; named in the error. Nothing is changed.
        """
        checkpoint.load(self, state_dict, super().load_state_dict)
