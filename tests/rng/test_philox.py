"""The generator against its published vectors, and its lanes against what random numbers must look like.

Statistics use fixed states and bounds of five standard deviations of the null hypothesis."""

from __future__ import annotations

import math

import pytest
import torch

from fusedtrain import rng

STATE = torch.tensor([0x0123456789ABCDEF, 0x1234_5678_9ABC])
N = 1 << 20

# kat_vectors of Random123 (Salmon et al. 2011): rounds, counter, key, output
KNOWN = [
    (7, "00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, "00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), KNOWN)
def test_known_answers(rounds: int, counter: str, key: str, expected: str) -> None:
    c = tuple(torch.tensor([w, w]) for w in words(counter))
    k = tuple(torch.tensor([w, w]) for w in words(key))
    out = rng.philox4x32(c, k, rounds)
    assert [o.tolist() for o in out] == [[w, w] for w in words(expected)]


def scalar_lane(seed: int, offset: int, index: int) -> int:
    """The contract of one element in Python's unbounded integers, sharing nothing with the tensor code."""
    seed, block, chunk = seed % 2**64, (offset % 2**64) // 4, index >> 3
    c = [block & 0xFFFFFFFF, block >> 32, chunk & 0xFFFFFFFF, chunk >> 32]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    lane = index & 7
    return (c[lane // 2] >> (16 * (lane % 2))) & 0xFFFF


@pytest.mark.parametrize("state", [(0, 0), (1, 4), (-1, -1), (2**63 - 1, 2**63 - 4), (-(2**63), 7), (42, 2**34 + 8)])
@pytest.mark.parametrize("start", [0, 3, 8, 2**31 - 4, 2**32 - 1, 2**32 + 5, 2**35 - 2, 2**40 + 1, 2**62])
def test_lanes_follow_the_contract(state: tuple[int, int], start: int) -> None:
    got = rng.lanes(torch.tensor(state), 19, start)
    assert got.tolist() == [scalar_lane(*state, start + i) for i in range(19)]


def test_no_period_at_the_word_boundaries_of_the_index() -> None:
    """D6 (FlagGems!23): a 32-bit element or chunk index repeats itself beyond 2^32 or 2^35."""
    first = rng.lanes(STATE, 1024)
    for start in (2**31, 2**32, 2**33, 2**35, 2**36):
        agreeing = (rng.lanes(STATE, 1024, start) == first).sum()
        assert agreeing <= 5, start  # 1024 / 65536 expected


def assert_within_five_sigma(count: torch.Tensor | int, n: int, q: float) -> None:
    z = (int(count) - n * q) / math.sqrt(n * q * (1 - q))
    assert abs(z) < 5, f"{z:.2f} sigma"


@pytest.mark.parametrize("p", [0.001, 0.1, 0.25, 0.5, 0.9, 0.999])
def test_keep_rate(p: float) -> None:
    threshold = rng.drop_threshold(p)
    assert_within_five_sigma(rng.keep_mask(STATE, threshold, (N,)).sum(), N, 1 - threshold / rng.LEVELS)


def test_every_value_of_a_lane_is_equally_likely() -> None:
    lanes = rng.lanes(STATE, N)
    for byte in (lanes & 0xFF, lanes >> 8):
        counts = torch.bincount(byte, minlength=256).double()
        chi2 = float(((counts - N / 256) ** 2 / (N / 256)).sum())
        assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 6, 7, 8, 16, 64, 4096])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_neighbours_are_independent(p: float, lag: int) -> None:
    """D4 (pytorch#198333): neighbours that share a random number drop together more often than p^2."""
    dropped = ~rng.keep_mask(STATE, rng.drop_threshold(p), (N,))
    q = (rng.drop_threshold(p) / rng.LEVELS) ** 2
    # Every second pair, so that pairs do not overlap and their counts are binomial.
    pairs = (dropped[:-lag] & dropped[lag:]).unfold(0, lag, 2 * lag).reshape(-1)
    assert_within_five_sigma(pairs.sum(), pairs.numel(), q)


@pytest.mark.parametrize("lane", range(8))
def test_each_lane_of_a_chunk_keeps_at_the_same_rate(lane: int) -> None:
    threshold = rng.drop_threshold(0.3)
    mask = rng.keep_mask(STATE, threshold, (N // 8, 8))[:, lane]
    assert_within_five_sigma(mask.sum(), N // 8, 1 - threshold / rng.LEVELS)


@pytest.mark.parametrize("shape", [(1024, 1024), (1000, 1001), (4096, 7)])
def test_rows_and_columns_are_uncorrelated(shape: tuple[int, int]) -> None:
    p = rng.drop_threshold(0.5) / rng.LEVELS
    x = (rng.keep_mask(STATE, rng.drop_threshold(0.5), shape).double() - (1 - p)) / math.sqrt(p * (1 - p))
    for products in (x[:-1] * x[1:], x[:, :-1] * x[:, 1:]):
        assert abs(float(products.sum())) < 5 * math.sqrt(products.numel())
    for dim in (0, 1):
        z = x.sum(dim) / math.sqrt(shape[dim])
        # The sum of squares of n standard normals has mean n and variance 2 n (here slightly less).
        assert abs(float(z.square().sum()) - z.numel()) < 5 * math.sqrt(2 * z.numel())


@pytest.mark.parametrize("other", [(0, 4), (0, 2**34), (1, 0), (2**32, 0), (-(2**63), 0)])
def test_streams_of_other_states_are_independent(other: tuple[int, int]) -> None:
    threshold = rng.drop_threshold(0.5)
    a = rng.keep_mask(STATE, threshold, (N,))
    b = rng.keep_mask(STATE + torch.tensor(other), threshold, (N,))
    assert_within_five_sigma((a == b).sum(), N, 0.5)


def test_an_offset_counts_in_fours() -> None:
    base = torch.tensor([7, 8])
    assert torch.equal(rng.lanes(base, 64), rng.lanes(base + torch.tensor([0, 3]), 64))
    assert not torch.equal(rng.lanes(base, 64), rng.lanes(base + torch.tensor([0, 4]), 64))


def test_thresholds_and_scales() -> None:
    assert [rng.drop_threshold(p) for p in (0.0, 1e-9, 0.5, 1 - 1e-9, 1.0)] == [0, 0, 32768, 65536, 65536]
    assert rng.keep_scale(0) == 1.0
    assert rng.keep_scale(rng.LEVELS) == 0.0
    for threshold in (1, 1000, 32768, 65535):
        assert rng.keep_scale(threshold) * (1 - threshold / rng.LEVELS) == pytest.approx(1, rel=1e-15)
    assert rng.keep_mask(STATE, 0, (4096,)).all()
    assert not rng.keep_mask(STATE, rng.LEVELS, (4096,)).any()


def test_a_draw_is_one_reservation_of_the_default_generator() -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    first, second = rng.draw(cpu), rng.draw(cpu)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    assert torch.equal(first, rng.draw(cpu))
    assert torch.equal(second, rng.draw(cpu))
    assert torch.equal(after, torch.get_rng_state())
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(first, rng.draw(cpu, generator))
    assert torch.equal(after, torch.get_rng_state())
