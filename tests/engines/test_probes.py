"""Judges of features."""

import math

import pytest
import torch
import torch.nn.functional as F

from effvl_cli.core.feature_judges import knn, linear_probabilities, linear_probe
from effvl_cli.techniques.pretrain.heads import LinearHeads


def blobs(count, seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    centres = torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 0, 0]])
    return F.normalize(centres[labels] + torch.randn(count, 4, generator=g) * 0.5, dim=1), labels


def test_the_nearest_neighbour_of_a_known_picture_is_itself():
    bank, labels = blobs(300, 0)
    labels = torch.randperm(300, generator=torch.Generator().manual_seed(1)) % 7  # nothing but identity tells them
    assert torch.equal(knn(bank, labels, bank, (1,))[1], labels)


@pytest.mark.parametrize("asked", [1, 7, 500])
def test_two_blobs_are_told_apart_whatever_the_number_of_pictures(asked):
    bank, labels = blobs(400, 0)
    images, truth = blobs(asked, 1)
    for found in knn(bank, labels, images, (1, 20, 200)).values():
        assert found.shape == (asked,) and (found == truth).float().mean() > 0.99
    assert (linear_probe(bank, labels, images) == truth).float().mean() > 0.99


def test_votes_equal_a_slow_loop():
    g = torch.Generator().manual_seed(0)
    bank, asked = (F.normalize(torch.randn(n, 6, generator=g), dim=1) for n in (60, 25))
    labels = torch.randint(0, 4, (60,), generator=g)
    found = knn(bank, labels, asked, (5, 20))
    for count, classes in found.items():
        for row, given in zip(asked, classes, strict=True):
            similar = sorted(((float(row @ other), int(label)) for other, label in zip(bank, labels, strict=True)))
            votes = [0.0] * 4
            for similarity, label in similar[-count:]:
                votes[label] += math.exp(similarity / 0.07)
            assert max(range(4), key=votes.__getitem__) == int(given)


def test_more_voters_than_pictures_are_all_of_them():
    bank, labels = blobs(10, 0)
    images, truth = blobs(4, 1)
    assert torch.equal(knn(bank, labels, images, (200,))[200], truth)


def test_a_bank_of_one_class_knows_no_other():
    bank, _ = blobs(10, 0)
    assert linear_probe(bank, torch.full((10,), 3), bank[:2]).tolist() == [3, 3]


def test_probabilities_of_the_probe_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    bank, labels = blobs(200, 0)
    asked, _ = blobs(9, 1)
    labels = 2 + 3 * labels  # classes 2 and 5 of 7
    found = linear_probabilities(bank, labels, asked, 7)
    mean, spread = bank.double().mean(0), bank.double().std(0, correction=0)
    model = LogisticRegression(max_iter=1000, tol=1e-3).fit(((bank - mean) / spread).numpy(), labels.numpy())
    expected = torch.from_numpy(model.predict_proba(((asked - mean) / spread).numpy()))
    torch.testing.assert_close(found[:, [2, 5]], expected, atol=1e-6, rtol=1e-6)
    assert found.sum(1).allclose(torch.ones(9, dtype=torch.float64)) and not found[:, [0, 1, 3, 4, 6]].any()
    assert linear_probabilities(bank, labels, asked[:0], 7).shape == (0, 7)
    assert torch.equal(linear_probe(bank, labels, asked), found.argmax(1))


def test_linear_heads_do_not_meet():
    """The gradient of a head is that of its own loss."""
    heads = LinearHeads(2, 4, 3)
    features, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    torch.stack([F.cross_entropy(rows, labels) for rows in heads(features)]).sum().backward()
    together = heads.heads[1].weight.grad.clone()
    heads.zero_grad()
    F.cross_entropy(heads.heads[1](features), labels).backward()
    assert torch.allclose(together, heads.heads[1].weight.grad, atol=1e-7)
