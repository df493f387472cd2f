"""Every choice of the operands that may be absent passes the front end of Triton, the oldest version too: it differs
from version to version in what it takes of None, and the interpreter, being Python, takes all. Nothing is compiled
further, so that all choices cost no more than a few kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_recompilation_triton import SCRIPT as STEPS

pytest.importorskip("fusedtrain.backends.triton_act")
CALLS = """
import itertools
import torch
from triton.compiler import ASTSource
from fusedtrain.backends import triton_act as act, triton_gated as gated


class Translated(Exception):
    pass


translate = ASTSource.make_ir


def only_translate(self, *args, **kwargs):
    translate(self, *args, **kwargs)
    raise Translated


ASTSource.make_ir = only_translate
x, wide, state = torch.ones(4, 16), torch.ones(4, 32), torch.tensor([1, 2])
bias, both = torch.ones(16), torch.ones(32)
DROPS = ((state, 6554), (None, 0))
YES_NO = (True, False)
calls = []
for residual, b, (rng, threshold) in itertools.product((x, None), (bias, None), DROPS):
    calls.append((act.act_dropout, x, b, residual, rng, threshold, "relu"))
for b, (rng, threshold), sums in itertools.product((bias, None), DROPS, YES_NO):
    calls.append((act.act_dropout_grad, x, x, b, rng, threshold, "gelu", False, sums))
for (rng, threshold), sums in itertools.product(DROPS, YES_NO):
    calls.append((act.act_dropout_grad, x, None, None, rng, threshold, "identity", False, sums))
    calls.append((act.act_dropout_grad, x, x, None, None, threshold, "relu", True, sums))
for b, (rng, threshold) in itertools.product((both, None), DROPS):
    calls.append((gated.gated_act_dropout, wide, b, rng, threshold, "silu"))
    for sums in YES_NO:
        calls.append((gated.gated_act_dropout_grad, x, wide, b, rng, threshold, "silu", sums))
translated = 0
for op, *args in calls:
    shown = ["tensor" if isinstance(a, torch.Tensor) else a for a in args]
    try:
        op(*args)
    except Translated:
        translated += 1
    except Exception as error:
        print(op.__name__, shown, str(error).strip().splitlines()[-1])
print(translated, len(calls))
"""


def test_every_choice_of_optional_operands_is_translated(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # what is found there is not translated
    script = tmp_path / "calls.py"
    script.write_text(STEPS.partition("from fusedtrain import rules")[0] + CALLS)
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "36 36\n"
