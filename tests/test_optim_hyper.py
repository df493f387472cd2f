"""The table of hyperparameters of a step, where some of them are tensors."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch

from fusedtrain.optim import hyper


def test_numbers_and_tensors_of_the_host_make_a_table_there() -> None:
    rows = [[0.1, torch.tensor(0.5), 3], [torch.tensor([0.2], dtype=torch.float64), 0.25, 4]]
    table = hyper.table(rows)
    assert torch.equal(table, torch.tensor([[0.1, 0.5, 3], [0.2, 0.25, 4]], dtype=torch.float64))


def test_one_tensor_elsewhere_takes_the_table_there() -> None:
    """On "meta" there are no values: that it works shows that none is read."""
    lr = torch.full((), 0.5, device="meta")
    table = hyper.table([[0.1, 2.0], [lr, 4.0]])
    assert (table.device.type, table.shape, table.dtype) == ("meta", (2, 2), torch.float64)


@pytest.mark.parametrize("key", ["lr", "eps", "weight_decay", "momentum", "dampening", "l1", "clip_value"])
def test_no_value_elsewhere_is_waited_for(key: str) -> None:
    hyper.check_settings("step", {key: torch.ones((), device="meta")})
    with pytest.raises((TypeError, ValueError), match=key):
        hyper.check_settings("step", {key: torch.ones(2, device="meta")})


def test_cells_of_a_device_are_read_anew_and_the_others_are_kept() -> None:
    class Elsewhere(torch.Tensor):
        """A tensor of the CPU that says it is elsewhere."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("meta")

    lr = torch.tensor(0.5).as_subclass(Elsewhere)
    cells = [0.1, lr, 3, torch.tensor(4.0), lr]
    place = torch.device("cpu")
    first = hyper.flat_on(place, cells).as_subclass(torch.Tensor)
    lr.fill_(0.25)
    second = hyper.flat_on(place, cells).as_subclass(torch.Tensor)
    assert first.tolist() == [0.1, 0.5, 3, 4, 0.5]
    assert second.tolist() == [0.1, 0.25, 3, 4, 0.25]


@pytest.mark.parametrize("captured", [False, True])
def test_what_a_captured_graph_reads_is_kept(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many other settings come after it. What eager steps read is let go."""
    plain, most = hyper._upload.__wrapped__, hyper._upload.cache_parameters()["maxsize"]
    here = functools.lru_cache(maxsize=most)(lambda device, *rest: plain(torch.device("cpu"), *rest))
    monkeypatch.setattr(hyper, "_upload", here)
    monkeypatch.setattr(hyper, "_captured", {})
    place = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captured)
    read = [weakref.ref(x) for x in hyper._constants(place, (0.1, 0.0), (1,))]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for i in range(most):
        hyper._constants(place, (0.2 + i, 0.0), (1,))
    gc.collect()
    assert [x() is not None for x in read] == [captured] * 2
