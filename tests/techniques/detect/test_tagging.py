"""Day or night by luminance: oracle 12, Otsu against its definition, votes."""

import numpy as np
import pytest
import torch

from effvl_cli.techniques.detect.tagging import STATISTICS, lightness, of_frames, otsu, voted, without_letterbox


def frame(value: int, height: int = 90, width: int = 160) -> torch.Tensor:
    return torch.full((height, width), value, dtype=torch.uint8)


def statistic(luma, name="median"):
    return lightness(luma)[STATISTICS.index(name)]


def test_black_is_night_and_white_is_day():
    assert lightness(frame(0)) == (0, 0, 0)
    assert lightness(frame(255)) == pytest.approx((255, 255, 255))
    assert of_frames([statistic(frame(0)), statistic(frame(255))], 65) == ["night", "day"]


def test_a_letterbox_does_not_count():
    boxed = frame(180)
    boxed[:24] = boxed[-24:] = 0
    boxed[:, :40] = 3
    small = lightness(boxed)
    assert small[0] == pytest.approx(180)  # of the whole frame 43 % is lit: its median is 0
    assert float(boxed.float().median()) < 65
    assert small[1] > 150


def test_only_dark_edges_are_cut():
    luma = torch.full((6, 6), 100.0)
    luma[0] = luma[:, 5] = 7.9
    luma[3] = 0  # in the middle: a dark road
    assert without_letterbox(luma).shape == (5, 5)
    assert without_letterbox(torch.zeros(4, 4)).shape == (4, 4)


def test_the_three_statistics_of_a_split_frame():
    luma = frame(20)
    luma[:36] = 200  # the upper 40 %
    median, sky, mean = lightness(luma)
    assert median == pytest.approx(20, abs=1e-3)
    assert sky == pytest.approx(200, abs=4)  # the resize blurs the border row
    assert mean == pytest.approx(0.4 * 200 + 0.6 * 20, abs=1)


def test_otsu_on_two_spikes_is_between_them():
    found = otsu(torch.tensor([30.0] * 7 + [180.0] * 3))
    assert 30 < found.threshold < 180
    assert found.threshold == pytest.approx(105, abs=1)  # of equally good ones the middle
    assert found.ratio == pytest.approx(1)
    assert found.share == pytest.approx(0.3)
    assert found.holds


def test_otsu_against_all_thresholds():
    values = torch.from_numpy(np.random.default_rng(0).gamma(6, 14, 400).clip(0, 255)).floor()
    best = {}
    for threshold in range(1, 256):
        low, high = values[values < threshold], values[values >= threshold]
        if len(low) and len(high):
            share = len(low) / len(values)
            best[threshold] = share * (1 - share) * float(low.mean() - high.mean()) ** 2
    found = otsu(values)
    assert best[round(found.threshold)] == pytest.approx(max(best.values()))
    assert found.ratio == pytest.approx(max(best.values()) / float(values.var(correction=0)))


@pytest.mark.parametrize("values", [[50.0] * 20, [*range(100)], [40.0] * 199 + [200.0]])
def test_otsu_refuses_one_group(values):
    found = otsu(torch.tensor(values, dtype=torch.float32))
    assert not found.holds or (found.share >= 0.02 and found.ratio >= 0.5)
    assert found.holds == (len(set(values)) == 100)  # a flat histogram has halves; one outlier of 200 is no group


def test_sequences_vote_and_a_tie_goes_to_the_mean():
    values = [10, 20, 90, 10, 90, 60, 80]
    sequences = ["a", "a", "a", "b", "b", "c", "c"]
    assert of_frames(values, 65) == ["night", "night", "day", "night", "day", "night", "day"]
    assert voted(values, sequences, 65) == ["night"] * 5 + ["day"] * 2  # b: mean 50, c: mean 70
