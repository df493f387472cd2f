"""Swapping activation -> dropout neighbours of a model for one `fusedtrain.nn.ActDropout`, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fusedtrain import dispatch, rules
from fusedtrain.nn import ActDropout, Dropout

# Modules that compute a rule of ours, and with which settings: exact types, since a subclass may compute anything.
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], str | None]] = {
    nn.ReLU: lambda m: "relu",
    nn.LeakyReLU: lambda m: "leaky_relu" if m.negative_slope == 0.01 else None,
    nn.ELU: lambda m: "elu" if m.alpha == 1 else None,
    nn.GELU: lambda m: {"none": "gelu", "tanh": "gelu_tanh"}.get(m.approximate),
    nn.SiLU: lambda m: "silu",
    nn.Mish: lambda m: "mish",
    nn.Hardswish: lambda m: "hardswish",
    nn.Sigmoid: lambda m: "sigmoid",
    nn.Tanh: lambda m: "tanh",
    nn.Softplus: lambda m: "softplus" if m.beta == 1 and m.threshold >= 20 else None,
}
_FUNCTIONS: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", F.gelu: "gelu", F.silu: "silu", F.mish: "mish"}
_DROPOUTS = (nn.Dropout, Dropout)

# Layers of torch whose feed-forward block is linear2(dropout(activation(linear1(x)))), by these attributes.
_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)

# Modules that may return their input, or a view of it.
_PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout)

# Modules whose result is a fresh tensor that nobody else holds, so that overwriting it goes unseen.
_FRESH = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.GroupNorm, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


class _FusedActDropout(ActDropout):
    """An `ActDropout` in the place of an activation (a module, or the function of a layer), that remembers it and the
    dropout it stands for."""

    def __init__(
        self, activation: str, act: nn.Module, dropout: nn.Dropout, inplace: bool, backend: str | None
    ) -> None:
        super().__init__(activation, dropout.p, inplace, backend=backend)
        self.train(dropout.training)
        self.replaced = (act, dropout, dropout.training)  # in a tuple: not submodules

    def originals(self) -> tuple[Any, nn.Dropout]:
        """The two modules, in the mode and with the probability that have been set since."""
        act, dropout, training = self.replaced
        dropout.p = self.p
        if self.training != training:
            dropout.train(self.training)
            if isinstance(act, nn.Module):
                act.train(self.training)
        return act, dropout


class _Fused(nn.Identity):
    """Keeps the place of a dropout that `_FusedActDropout` performs, so that names, indices and length stay."""


def fuse_(model: nn.Module, *, backend: str | None = None) -> list[str]:
    """Swaps, in place, each activation directly followed by a dropout for one module that does both in one pass: in any
    ``nn.Sequential``, and in the feed-forward block of torch's own transformer layers. The names of modules, the state
    dict and the length of the containers stay as they are.

    Left alone is whatever a swap could change: modules with hooks, with a patched ``forward`` or used at several
    places, subclasses, activations with other settings than `rules` has, and an in-place activation that may overwrite
    a tensor which others see. Outputs agree in eval mode; in training mode the masks are those of this package.

    After a swap the gradient of relu, leaky_relu, elu, sigmoid, tanh and softplus is computed from the result of the
    dropout, which then may not be changed in place before the backward. Where a module with ``inplace=True`` follows,
    the site is left alone; code of yours that does so (``h = block(x); h += x``) is not seen, and torch raises in the
    backward: write ``h = h + x`` there.

    Args:
        model: any module; also a single ``nn.Sequential``.
        backend: the ``backend=`` of the new modules.

    Returns:
        The names of the sites swapped by this call: where the activation was.

    Raises:
        TypeError: ``model`` is no module; ValueError: unknown backend.
    """
    _check_module("fuse_", model)
    dispatch.check_name(backend, "fusedtrain.fuse_")
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    places = _places(model)
    sites = []
    for name, parent, before, at, after in _neighbours(model):
        act, dropout = getattr(parent, at), getattr(parent, after)
        if not isinstance(dropout, nn.Dropout) or type(dropout) not in _DROPOUTS:
            continue
        activation = _ACTIVATIONS[type(act)](act) if type(act) in _ACTIVATIONS else None
        if not isinstance(act, nn.Module):
            activation = _FUNCTIONS.get(act)
        if activation is None or not all(_is_plain(m) and uses[id(m)] <= 1 for m in (act, dropout)):
            continue
        if rules.ACTIVATIONS[activation].saves == "output" and _is_overwritten(parent, after, places):
            continue
        inplace = getattr(act, "inplace", False)
        if isinstance(before, _FRESH) and _is_torchs(before) and _is_plain(before):
            inplace = inplace and rules.ACTIVATIONS[activation].saves != "input"  # which would cost a clone
        elif inplace and not dropout.inplace:
            continue  # others see act(x) in x now, and would see dropout(act(x))
        wanted = getattr(dropout, "backend", None) if backend is None else backend
        setattr(parent, at, _FusedActDropout(activation, act, dropout, inplace, wanted))
        setattr(parent, after, _Fused().train(dropout.training))
        sites.append(name)
    return sites


def unfuse_(model: nn.Module) -> list[str]:
    """Undoes `fuse_`: puts the original modules back, in the mode and with the probabilities the model has now.

    Returns:
        The names of the sites restored.

    Raises:
        TypeError: ``model`` is no module.
    """
    _check_module("unfuse_", model)
    sites = []
    for name, parent, _, at, after in _neighbours(model):
        fused = getattr(parent, at)
        if isinstance(fused, _FusedActDropout):
            act, dropout = fused.originals()
            if not isinstance(act, nn.Module):
                delattr(parent, at)  # a function cannot be assigned over a module
            setattr(parent, at, act)
            setattr(parent, after, dropout)
            sites.append(name)
    return sites


def _check_module(name: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"fusedtrain.{name}: model={model!r}: not a torch.nn.Module. Pass the model itself.")


def _neighbours(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module | None, str, str]]:
    """The places where one module is called with the result of another and nothing else is: the name of the first, the
    parent, the module called before, and the names of the two in the parent."""
    for prefix, parent in list(model.named_modules()):
        dot = f"{prefix}." if prefix else ""
        if "forward" in parent.__dict__:
            continue
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            keys = list(parent._modules)
            for before, at, after in zip([None, *keys], keys, keys[1:], strict=False):
                yield dot + at, parent, None if before is None else parent._modules[before], at, after
        elif type(parent) in _LAYERS and "_ff_block" not in parent.__dict__:
            yield f"{dot}activation", parent, parent.linear1, "activation", "dropout"


_Places = dict[int, list[tuple[nn.Sequential, str]]]
"""By the id of a module: the sequential containers that call it, and its name there."""


def _places(model: nn.Module) -> _Places:
    places: _Places = {}
    for parent in model.modules():
        if isinstance(parent, nn.Sequential):
            for key, child in parent._modules.items():
                places.setdefault(id(child), []).append((parent, key))
    return places


def _is_overwritten(parent: nn.Module, key: str, places: _Places) -> bool:
    """Whether a module that is called with the result of this child of ``parent`` changes it in place, as far as
    containers tell."""
    if not isinstance(parent, nn.Sequential):
        return False
    keys = list(parent._modules)
    for following in keys[keys.index(key) + 1 :]:
        verdict = _overwrites_input(parent._modules[following])
        if verdict is not None:
            return verdict
    return any(_is_overwritten(*place, places) for place in places.get(id(parent), ()))


def _overwrites_input(module: nn.Module | None) -> bool | None:
    """None if the module may return its input, so that what follows decides."""
    if isinstance(module, nn.Sequential):
        verdicts = map(_overwrites_input, module._modules.values())
        return next((verdict for verdict in verdicts if verdict is not None), None)
    if getattr(module, "inplace", False):
        return True
    return None if isinstance(module, _PASSING) else False


def _is_torchs(module: nn.Module) -> bool:
    return type(module).forward.__module__.startswith("torch.nn.modules.")


def _is_plain(module: Any) -> bool:
    """Whether calling the module does what its class says: no hooks, no ``forward`` of its own. A function does."""
    if not isinstance(module, nn.Module):
        return True
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
        module._state_dict_hooks,
        module._state_dict_pre_hooks,
        module._load_state_dict_pre_hooks,
        module._load_state_dict_post_hooks,
    )
    return not any(hooks) and "forward" not in module.__dict__ and module._compiled_call_impl is None
