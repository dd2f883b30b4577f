"""Signatures, the walk over frames, its guard, and leaks: oracle 11 and slow references."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from effvl_cli.techniques.detect import dedup
from effvl_cli.techniques.detect.dedup import (
    Rule,
    Signatures,
    adjacent,
    dhash,
    leaks,
    phash,
    same_labels,
    smallest_bits,
    smallest_distance,
    standardised,
    walk,
    walk_all,
)
from effvl_cli.techniques.detect.tagging import shrunk

HASH = Rule(10, None)


def noise(seed: int, height: int = 48, width: int = 80) -> torch.Tensor:
    coarse = torch.rand(1, 1, 6, 10, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0, 0].clamp(0, 1) * 255


def of(frames) -> Signatures:
    return Signatures(torch.stack([dhash(f) for f in frames]), torch.stack([standardised(f) for f in frames]))


def kept(skips) -> list[int]:
    return [k for k, skip in enumerate(skips) if skip is None]


def bits(*words: int) -> Signatures:
    return Signatures(torch.tensor([[word >> k & 1 == 1 for k in range(64)] for word in words]), None)


def test_dhash_of_ramps():
    ramp = torch.arange(90.0).expand(40, 90)
    assert dhash(ramp).all()
    assert not dhash(ramp.flip(1)).any()
    assert dhash(ramp).shape == (64,)


def test_phash_is_the_dct_of_scipy():
    luma = noise(0, 64, 64)
    low = dctn(shrunk(luma, 32, 32).double().numpy(), norm="ortho")[:8, :8].ravel()[1:]
    assert phash(luma).tolist() == (low > np.median(low)).tolist()
    assert phash(luma).sum() == 31


def test_half_the_mean_squared_difference_is_one_minus_the_correlation():
    one, two = standardised(noise(1)), standardised(noise(2))
    pair = Signatures(None, torch.stack([one, two]))
    expected = 1 - np.corrcoef(shrunk(noise(1), 20, 32).ravel(), shrunk(noise(2), 20, 32).ravel())[0, 1]
    assert pair.alike(0, pair, 1, Rule(None, 2.0)) == pytest.approx(expected, abs=1e-5)


def test_flat_frames_are_alike_and_their_noise_is_not_magnified():
    black, dim = torch.zeros(30, 50), torch.zeros(30, 50)
    dim[::2, ::2] = 1
    pair = Signatures(None, torch.stack([standardised(black), standardised(black), standardised(dim)]))
    assert pair.alike(0, pair, 1, Rule(None, 0.0)) == 0
    assert pair.alike(0, pair, 2, Rule(None, 0.02)) is not None


def test_both_have_to_be_near():
    hashes, vectors = bits(0, 0b111).bits, torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    pair = Signatures(hashes, vectors)
    assert pair.alike(0, pair, 1, Rule(3, None)) == 3
    assert pair.alike(0, pair, 1, Rule(2, None)) is None
    assert pair.alike(0, pair, 1, Rule(3, 2.0)) == 2  # the distance of the vectors is what is told
    assert pair.alike(0, pair, 1, Rule(3, 1.9)) is None
    assert pair.alike(0, pair, 1, Rule(2, 2.0)) is None


def test_runs_of_equal_frames_keep_one_each():
    a, b = noise(3), noise(4)
    signatures = of([a] * 40 + [b] * 5)
    assert kept(walk(signatures, ["s"] * 45, HASH)) == [0, 40]
    assert kept(walk(signatures, ["s"] * 45, HASH, max_gap=30)) == [0, 31, 40]
    found = list(walk(of([a, a, b, b, a]), ["s"] * 5, HASH))
    assert kept(found) == [0, 2, 4]
    assert found[3] == (2, 0.0)


def test_a_new_sequence_begins_anew():
    assert kept(walk(of([noise(3)] * 4), ["s", "s", "t", "t"], HASH)) == [0, 2]


def test_slow_drift_keeps_more_than_one():
    words = [(1 << k) - 1 for k in range(16)]  # each differs from the one before in one bit
    assert kept(walk(bits(*words), ["s"] * 16, Rule(5, None))) == [0, 6, 12]


def test_tau_0_keeps_all_frames_with_different_hashes():
    assert kept(walk(bits(1, 2, 2, 3, 1), ["s"] * 5, Rule(0, None))) == [0, 1, 3, 4]
    assert kept(walk_all(bits(1, 2, 2, 3, 1), ["s"] * 5, Rule(0, None))) == [0, 1, 3]


@pytest.mark.parametrize("most", [2, 12])  # by parts of the hashes, and by all of them
@pytest.mark.parametrize("block", [4, 256])
def test_comparing_with_all_kept_is_the_slow_loop(monkeypatch, most, block):
    monkeypatch.setattr(dedup, "BLOCK", block)
    draw = np.random.default_rng(1)
    base = [int(word) for word in draw.integers(0, 2**62, 6)]
    words = [
        base[draw.integers(6)] ^ sum(1 << int(bit) for bit in draw.choice(60, int(draw.integers(9)), replace=False))
        for _ in range(60)
    ]
    expected: list[int] = []
    for k, word in enumerate(words):
        if all((word ^ words[one]).bit_count() > most for one in expected):
            expected.append(k)
    found = list(walk_all(bits(*words), ["s"] * 60, Rule(most, None)))
    assert kept(found) == expected
    assert 6 <= len(expected) < 60
    for k, skip in enumerate(found):
        if skip is not None:
            assert skip.distance == min((words[k] ^ words[one]).bit_count() for one in expected if one < k)


def test_vectors_are_compared_exactly_behind_the_matrix_product():
    rows = torch.randn(40, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[1::2] = rows[::2] + 0.2 * rows[1::2]
    rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, correction=0, keepdim=True)
    expected: list[int] = []
    for k in range(40):
        if all(float((rows[k] - rows[one]).square().mean()) / 2 > 0.02 for one in expected):
            expected.append(k)
    assert kept(walk_all(Signatures(None, rows.float()), ["s"] * 40, Rule(None, 0.02))) == expected
    assert len(expected) < 40


def test_the_guard_keeps_an_equal_frame_with_other_boxes():
    signatures = of([noise(5)] * 3)
    assert kept(walk(signatures, ["s"] * 3, HASH, guard=lambda frame, one: frame == 1)) == [0, 2]
    assert kept(walk_all(signatures, ["s"] * 3, HASH, guard=lambda frame, one: frame == 1)) == [0, 2]


def test_same_labels():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 30]])
    labels = torch.tensor([1, 2])
    nothing = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    assert same_labels(*nothing, *nothing)
    assert not same_labels(*nothing, boxes, labels)
    assert same_labels(boxes, labels, boxes.flip(0), labels.flip(0))
    assert not same_labels(boxes, labels, boxes, torch.tensor([1, 1]))
    assert not same_labels(boxes, labels, boxes.flip(0), labels)  # the classes have swapped places
    near = boxes + torch.tensor([1.0, 0, 1, 0])  # IoU 9/11 and 19/21
    assert same_labels(boxes, labels, near, labels)
    assert not same_labels(boxes, labels, near, labels, 0.82)
    assert same_labels(boxes, labels, near, labels, 0.818)


def test_each_box_is_matched_once():
    one = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    two = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    assert not same_labels(one, torch.tensor([1, 1]), two, torch.tensor([1, 1]))


@pytest.mark.parametrize("block", [2, 256])
def test_leaks_name_the_nearest(monkeypatch, block):
    monkeypatch.setattr(dedup, "BLOCK", block)
    ours, theirs = bits(0b1111, 2**40 - 1, 0), bits(0b111, 0b11, 2**63 - 1)
    assert list(leaks(ours, theirs, Rule(3, None))) == [(0, 0, 1), None, (2, 1, 2)]
    assert list(leaks(ours, theirs, Rule(0, None))) == [None] * 3


def test_adjacent_distances_stay_in_a_sequence():
    later, differing, distance = adjacent(bits(0, 1, 7, 0, 3), ["a", "a", "a", "b", "b"])
    assert later.tolist() == [1, 2, 4]
    assert differing is not None
    assert differing.tolist() == [1, 2, 2]
    assert distance is None


def test_the_smallest_threshold_for_a_share():
    assert smallest_bits(lambda tau: 1 - tau / 10, 0.25, 64) == 8
    assert smallest_bits(lambda tau: 0.5, 0.25, 64) is None
    found = smallest_distance(lambda tau: 1.0 if tau < 0.3 else 0.2, 0.25, 2.0)
    assert found is not None
    assert math.isclose(found, 0.3, abs_tol=2 / 2**20 + 1e-12)
    assert found >= 0.3
    assert smallest_distance(lambda tau: 0.5, 0.25, 2.0) is None
