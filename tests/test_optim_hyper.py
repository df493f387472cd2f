"""The table of hyperparameters of a step, where some of them are tensors."""

from __future__ import annotations

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
