"""The reference backend: loops over the specification in plain PyTorch, on any device.

It is the oracle of the other backends, so it takes no shortcuts, and the forward functions have no hand-written
gradient: torch's own autograd differentiates them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fusedtrain import rng, rules
from fusedtrain.backends import Backend


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _keep(rng_state: Tensor | None, threshold: int, shape: torch.Size, device: torch.device) -> Tensor:
    if threshold == 0 or rng_state is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    return rng.keep_mask(rng_state, threshold, shape)


def _dropout(f: Callable[..., Tensor], z: tuple[Tensor, ...], rng_state: Tensor | None, threshold: int) -> Tensor:
    """``dropout(f(*z))``. Selects, never multiplies by zero: a dropped inf or NaN is 0. Selected before ``f`` too, so
    that in the gradient torch derives, the zero of a dropped element never meets an infinite derivative."""
    if threshold == 0:
        return f(*z)
    kept = _keep(rng_state, threshold, z[0].shape, z[0].device)
    kept = torch.empty_like(z[0], dtype=torch.bool).copy_(kept)  # where() takes after it: the layout of x is kept
    a = f(*(torch.where(kept, x, 0.0) for x in z))
    return torch.where(kept, a * rng.keep_scale(threshold), 0.0)


def act_dropout(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> Tensor:
    z = x.to(_compute_dtype(x))  # (*, D)
    if bias is not None:
        z = z + bias.to(z.dtype)
    y = _dropout(rules.ACTIVATIONS[activation].fwd, (z,), rng_state, threshold)
    if residual is not None:
        y = y + residual.to(y.dtype)
    return y.to(x.dtype)


def act_dropout_(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> None:
    x.copy_(act_dropout(x, bias, residual, rng_state, threshold, activation))


def act_dropout_grad(
    dy: Tensor,
    saved: Tensor | None,
    bias: Tensor | None,
    rng_state: Tensor | None,
    threshold: int,
    activation: str,
    from_output: bool,
    needs_bias_grad: bool,
) -> tuple[Tensor, Tensor]:
    rule = rules.ACTIVATIONS[activation]
    d = dy.to(_compute_dtype(dy))
    scale = rng.keep_scale(threshold)
    if from_output:
        if saved is None or rule.grad_from_output is None:
            raise ValueError(f"fusedtrain.act_dropout_grad: {activation!r} has no gradient from its output")
        y = saved.to(d.dtype)
        # A kept zero is stored as -0.0, a dropped one as +0.0.
        kept = (y != 0) | torch.signbit(y) if threshold else torch.ones_like(y, dtype=torch.bool)
        slope = rule.grad_from_output(y / scale if scale else y)
    else:
        kept = _keep(rng_state, threshold, dy.shape, dy.device)
        z = torch.zeros_like(d) if saved is None else saved.to(d.dtype)
        slope = rule.grad(z if bias is None else z + bias.to(d.dtype))
    dx = torch.where(kept, d * slope * scale, 0.0)
    return dx.to(dy.dtype if saved is None else saved.dtype), _bias_grad(dx, needs_bias_grad)


def _bias_grad(dx: Tensor, needed: bool) -> Tensor:
    rows, width = math.prod(dx.shape[:-1]), dx.shape[-1] if dx.dim() else 1
    return dx.reshape(rows, width).sum(0) if needed else dx.new_empty(0)


def gated_act_dropout(
    x: Tensor, bias: Tensor | None, rng_state: Tensor | None, threshold: int, activation: str
) -> Tensor:
    z = x.to(_compute_dtype(x))  # (*, 2 D)
    if bias is not None:
        z = z + bias.to(z.dtype)
    gate_up = z.chunk(2, dim=-1)  # 2 x (*, D)
    fwd = rules.ACTIVATIONS[activation].fwd
    return _dropout(lambda gate, up: fwd(gate) * up, gate_up, rng_state, threshold).to(x.dtype)


def gated_act_dropout_grad(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    rng_state: Tensor | None,
    threshold: int,
    activation: str,
    needs_bias_grad: bool,
) -> tuple[Tensor, Tensor]:
    rule = rules.ACTIVATIONS[activation]
    z = x.to(_compute_dtype(x))
    if bias is not None:
        z = z + bias.to(z.dtype)
    gate, up = z.chunk(2, dim=-1)
    kept = _keep(rng_state, threshold, dy.shape, dy.device)
    d = torch.where(kept, dy.to(z.dtype) * rng.keep_scale(threshold), 0.0)
    # Selected again: where an element is dropped, an infinite activation must not meet a zero gradient.
    d_gate = torch.where(kept, d * up * rule.grad(gate), 0.0)
    d_up = torch.where(kept, d * rule.fwd(gate), 0.0)
    dx = torch.cat([d_gate, d_up], dim=-1)
    return dx.to(x.dtype), _bias_grad(dx, needs_bias_grad)


def _norm_dtype(tensors: list[Tensor]) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def global_norm(tensors: list[Tensor], norm_type: float) -> tuple[Tensor, Tensor]:
    finite = [x.isfinite().all() for x in tensors]
    norm = rules.vector_norm(tensors, norm_type).to(_norm_dtype(tensors))
    nonfinite = (~torch.stack(finite).all()).float() if finite else torch.zeros((), device=norm.device)
    return norm, nonfinite


def tensor_norms(tensors: list[Tensor], norm_type: float) -> Tensor:
    """``(sum_j |x_ij|^p)^(1/p)`` of each tensor ``x_i``: (N,)."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float32)
    return torch.stack([rules.vector_norm([x], norm_type) for x in tensors]).to(_norm_dtype(tensors))


