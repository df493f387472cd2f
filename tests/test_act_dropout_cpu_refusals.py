"""What the CPU operators of activation + dropout refuse, and that they have then written nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fusedtrain import dispatch

pytestmark = pytest.mark.skipif(bool(dispatch.load("cpu").why_not), reason=str(dispatch.load("cpu").why_not))

OPS = torch.ops.fusedtrain
STATE = torch.tensor([-(2**62) - 12345, 2**40 + 4])


def x34() -> Tensor:
    return torch.ones(3, 4)


REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("act_dropout", lambda: OPS.act_dropout(x34(), torch.ones(3), None, STATE, 1, "relu"), r"bias has shape \(3,\)"),
    ("act_dropout", lambda: OPS.act_dropout(x34(), torch.ones(1, 4), None, STATE, 1, "relu"), "bias has shape"),
    (
        "act_dropout",
        lambda: OPS.act_dropout(x34(), torch.ones(4).long(), None, STATE, 1, "relu"),
        "dtype Long",
    ),
    ("act_dropout", lambda: OPS.act_dropout(x34(), None, torch.ones(4), STATE, 1, "relu"), "residual has shape"),
    ("act_dropout", lambda: OPS.act_dropout(x34().int(), None, None, STATE, 1, "relu"), "x has dtype Int"),
    ("act_dropout", lambda: OPS.act_dropout(x34().cfloat(), None, None, STATE, 1, "relu"), "x has dtype ComplexFloat"),
    ("act_dropout", lambda: OPS.act_dropout(x34(), None, None, None, 1, "relu"), "rng_state is None"),
    ("act_dropout", lambda: OPS.act_dropout(x34(), None, None, STATE[:1], 1, "relu"), r"rng_state has shape \(1,\)"),
    ("act_dropout", lambda: OPS.act_dropout(x34(), None, None, STATE.int(), 1, "relu"), "dtype Int; it must be int64"),
    ("act_dropout", lambda: OPS.act_dropout(x34(), None, None, STATE, -1, "relu"), "threshold is -1"),
    ("act_dropout", lambda: OPS.act_dropout(x34(), None, None, STATE, 65537, "relu"), "threshold is 65537"),
    (
        "act_dropout",
        lambda: OPS.act_dropout(x34(), None, None, STATE, 1, "rleu"),
        "'rleu'; choose one of identity",
    ),
    (
        "act_dropout_grad",
        lambda: OPS.act_dropout_grad(x34(), x34()[:2], None, STATE, 1, "relu", False, False),
        "saved has shape",
    ),
    (
        "act_dropout_grad",
        lambda: OPS.act_dropout_grad(x34(), x34().half(), None, STATE, 1, "relu", False, False),
        "saved has dtype Half",
    ),
    (
        "act_dropout_grad",
        lambda: OPS.act_dropout_grad(x34(), None, None, STATE, 1, "gelu", False, False),
        "saved is None; gelu needs its input",
    ),
    (
        "act_dropout_grad",
        lambda: OPS.act_dropout_grad(x34(), x34(), None, STATE, 1, "gelu", True, False),
        "gelu has no gradient from its output",
    ),
    (
        "act_dropout_grad",
        lambda: OPS.act_dropout_grad(x34(), x34(), None, None, 1, "relu", False, False),
        "rng_state is None",
    ),
    ("gated_act_dropout", lambda: OPS.gated_act_dropout(torch.ones(3, 5), None, STATE, 1, "silu"), "must be even"),
    ("gated_act_dropout", lambda: OPS.gated_act_dropout(torch.ones(()), None, STATE, 1, "silu"), "must be even"),
    ("gated_act_dropout", lambda: OPS.gated_act_dropout(x34(), torch.ones(2), STATE, 1, "silu"), "bias has shape"),
    (
        "gated_act_dropout_grad",
        lambda: OPS.gated_act_dropout_grad(x34(), x34(), None, STATE, 1, "silu", False),
        "with half the columns",
    ),
    (
        "gated_act_dropout_grad",
        lambda: OPS.gated_act_dropout_grad(x34()[:, :2].double(), x34(), None, STATE, 1, "silu", False),
        "dy has dtype Double",
    ),
]


@pytest.mark.parametrize(("op", "call", "message"), REFUSED)
def test_malformed_calls_are_refused(op: str, call: Callable[[], Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"(?s)fusedtrain\.{op}: .*{message}"):
        call()


def test_a_refused_call_in_place_has_written_nothing() -> None:
    for bias, state, threshold, activation in (
        (torch.ones(3), STATE, 1, "relu"),
        (None, None, 1, "relu"),
        (None, STATE, 65537, "relu"),
        (None, STATE, 1, "nonesuch"),
    ):
        x = torch.randn(3, 4)
        before, version = x.clone(), x._version
        with pytest.raises(RuntimeError, match=r"fusedtrain\.act_dropout_: "):
            OPS.act_dropout_(x, bias, None, state, threshold, activation)
        assert torch.equal(x, before)
        assert x._version == version
    repeated = torch.ones(1, 4).expand(3, 4)
    with pytest.raises(RuntimeError, match="share memory"):
        OPS.act_dropout_(repeated, None, None, STATE, 32768, "relu")
    assert torch.equal(repeated, torch.ones(3, 4))
