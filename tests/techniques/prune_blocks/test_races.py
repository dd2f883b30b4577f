import math

import pytest
import torch

from effvl_cli.techniques.prune_blocks.racing import (
    Race,
    bernstein_radius,
    bound,
    halve,
    halving_rounds,
    stratified_order,
)
from effvl_cli.techniques.prune_blocks.statistics import impacts, rank

EVERYONE = list(range(8))


def _scores(images, seed=0, harm=(0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.05, 0.15)):
    """Correctness and losses of a network that is right on 80 % of the images, and without each of 8 units."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(images, generator=generator) < 0.8
    rows = [first] + [torch.where(torch.rand(images, generator=generator) < h, ~first, first) for h in harm]
    correct = torch.stack(rows)
    return correct, torch.where(correct, 0.3, 7.0) + 0.1 * torch.rand(correct.shape, generator=generator)


def _best_first(correct, loss, metric):
    both = impacts(correct, loss)
    nothing = [0] * (len(correct) - 1)
    return rank(*(both if metric == "top1" else both[::-1]), nothing, nothing)


def _halving(correct, loss, metric, rounds):
    """Candidates that are left, and the images that each has seen."""
    active, used = EVERYONE, [correct.shape[1]] * 8
    for count in rounds:
        rows = torch.tensor([0, *(1 + k for k in active)])
        kept = [active[k] for k in halve(_best_first(correct[rows, :count], loss[rows, :count], metric))]
        for k in set(active) - set(kept):
            used[k] = count
        active = kept
    return active, used


def _bounding(values, span):
    """Candidates that are left, dropped ones never to come back."""
    checks = range(256, values.shape[1], 256)
    active = EVERYONE
    for count in checks:
        kept = bound(values[active, :count], span=span, candidates=8, checks=len(checks))
        active = [active[k] for k in kept]
    return active


def test_every_beginning_of_the_order_is_balanced():
    labels = torch.arange(10).repeat_interleave(torch.arange(1, 11) * 10)
    order, again, other = (stratified_order(labels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert sorted(order.tolist()) == list(range(550))
    for count in (55, 110, 300):
        found = labels[order[:count]].bincount(minlength=10) / count
        assert (found - torch.arange(1, 11) / 55).abs().max() < 1 / count + 1e-6
    assert torch.equal(order, again) and not torch.equal(order, other)


def test_rounds_double():
    assert halving_rounds(5000) == [512, 1024, 2048, 4096]
    assert halving_rounds(512) == [] and halving_rounds(513) == [512]
    assert halving_rounds(1000, first=1000) == []


def test_halving_keeps_the_better_half_and_one_more_than_needed():
    assert halve([4, 1, 3, 0, 2]) == [1, 3, 4]
    assert halve([1, 0]) == [0, 1] and halve([0]) == [0]
    assert halve([5, 4, 3, 2, 1, 0], picks=4) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_halving_on_stored_scores(metric):
    correct, loss = _scores(4000)
    active, used = _halving(correct, loss, metric, halving_rounds(4000))
    assert sorted(used) == [512] * 4 + [1024] * 2 + [4000] * 2
    assert _best_first(correct, loss, metric)[0] in active


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_halving_that_starts_with_all_images_is_exact(metric):
    correct, loss = _scores(700)
    active, used = _halving(correct, loss, metric, halving_rounds(700, first=700))
    assert active == EVERYONE and used == [700] * 8


def test_the_radius_is_the_empirical_bernstein_bound():
    found = bernstein_radius(torch.tensor(0.25), 100, 2.0, 0.05)
    assert float(found) == pytest.approx(math.sqrt(2 * 0.25 * math.log(40) / 100) + 14 * math.log(40) / 297)


def test_bounds_pair_by_pair():
    values = torch.rand(4, 60, generator=torch.Generator().manual_seed(0)).double()
    values += torch.tensor([0.0, 0.3, 2.5, 2.6]).double()[:, None]
    surely_better = [
        sum(bool((a - b).mean() > bernstein_radius((a - b).var(), 60, 2.0, 0.05 / (6 * 5 * 3))) for b in values)
        for a in values
    ]
    assert surely_better == [0, 0, 2, 2]
    assert bound(values, span=2.0, candidates=6, checks=3) == [0, 1]
    assert bound(values, span=2.0, candidates=6, checks=3, picks=3) == [0, 1, 2, 3]
    assert bound(values[:1], span=2.0, candidates=6, checks=3) == [0]


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_the_bound_rarely_drops_the_best_of_the_population(metric):
    """delta 0.05: at most 10 of 200 draws; and it does drop others."""
    lost, dropped = 0, 0
    for seed in range(200):
        correct, loss = _scores(1280, seed)
        active = _bounding(~correct[1:], 2.0) if metric == "top1" else _bounding(loss[1:].clamp(max=8.0), 16.0)
        lost += 0 not in active
        dropped += 8 - len(active)
    assert lost <= 10 and dropped >= 200


def test_nan_losses_are_as_bad_as_can_be():
    _, loss = _scores(2560)
    loss[3] = math.nan
    active = _bounding(loss[1:].clamp(max=8.0), 16.0)
    assert 2 not in active and 0 in active


def _race(kind, metric="top1", images=2048, picks=1):
    labels = torch.arange(images) % 4
    made = []

    def generator():
        made.append(torch.Generator().manual_seed(0))
        return made[-1]

    race = Race(kind, metric, labels, candidates=8, picks=picks, clip=5.0, generator=generator)
    return race, made


def test_without_a_race_all_stay_in_the_order_of_the_split_and_nothing_is_drawn():
    race, made = _race("none")
    race.advance(*_scores(2048), 2048)
    assert race.active == EVERYONE
    assert race.order.tolist() == list(range(2048))
    assert not made


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_halving_drops_at_its_counts_and_takes_up_where_it_was(metric):
    correct, loss = _scores(2048)
    active, _ = _halving(correct, loss, metric, halving_rounds(2048))
    whole, _ = _race("halving", metric)
    resumed, _ = _race("halving", metric)
    for seen in (256, 512, 1024, 2048):
        assert whole.is_due(seen) == (seen in (512, 1024))
        whole.advance(correct, loss, seen)
        if seen == 512:
            resumed.resume(whole.active, seen)
        elif seen > 512:
            resumed.advance(correct, loss, seen)
    assert whole.active == resumed.active == active
    assert len(active) < 8
