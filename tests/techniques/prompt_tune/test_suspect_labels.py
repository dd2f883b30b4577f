import pytest
import torch
from sklearn.metrics import roc_auc_score

from effvl_cli.techniques.prompt_tune.suspects import auroc, folds, out_of_sample, precision_at, suspects


def test_folds_spread_every_class():
    labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 3)[torch.randperm(20, generator=torch.Generator().manual_seed(3))]
    found = folds(labels, 5, torch.Generator().manual_seed(0))
    assert torch.bincount(found).tolist() == [4] * 5
    for label in range(3):
        counts = torch.bincount(found[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert torch.equal(found, folds(labels, 5, torch.Generator().manual_seed(0)))
    assert not torch.equal(found, folds(labels, 5, torch.Generator().manual_seed(1)))


def test_no_image_is_judged_by_what_saw_it():
    fold = torch.tensor([2, 0, 1, 0, 2, 1])
    seen = {}

    def fit(rows, number):
        seen[number] = set(rows.tolist())
        return lambda held: torch.stack([held.float(), torch.full((len(held),), float(number))], dim=1)

    logits = out_of_sample(fold, fit)
    assert seen == {0: {0, 2, 4, 5}, 1: {0, 1, 3, 4}, 2: {1, 2, 3, 5}}
    assert logits[:, 0].tolist() == [0, 1, 2, 3, 4, 5] and torch.equal(logits[:, 1], fold.double())


def test_ranking_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.05, 0.05, 0.9], [0.4, 0.4, 0.2]])
    found = suspects(p.log(), torch.tensor([0, 0, 1, 0]))
    expected = torch.tensor([0.2 / 0.7, 0.6 / 0.3, 0.9 / 0.05, 1.0]).log()
    torch.testing.assert_close(found.suspicion.float(), expected)
    assert found.order.tolist() == [2, 1, 3, 0]
    assert found.suggested.tolist() == [0, 1, 2, 0]
    torch.testing.assert_close(found.probability.float(), torch.tensor([0.7, 0.6, 0.9, 0.4]))
    torch.testing.assert_close(found.given_probability.float(), torch.tensor([0.7, 0.3, 0.05, 0.4]))


def test_saturated_probabilities_are_still_ranked():
    logits = torch.tensor([[300.0, 0.0], [500.0, 0.0]])
    assert suspects(logits, torch.tensor([1, 1])).order.tolist() == [1, 0]


def test_auroc_equals_that_of_scikit_learn():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(20, (200,), generator=draw).double()  # many ties
    positive = torch.rand(200, generator=draw) < 0.3
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([False, False, True])) == 1
    assert auroc(scores, torch.zeros(200, dtype=torch.bool)) is None


def test_precision():
    order, positive = torch.tensor([3, 1, 0, 2]), torch.tensor([False, True, True, True])
    assert precision_at(order, positive, 2) == 1 and precision_at(order, positive, 3) == pytest.approx(2 / 3)
    assert precision_at(order, positive, 0) is None
