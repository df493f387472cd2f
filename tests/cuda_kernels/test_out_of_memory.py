"""Memory that runs out inside an operator of CUDA: torch's exception, with the text that programs look for, from every
public call, and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cuda_on_cpu import backend as cuda_emulation
from torch import Tensor
from torch.nn import Parameter

import fusedtrain as ft
from fusedtrain.backends import Backend

pytestmark = pytest.mark.skipif("torch.cuda.is_available()", reason="only an emulated GPU runs out of memory at will")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    with cuda_emulation.installed() as backend:
        if backend.why_not:
            pytest.skip(backend.why_not)
        monkeypatch.setenv("FUSEDTRAIN_BACKEND", "cuda")
        yield backend
        library = cuda_emulation.emulator()
        library.emu_fail_allocation_after(-1)
        library.emu_set_reason_of_failure(0)
        library.emu_set_capturing(0)


def with_grad() -> Parameter:
    p = Parameter(torch.ones(6, 4))
    p.grad = torch.full_like(p, 3.0)
    return p


def x() -> Tensor:
    return torch.ones(6, 8, requires_grad=True)


def backward(y: Tensor) -> Callable[[], Any]:
    return lambda: y.sum().backward(retain_graph=True)


def stepping(steps: int) -> Callable[[], Any]:
    """The step after so many, which go by lists first and then by a table."""
    opt = ft.optim.AdamW([with_grad()], lr=0.1, max_norm=1.0)
    for _ in range(steps):
        opt.step()
    if steps:  # so that the table must be made anew
        cuda_emulation.emulator().emu_set_current_stream(steps)
    return opt.step


BIAS = torch.zeros(8, requires_grad=True)
CALLS: dict[str, Callable[[], Callable[[], Any]]] = {
    "functional.act_dropout": lambda: lambda: ft.functional.act_dropout(x(), "gelu", 0.1),
    "functional.act_dropout inplace": lambda: lambda: ft.functional.act_dropout(x().detach().t(), inplace=True),
    "functional.gated_act_dropout": lambda: lambda: ft.functional.gated_act_dropout(x(), "silu", 0.1),
    "nn.ActDropout": lambda: lambda: ft.nn.ActDropout("gelu", 0.1)(x()),
    "backward": lambda: backward(ft.functional.act_dropout(x(), "gelu", 0.1, bias=BIAS)),
    "backward, gated": lambda: backward(ft.functional.gated_act_dropout(x(), "silu", 0.1, bias=BIAS)),
    "global_norm": lambda: lambda: ft.global_norm([torch.ones(9)]),
    "tensor_norms": lambda: lambda: ft.tensor_norms([torch.ones(9)]),
    "clip_grad_norm_": lambda: lambda: ft.clip_grad_norm_(with_grad(), 1.0),
    "step": lambda: stepping(0),
    "step by a table": lambda: stepping(3),
}
NO_MEMORY, ANOTHER, NOT_TOLD = 0, 1, 2
TEXT = r"CUDA out of memory. Tried to allocate \d+ bytes on device -?\d+ for fusedtrain"


@pytest.mark.parametrize("name", CALLS)
def test_every_call_raises_the_exception_of_torch(emulated: Backend, name: str) -> None:
    """At whichever of its allocations memory runs out; with enough, the same call goes well."""
    library = cuda_emulation.emulator()
    try:
        told = []
        for allocations in range(20):
            call = CALLS[name]()
            library.emu_fail_allocation_after(allocations)
            try:
                call()
                break
            except torch.OutOfMemoryError as error:
                told.append(str(error))
            finally:
                library.emu_fail_allocation_after(-1)
        assert 1 <= len(told) < 20
        assert all(re.match(TEXT, text) for text in told)
        call()
    finally:
        library.emu_set_current_stream(0)


def test_a_step_without_memory_writes_nothing_and_the_next_goes_well(emulated: Backend) -> None:
    p, same = with_grad(), with_grad()
    opt = ft.optim.AdamW([p], lr=0.1, max_norm=1.0)
    reference = ft.optim.AdamW([same], lr=0.1, max_norm=1.0)
    library = cuda_emulation.emulator()
    for step in range(4):
        before = p.detach().clone()
        library.emu_set_current_stream(step)
        library.emu_fail_allocation_after(0)
        with pytest.raises(torch.OutOfMemoryError):
            opt.step()
        library.emu_fail_allocation_after(-1)
        assert torch.equal(p, before)
        opt.step()
        reference.step()
    library.emu_set_current_stream(0)
    assert torch.equal(p, same)


def test_copies_and_what_torch_says(emulated: Backend) -> None:
    """A contiguous copy of a tensor that no machine has room for. The text of torch's own exception is kept, where
    this torch tells it."""
    with pytest.raises(torch.OutOfMemoryError, match=rf"{TEXT}\.") as caught:
        ft.global_norm([torch.ones(1).expand(2**45)])
    assert f"allocate {2**47} bytes" in str(caught.value)
    if torch.__version__ >= "2.13":
        assert f"you tried to allocate {2**47} bytes" in str(caught.value)


def without_memory(reason: int) -> RuntimeError:
    """What a call raises on a thread that torch has not told of any exception yet."""
    library = cuda_emulation.emulator()
    library.emu_set_reason_of_failure(reason)
    library.emu_fail_allocation_after(0)
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(ft.global_norm, [torch.ones(9)]).exception(60)
    assert isinstance(error, RuntimeError)
    return error


def test_a_reason_that_torch_does_not_tell_is_not_claimed(emulated: Backend) -> None:
    """As with torch 2.11: memory is likely, and said to be no more than that; during a capture it is not even that."""
    error = without_memory(NOT_TOLD)
    assert isinstance(error, torch.OutOfMemoryError)
    assert re.match(TEXT + r"\. This is likely but not known: .* \d+ of \d+ bytes are free$", str(error))
    cuda_emulation.emulator().emu_set_capturing(1)
    error = without_memory(NOT_TOLD)
    assert not isinstance(error, torch.OutOfMemoryError)
    assert re.match(r"fusedtrain: no tensor of \d+ bytes on device .* while the stream is being captured", str(error))


@pytest.mark.skipif(torch.__version__ < "2.13", reason="this torch does not tell the reason")
@pytest.mark.parametrize("capturing", [0, 1])
def test_a_reason_that_torch_tells_is_believed(emulated: Backend, capturing: int) -> None:
    cuda_emulation.emulator().emu_set_capturing(capturing)
    assert isinstance(without_memory(NO_MEMORY), torch.OutOfMemoryError)
    error = without_memory(ANOTHER)
    assert not isinstance(error, torch.OutOfMemoryError)
    assert "negative" in str(error)


def test_other_errors_stay_what_they_are(emulated: Backend) -> None:
    library = cuda_emulation.emulator()
    library.emu_fail_launch_after(0)
    try:
        with pytest.raises(RuntimeError, match="CUDA says") as caught:
            ft.global_norm([torch.ones(9)])
    finally:
        library.emu_fail_launch_after(-1)
    assert not isinstance(caught.value, torch.OutOfMemoryError)
