"""A library of CUDA that was built for other GPUs than the one there is: it is passed over, and says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusedtrain import dispatch, env
from fusedtrain.backends import Backend, libraries, native

CPU, FLOAT = torch.device("cpu"), frozenset({torch.float32})


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ((80, 90), (8, 0), True),
        ((80, 90), (8, 6), True),  # machine code of the same major version
        ((86,), (8, 0), False),  # but not of a newer minor one
        ((80, 90), (7, 5), False),
        ((90,), (8, 0), False),
        ((80, 90), (9, 0), True),
        ((80, 90), (10, 0), True),  # by PTX of the newest
        ((80, 90, 120), (10, 0), False),  # older than the PTX, and of no machine code
        ((90, 100), (12, 1), True),
        ((100, 120), (10, 3), True),
        ((), (7, 0), True),  # nothing is known of it
    ],
)
def test_which_gpus_a_library_has_code_for(built: tuple[int, ...], capability: tuple[int, int], runs: bool) -> None:
    assert (libraries.lacks_code(built, capability) is None) == runs


def test_the_reason_and_the_remedy() -> None:
    assert libraries.lacks_code((80, 90), (7, 5)) == (
        "_C_cuda.so has no code for this GPU, sm_75: it was built for sm_80, sm_90 and newer GPUs; build it anew on "
        "this machine, or with FUSEDTRAIN_CUDA_ARCHS='75;80;90'"
    )


@pytest.mark.parametrize(
    ("record", "known"),
    [
        ({"parts": {"_C_cuda": {"built": True, "isa": ["sm_90", "sm_80", "sm_100"]}}}, (80, 90, 100)),
        ({"parts": {"_C_cuda": {"built": False, "reason": "no nvcc"}}}, ()),
        ({"parts": {}}, ()),
        ([], ()),
        (None, ()),
    ],
    ids=["built", "not built", "no part", "no object", "no file"],
)
def test_what_the_build_has_recorded(
    record: object, known: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if record is not None:
        (tmp_path / "_build_info.json").write_text(json.dumps(record))
    monkeypatch.setattr(libraries, "_FOLDER", tmp_path)
    libraries.architectures.cache_clear()
    try:
        assert libraries.architectures() == known
    finally:
        libraries.architectures.cache_clear()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that the library has code for and one that it has not. There are no tensors on them."""

    def capability(device: torch.device) -> tuple[int, int]:
        index = torch.cuda.current_device() if device.index is None else device.index
        return {0: (9, 0), 1: (7, 5)}[index]

    monkeypatch.setattr(libraries, "architectures", lambda: (80, 90))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    rest = {"dtypes": FLOAT, "rules": frozenset({"relu"})}
    cuda = Backend("cuda", None, device_types=frozenset({"cuda"}), on_device=native.on_gpu, **rest)
    triton = Backend("triton", None, device_types=frozenset({"cuda"}), **rest)
    before = {name: dispatch.load(name) for name in dispatch.ORDER}
    dispatch._loaded.update(cuda=cuda, triton=triton)
    dispatch._choose.cache_clear()
    yield
    dispatch._loaded.update(before)
    dispatch._choose.cache_clear()


def test_each_gpu_gets_a_backend_that_runs_there(two_gpus: None) -> None:
    for index, name in ((0, "cuda"), (1, "triton")):
        assert dispatch.resolve("test", torch.device("cuda", index), FLOAT, "relu").name == name


def test_a_device_without_an_index_is_the_current_one(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever that is when it is asked for."""
    cuda = torch.device("cuda")
    for index, name in ((0, "cuda"), (1, "triton"), (0, "cuda")):
        monkeypatch.setattr(torch.cuda, "current_device", lambda index=index: index)
        assert dispatch.resolve("test", cuda, FLOAT, "relu").name == name
        assert (dispatch.load("cuda").refusal(cuda, FLOAT, "relu") is None) == (name == "cuda")


def test_who_asks_for_it_by_name_is_told(two_gpus: None) -> None:
    with pytest.raises(RuntimeError, match=r"no code for this GPU, sm_75: .* FUSEDTRAIN_CUDA_ARCHS='75;80;90'"):
        dispatch.resolve("test", torch.device("cuda", 1), FLOAT, "relu", "cuda")


def test_what_is_reported(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.available()["cuda"].startswith(
        "available: not on cuda:1: _C_cuda.so has no code for this GPU, sm_75"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason = dispatch.available()["cuda"]
    assert reason.startswith("_C_cuda.so has no code for this GPU, sm_75")
    monkeypatch.setattr(env, "backend_states", dispatch.available)
    backend = replace(dispatch.load("cuda"), act_dropout=print)
    assert env._operator("act_dropout", backend) == reason
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert dispatch.available()["cuda"] == "available"  # to ask would start CUDA


def test_tensors_of_the_host_do_not_start_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("a GPU was asked for")

    monkeypatch.setattr(torch.cuda, "get_device_capability", asked)
    monkeypatch.setattr(torch.cuda, "is_available", asked)
    dispatch._choose.cache_clear()
    dispatch.resolve("test of the host", CPU, FLOAT, "relu", "reference")
