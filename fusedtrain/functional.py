"""Activation and dropout as one differentiable operation: bias, activation, dropout and residual in a single pass.

Numerics, RNG and the choice of a backend live elsewhere (`rules`, `rng`, `dispatch`); here is what a caller sees: the
checks, the draw, and the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from fusedtrain import checks, dispatch, rng, rules, schemas
from fusedtrain.backends import Backend

# ---- gradients


def _saves(activation: str, residual: Tensor | None) -> str:
    """What the backward needs: as the rule says, but with a residual ``y`` is no longer a function of ``x`` alone."""
    saves = rules.ACTIVATIONS[activation].saves
    return "input" if saves == "output" and residual is not None else saves


def _save_act(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, residual, rng_state, threshold, activation = inputs[:6]
    saves = _saves(activation, residual)
    ctx.from_output, ctx.threshold, ctx.activation = saves == "output", threshold, activation
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype
    by_kind = {"nothing": (None, None, rng_state), "output": (output, None, None), "input": (x, bias, rng_state)}
    ctx.save_for_backward(*by_kind[saves])


def _grad_act(ctx: Any, dy: Tensor, op: Callable[..., Any]) -> tuple[Tensor | None, ...]:
    """The gradients in x, bias, residual and three None. Differentiable: under ``create_graph`` the specification's own
    formulas are recorded in place of ``op``."""
    saved, bias, rng_state = ctx.saved_tensors
    needs_x, needs_bias, needs_residual = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        op = dispatch.load("reference").act_dropout_grad
    dx: Tensor | None = None
    dbias: Any = None
    if needs_x or needs_bias:
        dx, dbias = op(dy, saved, bias, rng_state, ctx.threshold, ctx.activation, ctx.from_output, needs_bias)
    return (
        dx if needs_x else None,
        dbias.to(ctx.bias_dtype) if needs_bias else None,
        dy.to(ctx.residual_dtype) if needs_residual else None,
        None,
        None,
        None,
    )


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, rng_state, ctx.threshold, ctx.activation = inputs[:5]
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, bias, rng_state)


def _grad_gated(ctx: Any, dy: Tensor, op: Callable[..., Any]) -> tuple[Tensor | None, ...]:
    needs_x, needs_bias = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():
        op = dispatch.load("reference").gated_act_dropout_grad
    x, bias, rng_state = ctx.saved_tensors
    dx, dbias = op(dy, x, bias, rng_state, ctx.threshold, ctx.activation, needs_bias)
    return dx if needs_x else None, dbias.to(ctx.bias_dtype) if needs_bias else None, None, None, None


def _apply(function: Any, *args: Any) -> Tensor:
    """``function.apply(*args)`` without the search for default arguments by ``inspect.signature``, which takes several
    times as long as all else that a call costs. functorch has its own way in."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)


