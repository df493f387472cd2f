"""Which backend runs a call: an explicit ``backend=``, else ``FUSEDTRAIN_BACKEND``, else the first capable one.

Nothing falls back silently: a refusal lists every backend with its reason, and the reference as a fallback warns once.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings

import torch

from fusedtrain.backends import Backend

ORDER = ("cuda", "triton", "cpu", "reference")
_MODULES = {"cuda": "native", "triton": "triton_ops", "cpu": "native", "reference": "reference"}
_CURRENT_GPU = torch.device("cuda")

_loaded: dict[str, Backend] = {}


def load(name: str) -> Backend:
    """The backend of this name, imported on first use. It may say `why_not`; it never fails to load."""
    if name not in _loaded:
        module = f"fusedtrain.backends.{_MODULES[name]}"
        if importlib.util.find_spec(module) is None:
            _loaded[name] = Backend(name=name, why_not="this version of fusedtrain has no kernels for it")
        else:
            _loaded[name] = importlib.import_module(module).load(name)
    return _loaded[name]


def check_name(name: str | None, call: str, origin: str = "") -> None:
    """Raises ValueError unless ``name`` is a backend or None. Called at construction, before anything is built."""
    if name is not None and name not in ORDER:
        raise ValueError(f"{call}: unknown backend {name!r}{origin}; choose one of {', '.join(ORDER)}")


def available() -> dict[str, str]:
    """What is available in this process and, where a backend is not, why: a line for each of `ORDER`."""
    return {name: _state(load(name)) for name in ORDER}


def _state(backend: Backend) -> str:
    """Which GPUs it cannot run on is told only once CUDA has been started: to ask would start it."""
    if backend.why_not:
        return backend.why_not
    asks = backend.on_device
    count = torch.cuda.device_count() if asks is not None and torch.cuda.is_initialized() else 0
    gpus = [torch.device("cuda", index) for index in range(count)]
    refused = {gpu: reason for gpu in gpus if asks is not None and (reason := asks(gpu))}
    if refused and len(refused) == count:
        return next(iter(refused.values()))
    notes = [*([backend.note] if backend.note else []), *(f"not on {gpu}: {reason}" for gpu, reason in refused.items())]
    return "available" + (f": {'; '.join(notes)}" if notes else "")


def resolve(
    call: str,
    device: torch.device,
    dtypes: frozenset[torch.dtype],
    rule: str | None = None,
    want: str | None = None,
) -> Backend:
    """The backend for this call.

    Args:
        call: how the user called us, for the error.
        device, dtypes: of the tensors.
        rule: the name of the activation or update rule, if one is needed.
        want: the ``backend=`` of the call or object; it is used or refused, never replaced.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the wanted backend cannot run this, or none can.
    """
    return _loaded[_name_of_choice(call, device, dtypes, rule, want)]


def _name_of_choice(
    call: str, device: torch.device, dtypes: frozenset[torch.dtype], rule: str | None, want: str | None
) -> str:
    if device == _CURRENT_GPU and torch.cuda.is_available():
        # The choice is kept, and the current one may be another the next time.
        device = torch.device("cuda", torch.cuda.current_device())
    by_environment = False
    if want is None:
        want = os.environ.get("FUSEDTRAIN_BACKEND") or None
        by_environment = want is not None
    return _choose(call, device, dtypes, rule, want, by_environment)


# As torch.compiler.assume_constant_result: Dynamo takes the name as it is, and traces neither imports nor environment.
# By hand, because the decorator imports Dynamo, and Triton with it, which doubles the time of `import fusedtrain`.
_name_of_choice._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _choose(
    call: str,
    device: torch.device,
    dtypes: frozenset[torch.dtype],
    rule: str | None,
    want: str | None,
    by_environment: bool,
) -> str:
    origin = " of FUSEDTRAIN_BACKEND" if by_environment else ""
    check_name(want, call, origin)
    refusals: dict[str, str] = {}
    for name in ORDER if want is None else (want,):
        backend = load(name)
        reason = backend.refusal(device, dtypes, rule)
        if reason is None and want is None and backend.by_name_only:
            reason = "runs here only when asked for by name"
        if reason is None:
            if want is None and name == "reference" and device.type != "meta":  # nothing is computed there
                _warn_fallback(device.type, refusals)
            return name
        refusals[name] = reason
    what = f"{', '.join(sorted(str(d).removeprefix('torch.') for d in dtypes))} on {device.type}"
    if want is not None:
        for name in ORDER:
            reason = load(name).refusal(device, dtypes, rule)
            refusals.setdefault(name, reason or "can run it")
    listed = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    wanted = f"backend {want!r}{origin} cannot run it" if want else "no backend can run it"
    remedy = "Cast the tensors"
    if want is not None:
        remedy = ("Unset it" if by_environment else "Choose another backend=") + " or cast the tensors"
    raise RuntimeError(f"{call}: {wanted} ({what}). {listed}. {remedy}.")


_warned: set[str] = set()


def _warn_fallback(device_type: str, refusals: dict[str, str]) -> None:
    if device_type in _warned:
        return
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    warnings.warn(
        f"fusedtrain runs on the slow reference backend for {device_type} tensors ({reasons}). "
        'Pass backend="reference" or set FUSEDTRAIN_BACKEND=reference to choose it silently.',
        stacklevel=6,
    )
    _warned.add(device_type)