def clip_scale_(grads: list[Tensor], norm: Tensor, max_norm: float) -> None:
    coef = rules.clip_coefficient(norm, max_norm)
    for g in grads:
        # A NaN coefficient is no coefficient of 1: it poisons the gradients, as torch's does.
        g.copy_(torch.where(coef >= 1, g, (g.to(_compute_dtype(g)) * coef).to(g.dtype)))


def optim_step_(
    rule: str,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[Tensor],
    steps: list[Tensor],
    hyper: Tensor,
    group: list[int],
    norm: Tensor | None,
    nonfinite: Tensor | None,
    inv_scale: Tensor | None,
    found_inf: Tensor | None,
    max_norm: float,
    skip_nonfinite: bool,
    grad_norm: Tensor | None,
    clip_coef: Tensor | None,
    skipped_steps: Tensor | None,
) -> None:
    if not params:
        return
    update, n, device = rules.UPDATES[rule], len(params), params[0].device
    hyper = hyper.to(device)
    one = torch.ones((), dtype=torch.float64, device=device)
    scale = one if inv_scale is None else inv_scale.to(device, torch.float64).reshape(())
    total = None if norm is None else norm.double() * scale
    coef = one if total is None or max_norm < 0 else rules.clip_coefficient(total, max_norm)
    skip = one < 0
    if found_inf is not None:
        skip = skip | (found_inf.to(device).reshape(()) != 0)
    if skip_nonfinite and nonfinite is not None:
        skip = skip | (nonfinite != 0)
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        dtype = _compute_dtype(p)
        lr, sign, clip_value, l1, *row = hyper[group[i]].unbind()
        t = steps[i].to(device, torch.float64) + 1
        p32 = p.to(dtype)
        u, new_states = update.direction(
            p32,
            rules.prepare_gradient(p32, g.to(dtype), scale, coef, sign, clip_value, l1),
            tuple(states[slot * n + i].to(dtype) for slot in range(len(update.slots))),
            t,
            *row,
        )
        p.copy_(torch.where(skip, p, (p32 - lr * u).to(p.dtype)))
        for slot, new in enumerate(new_states):
            s = states[slot * n + i]
            s.copy_(torch.where(skip, s, new.to(s.dtype)))
        steps[i].copy_(torch.where(skip.to(steps[i].device), steps[i], t.to(steps[i].device, steps[i].dtype)))
    if grad_norm is not None and total is not None:
        grad_norm.copy_(total)
    if clip_coef is not None:
        clip_coef.copy_(coef)
    if skipped_steps is not None:
        skipped_steps.add_(skip)


def load(name: str) -> Backend:
    return Backend(
        name=name,
        why_not=None,
        note="plain PyTorch",
        dtypes=frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16}),
        rules=frozenset(rules.ACTIVATIONS) | frozenset(rules.UPDATES),
        differentiable=True,
        act_dropout=act_dropout,
        act_dropout_=act_dropout_,
        act_dropout_grad=act_dropout_grad,
        gated_act_dropout=gated_act_dropout,
        gated_act_dropout_grad=gated_act_dropout_grad,
        global_norm=global_norm,
        tensor_norms=tensor_norms,
        clip_scale_=clip_scale_,
        optim_step_=optim_step_,
    )
