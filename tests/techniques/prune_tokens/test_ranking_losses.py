import math

import pytest
import torch

from effvl_cli.techniques.prune_tokens.losses import (
    keepset_loss,
    listwise_loss,
    mse_loss,
    pairwise_loss,
    random_pairs,
)


def test_listwise_loss_by_hand():
    rank = torch.tensor([[0, 1], [1, 0]])
    low, high = 1 / (1 + math.e**2), 1 / (1 + math.e**-2)  # softmax(0, 4/2)
    scores = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    by_hand = (-low * math.log(1 / 4) - high * math.log(3 / 4) + math.log(2)) / 2
    assert listwise_loss(scores, rank).item() == pytest.approx(by_hand, abs=1e-6)


def test_listwise_loss_is_least_at_its_target():
    rank = torch.randperm(9)[None]
    best = (4 * rank / 9).float().requires_grad_()
    loss = listwise_loss(best, rank.to(torch.int16))
    loss.backward()
    assert best.grad.abs().max() <= 1e-7
    entropy = -(best.softmax(1) * best.log_softmax(1)).sum()
    assert loss.item() == pytest.approx(entropy.item(), abs=1e-6)


def test_keepset_loss_of_constant_scores_and_of_scores_that_know_the_set():
    rank = torch.randperm(196, generator=torch.Generator().manual_seed(0))[None].to(torch.int16)
    assert keepset_loss(torch.full((1, 196), 7.0), rank, (118,)).item() == pytest.approx(5.278115, abs=1e-6)  # ln 196
    knows = torch.where(rank >= 196 - 118, 0.0, -30.0)
    assert keepset_loss(knows, rank, (118,)).item() == pytest.approx(4.770685, abs=1e-6)  # ln 118


def test_keepset_gradient_is_softmax_minus_the_uniform_distribution_on_the_set():
    rank = torch.tensor([[3, 0, 2, 1]])
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.1]], requires_grad=True)
    keepset_loss(scores, rank, (2,)).backward()
    target = torch.tensor([[0.5, 0, 0.5, 0]])
    assert torch.allclose(scores.grad, scores.detach().softmax(1) - target, atol=1e-6)


def test_keepset_averages_over_budgets_and_images():
    rank = torch.tensor([[3, 0, 2, 1], [0, 1, 2, 3]])
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.1], [0.0, 1.0, 0.0, 1.0]])
    single = [keepset_loss(scores[i : i + 1], rank[i : i + 1], (k,)).item() for i in (0, 1) for k in (1, 3)]
    assert keepset_loss(scores, rank, (1, 3)).item() == pytest.approx(sum(single) / 4, abs=1e-6)


def test_keepset_is_the_official_loss_but_for_a_constant():
    """The official target: softmax of 0 for the best and -5 - position / 10 for the last 50, here of 60 patches."""
    rank = torch.arange(60)[None]
    position = (49 - rank).clamp(min=0)  # of the last 50, the least important one last
    target = torch.where(rank >= 50, 100.0, -5 - 0.1 * position).softmax(1)
    for seed in (0, 1):
        scores = torch.randn(1, 60, generator=torch.Generator().manual_seed(seed))
        divergence = torch.nn.functional.kl_div(scores.log_softmax(1), target, reduction="batchmean")
        assert keepset_loss(scores, rank, (10,)).item() - divergence.item() == pytest.approx(math.log(10), abs=1e-5)


def test_pairwise_loss_by_hand():
    scores = torch.tensor([[0.0, 1.0, 3.0]])
    rank = torch.tensor([[0, 2, 1]], dtype=torch.int16)
    first, second = torch.tensor([0, 1]), torch.tensor([1, 2])
    # patch 1 is above patch 0, and rightly 1 more; patch 1 is above patch 2, and wrongly 2 less
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert pairwise_loss(scores, rank, first, second).item() == pytest.approx(expected, abs=1e-6)
    assert pairwise_loss(scores, rank, second, first).item() == pytest.approx(expected, abs=1e-6)


def test_pairs_are_of_different_patches_and_all_of_them_come():
    first, second = random_pairs(5, torch.Generator().manual_seed(0), 500)
    assert (first != second).all() and len(first) == 500
    assert {tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)} == {
        (a, b) for a in range(5) for b in range(a + 1, 5)
    }
    again = random_pairs(5, torch.Generator().manual_seed(0), 500)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])


def test_mse_loss_by_hand():
    rank = torch.tensor([[2, 0, 1]], dtype=torch.int16)  # targets 1, 0, 1/2
    assert mse_loss(torch.tensor([[1.0, 0.5, 0.0]]), rank).item() == pytest.approx((0 + 0.25 + 0.25) / 3, abs=1e-7)
