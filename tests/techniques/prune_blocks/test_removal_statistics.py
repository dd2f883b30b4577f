import math

import pytest
import torch
from scipy import stats

from effvl_cli.techniques.prune_blocks.statistics import (
    Interval,
    accuracy_interval,
    break_ties_by_loss,
    clopper_pearson,
    images_for_half_width,
    images_for_power,
    impacts,
    kendall,
    loss_interval,
    rank,
    tied_with_best,
)

NAN = math.nan


def _pair(both, first, second, neither):
    """Correctness of two networks with so many images right for both, for one only, and for none."""
    return (
        torch.tensor([1] * (both + first) + [0] * (second + neither), dtype=torch.bool),
        torch.tensor([1] * both + [0] * first + [1] * second + [0] * neither, dtype=torch.bool),
    )


def test_impacts_are_falls_of_accuracy_and_rises_of_loss():
    correct = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    loss = torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 2.0, 0.5, 0.5], [0.25, 0.25, 0.25, 0.25]])
    assert impacts(correct, loss) == ([0.5, -0.25], [0.5, -0.25])


def test_the_order_of_the_images_does_not_change_the_mean_loss():
    loss = torch.rand(2, 999, generator=torch.Generator().manual_seed(0)) * 10
    correct = loss > 5
    turned = torch.randperm(999, generator=torch.Generator().manual_seed(1))
    assert impacts(correct, loss) == impacts(correct[:, turned], loss[:, turned])


def test_many_discordant_images_give_the_normal_interval():
    first, second = _pair(500, 40, 20, 440)
    difference = first.double() - second.double()
    half = 1.959963984540054 * float(difference.std(correction=0)) / math.sqrt(1000)
    assert accuracy_interval(first, second) == pytest.approx((0.02 - half, 0.02 + half))
    low, high = accuracy_interval(second, first)
    assert (-high, -low) == pytest.approx(accuracy_interval(first, second))


def test_few_discordant_images_give_the_exact_interval():
    first, second = _pair(900, 15, 9, 76)
    share = stats.binomtest(15, 24).proportion_ci(0.95, "exact")
    expected = [(2 * value - 1) * 24 / 1000 for value in (share.low, share.high)]
    assert accuracy_interval(first, second) == pytest.approx(expected)


def test_the_interval_of_equal_candidates_is_zero():
    first, _ = _pair(5, 0, 0, 5)
    assert accuracy_interval(first, first) == (0, 0) and accuracy_interval(first, first).holds_zero
    losses = torch.rand(9)
    assert loss_interval(losses, losses) == (0, 0)


@pytest.mark.parametrize("trials", [1, 2, 7, 24])
def test_the_exact_binomial_interval_is_scipys(trials):
    for successes in range(trials + 1):
        theirs = stats.binomtest(successes, trials).proportion_ci(0.95, "exact")
        assert clopper_pearson(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_interval_covers_the_truth_95_times_of_100():
    """500 draws of 2000 images; the share lies within 3 standard errors of 0.95."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(500, 2000, generator=generator) < 0.8
    second = torch.where(torch.rand(500, 2000, generator=generator) < 0.06, ~first, first)
    truth = 0.06 * (0.8 - 0.2)  # what is turned from right to wrong, less the other way
    found = [accuracy_interval(a, b) for a, b in zip(first, second, strict=True)]
    covered = sum(low <= truth <= high for low, high in found) / 500
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 500)


def test_the_interval_of_a_loss_is_that_of_the_paired_difference():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 50, generator=generator)
    difference = (first.double() - second.double()).numpy()
    theirs = stats.norm.interval(0.95, difference.mean(), stats.sem(difference))
    assert loss_interval(first, second) == pytest.approx(theirs)
    first[3] = NAN
    assert all(math.isnan(value) for value in loss_interval(first, second))
    assert not loss_interval(first, second).holds_zero


def test_an_interval_holds_its_ends():
    assert Interval(0.0, 1.0).holds_zero and Interval(-1.0, 0.0).holds_zero
    assert not Interval(0.1, 1.0).holds_zero and not Interval(-1.0, -0.1).holds_zero


def test_how_many_images_are_needed():
    assert images_for_half_width(0.06, 0.01) == 2305
    assert images_for_half_width(0.06, 0.005) == 9220
    assert images_for_power(0.06, 0.01) == 4702
    # The definition, with a peer's quantiles.
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert images_for_power(0.2, 0.03) == math.ceil(z**2 * (0.2 - 0.03**2) / 0.03**2)


def test_units_that_the_data_do_not_tell_from_the_best_are_tied():
    best, near = _pair(900, 12, 8, 80)
    _, far = _pair(800, 112, 8, 80)
    scores = torch.stack([far, best, near])
    assert tied_with_best(scores, 1) == [False, True, True]
    losses = torch.tensor([[1.0, 1.1, 0.9, 1.0], [1.0, 1.0, 1.0, 1.1], [3.0, 3.1, 2.9, 3.0]])
    assert tied_with_best(losses, 0) == [True, True, False]


def test_equals_are_ordered_by_the_other_measure_then_savings_then_position():
    impact = [0.2, 0.1, 0.1, 0.1, 0.1, 0.1]
    other = [0.0, 0.5, 0.4, 0.5, 0.5, 0.5]
    macs = [9, 1, 1, 2, 1, 1]
    params = [9, 7, 1, 1, 8, 8]
    assert rank(impact, other, macs, params) == [2, 3, 5, 4, 1, 0]


def test_candidates_without_a_number_go_last():
    assert rank([NAN, 0.3, 0.1, -5.0], [0, 0, 0, NAN], [1] * 4, [1] * 4) == [2, 1, 3, 0]
    assert rank([NAN, 0.3], [0, 0], [1] * 2, [1] * 2, [1, 1]) == [1, 0]
    assert rank([0.1, 0.3], [math.inf, 0], [1] * 2, [1] * 2) == [1, 0]


def test_impacts_over_savings():
    # By quotient 0.1, 0.05, 0.2; and no harm at all: the larger saving first, whatever the impact.
    impact, params = [0.2, 0.2, 0.2, 0.0, -0.1, -0.3], [2, 4, 1, 5, 9, 5]
    assert rank(impact, [0.0] * 6, [1] * 6, params, params) == [4, 5, 3, 1, 0, 2]
    assert rank(impact, [0.0] * 6, params, [1] * 6, params) == [4, 5, 3, 1, 0, 2]
    assert rank(impact, [0.0] * 6, [1] * 6, params) == [5, 4, 3, 1, 0, 2]
    assert rank([0.2, 0.1], [0.0] * 2, [5, 0], [1] * 2, [5, 0]) == [0, 1]  # nothing saved: infinitely dear


def test_ties_broken_by_loss():
    order, tied, loss = [4, 2, 0, 1, 3], [True, False, True, False, True], [0.1, 0.0, 0.3, 0.0, 0.2]
    assert break_ties_by_loss(order, tied, loss) == [0, 4, 2, 1, 3]
    assert break_ties_by_loss(order, tied, [NAN, 0, 0.3, 0, 0.2]) == [4, 2, 0, 1, 3]


def test_kendalls_tau_is_scipys():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        a, b = torch.randint(4, (2, 12), generator=generator).tolist()  # with ties
        assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert kendall([1, 2, 3], [3, 2, 1]) == -1 and math.isnan(kendall([1, 1], [1, 2]))
