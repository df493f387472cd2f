"""Memory figures against sums that can be done by hand."""

from __future__ import annotations

import pytest
import torch

import fusedtrain
from fusedtrain.train import measure, settings, tasks
from fusedtrain.train.sides import Fused, Stock

MIB = 1 << 20


def test_peak_is_the_most_alive_at_once():
    def work() -> None:
        a = torch.empty(3 * MIB, dtype=torch.uint8)
        b = torch.empty(2 * MIB, dtype=torch.uint8)
        del a
        c = torch.empty(4 * MIB, dtype=torch.uint8)
        del b, c

    assert measure.peak_cpu(work) == 6 * MIB


@pytest.mark.skipif(not fusedtrain.backends()["cpu"].startswith("available"), reason="needs the CPU backend")
def test_saved_for_backward_of_a_relu_mlp():
    """Stock keeps, for each hidden layer, the output of relu, the mask of dropout (as floats) and the dropped output;
    fused the dropped output alone. Both keep the log-softmax and a scalar or two of the loss."""
    s = settings.new({"depth": 3, "width": 128, "batch": 64, "dropout": 0.5, "device": "cpu"})
    task = tasks.load(s)
    hidden, logits = 64 * 128 * 4, 64 * 10 * 4
    stock, fused = measure.memory(Stock, s, task), measure.memory(Fused, s, task)
    assert 0 <= fused.saved - 3 * hidden - logits < 256
    assert 0 <= stock.saved - 9 * hidden - logits < 256
    weights = 4 * (64 * 128 + 2 * 128 * 128 + 128 * 10 + 3 * 128 + 10)
    for side in (stock, fused):
        assert side.peak > side.saved
        # Weights and two moments. Small moments share blocks that have some room left, and count once.
        assert 0 <= side.resident - 3 * weights < 16384


def test_measuring_disturbs_no_random_number():
    s = settings.new({"width": 16, "device": "cpu"})
    before = torch.get_rng_state()
    measure.memory(Stock, s, tasks.load(s))
    assert torch.equal(torch.get_rng_state(), before)