def _map_samples(
    f: Callable[..., Tensor], size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[Tensor, int]:
    """The vmap rule: one call per sample, each with its own mask counted from its own first element, so that forward,
    backward and a loop over the samples agree. `rng.draw` has already honoured the ``randomness`` of the vmap."""
    if size == 0:  # one sample of zeros tells the shape, and leaves nothing but its place in the graph
        sample = [a if dim is None else a.sum(dim) for a, dim in zip(args, in_dims, strict=True)]
        return f(*sample)[None][:0], 0
    columns = [a if dim is None else a.unbind(dim) for a, dim in zip(args, in_dims, strict=True)]
    rows = ([c if dim is None else c[i] for c, dim in zip(columns, in_dims, strict=True)] for i in range(size))
    return torch.stack([f(*row) for row in rows]), 0


class _ActDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        rng_state: Tensor | None,
        threshold: int,
        activation: str,
        backend: Backend,
        inplace: bool,
    ) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            if inplace:
                backend.act_dropout_(x, bias, residual, rng_state, threshold, activation)
                return x
            return backend.act_dropout(x, bias, residual, rng_state, threshold, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend = inputs[6]
        if inputs[7]:
            ctx.mark_dirty(inputs[0])
        _save_act(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_grad_act(ctx, dy, ctx.backend.act_dropout_grad), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _map_samples(_ActDropout.apply, info.batch_size, in_dims, args)


class _GatedActDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, bias: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str, backend: Backend
    ) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return backend.gated_act_dropout(x, bias, rng_state, threshold, activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend = inputs[5]
        _save_gated(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_grad_gated(ctx, dy, ctx.backend.gated_act_dropout_grad), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _map_samples(_GatedActDropout.apply, info.batch_size, in_dims, args)


def register_gradients(namespace: str) -> None:
    """Gives the raw operators of a namespace the same gradients, for torch.compile and for whoever calls torch.ops."""
    ops = getattr(torch.ops, namespace)
    torch.library.register_autograd(
        f"{namespace}::act_dropout",
        lambda ctx, dy: _grad_act(ctx, dy, ops.act_dropout_grad),
        setup_context=_save_act,
    )
    torch.library.register_autograd(
        f"{namespace}::gated_act_dropout",
        lambda ctx, dy: _grad_gated(ctx, dy, ops.gated_act_dropout_grad),
        setup_context=_save_gated,
    )


for _namespace in schemas.NAMESPACES:
    register_gradients(_namespace)


def _calls_operator(backend: Backend) -> bool:
    """Whether the forward is called as it is: torch differentiates it, or is compiling and sees a registered operator
    that brings its gradient along."""
    return backend.differentiable or torch.compiler.is_compiling()


# ---- the public functions


def act_dropout(
    x: Tensor,
    activation: str = "relu",
    p: float = 0.5,
    training: bool = True,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    inplace: bool = False,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``dropout(act(x + bias), p) + residual`` in one pass (dropout: Srivastava et al. 2014).

    Args:
        x: (\\*, D), fp32, fp64, bf16 or fp16, any strides. Computed in fp32 (fp64 for fp64), rounded once on store.
        activation: a name of `rules.ACTIVATIONS`.
        p: the probability to drop, in [0, 1]; quantised to a multiple of 1 / 65536. Kept values are scaled by
            the inverse of the quantised probability to keep; a dropped inf or NaN is 0.
        training: if False nothing is dropped or drawn.
        bias: (D,), added before the activation.
        residual: like ``x``, added after the dropout.
        inplace: overwrite ``x`` and return it. Where the gradient needs ``x`` (see Note) a clone is saved.
        generator: draw from it instead of the default generator of the device.
        rng_state: int64 (2,) = (seed, offset) on the device of ``x``: this mask, and nothing is drawn.
        backend: a name of `fusedtrain.backends`; default: the first that can run the call.

    Returns:
        (\\*, D) in the dtype of ``x``. ``identity`` without bias or residual returns ``x`` itself where nothing is
        dropped, as ``torch.nn.functional.dropout`` does.

    Note:
        A training call draws exactly one RNG state from the generator of the device of ``x``, whatever ``p``, shape or
        backend: on one device, one ``torch.manual_seed`` gives one mask. The generators of CPU and CUDA draw different
        states from one seed; for one mask on both pass ``rng_state``. Saved for the backward beyond ``y``: nothing for
        relu, leaky_relu, squared_relu, elu, sigmoid, tanh and softplus without a residual, so that ``y`` may not be
        changed in place before the backward (``y += x``: torch raises); the 16-byte RNG state for identity; ``x``,
        ``bias`` and the state otherwise. The gradient of ``bias`` is accumulated in fp32.

    Raises:
        TypeError, ValueError: an argument that cannot be right.
        RuntimeError: ``inplace`` on a leaf that requires grad or on an expanded tensor; no backend can run the call.
    """
    call = "fusedtrain.functional.act_dropout"
    checks.check_input(call, x)
    checks.check_activation(call, activation)
    checks.check_probability(call, p)
    checks.check_bias(call, bias, x)
    if residual is not None:
        checks.check_like(call, "residual", residual, x, x.shape)
    checks.check_random(call, x, generator, rng_state)
    threshold = rng.drop_threshold(p) if training else 0
    unchanged = threshold == 0 and activation == "identity" and bias is None and residual is None
    if inplace and not unchanged:
        checks.check_inplace(call, x)
    chosen = _choose(call, x, activation, backend)

    rng_state = _draw(x, threshold, training, generator, rng_state)
    if unchanged:
        return x
    args = (bias, residual, rng_state, threshold, activation)
    if inplace:
        return _act_dropout_inplace(x, args, chosen)
    if _calls_operator(chosen):
        return chosen.act_dropout(x, *args)
    return _apply(_ActDropout, x, *args, chosen, False)


def gated_act_dropout(
    x: Tensor,
    activation: str = "silu",
    p: float = 0.5,
    training: bool = True,
    *,
    bias: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng_state: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``dropout(act(gate) * up, p)``, ``[gate, up] = x + bias`` on the last dimension (Shazeer 2020, "GLU variants").

    Args:
        x: (\\*, 2 D), the gate in the first half.
        bias: (2 D,), added before the activation.
        activation, p, training, generator, rng_state, backend: as for `act_dropout`.

    Returns:
        (\\*, D) in the dtype of ``x``. The backward saves ``x``, ``bias`` and the 16-byte RNG state.

    Raises:
        TypeError, ValueError: an argument that cannot be right; RuntimeError: no backend can run the call.
    """
    call = "fusedtrain.functional.gated_act_dropout"
    checks.check_input(call, x)
    checks.check_activation(call, activation)
    checks.check_probability(call, p)
    if x.dim() == 0 or x.shape[-1] % 2:
        why = "the last dimension holds [gate, up] and must be even"
        checks.refuse(ValueError, call, f"x of shape {tuple(x.shape)}", why, "Concatenate gate and up there")
    checks.check_bias(call, bias, x)
    checks.check_random(call, x, generator, rng_state)
    chosen = _choose(call, x, activation, backend)

    threshold = rng.drop_threshold(p) if training else 0
    rng_state = _draw(x, threshold, training, generator, rng_state)
    args = (bias, rng_state, threshold, activation)
    if _calls_operator(chosen):
        return chosen.gated_act_dropout(x, *args)
    return _apply(_GatedActDropout, x, *args, chosen)


def _draw(
    x: Tensor, threshold: int, training: bool, generator: torch.Generator | None, rng_state: Tensor | None
) -> Tensor | None:
    """The state of this call, None if nothing is dropped. A training call draws one even then."""
    if training and rng_state is None:
        rng_state = rng.draw(x.device, generator)
    return rng_state if threshold else None


def _choose(call: str, x: Tensor, activation: str, want: str | None) -> Backend:
    chosen = dispatch.resolve(call, x.device, frozenset({x.dtype}), activation, want)
    # Forward-mode derivatives come from torch's own rules for the specification.
    return dispatch.load("reference") if forward_ad._current_level >= 0 else chosen


def _act_dropout_inplace(x: Tensor, args: tuple[Any, ...], backend: Backend) -> Tensor:
    """Writes into ``x``: by the kernel where autograd need not know or can be told, else by torch's own `copy_`, which
    refuses what may not be written before anything is."""
    bias, residual, _, _, activation = args
    special = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or x.is_neg()
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, bias, residual))
    if not special and not differentiated and forward_ad._current_level < 0:
        backend.act_dropout_(x, *args)
        if not x.is_inference() and not backend.differentiable:
            increment_version(x)  # raw operators do not, and autograd must see the write
        return x
    needs_x = backend.differentiable or _saves(activation, residual) == "input"
    if not special and not needs_x and not x._is_view():
        return _apply(_ActDropout, x, *args, backend, True)
    source = x.clone() if needs_x or special else x
    if _calls_operator(backend):
        return x.copy_(backend.act_dropout(source, *args))
    return x.copy_(_apply(_ActDropout, source, *args, backend, False))
