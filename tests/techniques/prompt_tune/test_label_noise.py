"""Models of label noise: exact counts, by hand."""

import pytest
import torch

from effvl_cli.techniques.prompt_tune import noise

K, S = 5, 16
LABELS = torch.arange(K).repeat(S)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def flips_by_class(given, labels=LABELS):
    return torch.bincount(labels[given != labels], minlength=K).tolist()


def test_expected_transitions():
    symmetric, pair = noise.symmetric_transition(K, 0.3), noise.pair_transition(K, 0.3)
    for matrix in (symmetric, pair):
        assert (matrix.sum(1) - 1).abs().max() < 1e-12
    assert symmetric[~torch.eye(K, dtype=bool)].unique().tolist() == [0.3 / 4] and symmetric[0, 0] == 0.7
    assert pair.nonzero().tolist() == sorted([[c, c] for c in range(K)] + [[c, (c + 1) % K] for c in range(K)])
    assert pair[4, 0] == 0.3 and pair[0, 0] == 0.7


@pytest.mark.parametrize(("rate", "count"), [(0.5, 8), (0.125, 2), (0.25, 4), (0.0, 0), (0.03, 0), (0.04, 1)])
@pytest.mark.parametrize("model", [noise.symmetric, noise.pair])
def test_flips_are_exact_in_every_class(model, rate, count):
    given = model(LABELS, K, rate, seeded())
    assert flips_by_class(given) == [count] * K
    assert given.min() >= 0 and given.max() < K
    realised = noise.transition_matrix(LABELS, given, K)
    assert (realised.sum(1) - 1).abs().max() < 1e-12
    if model is noise.pair:
        torch.testing.assert_close(realised, noise.pair_transition(K, count / S))


def test_a_higher_rate_keeps_the_flips_of_a_lower_one():
    logits = torch.randn(len(LABELS), K, generator=seeded(1))
    for model in (noise.symmetric, noise.pair, noise.global_symmetric, noise.global_pair):
        low, high = (model(LABELS, K, rate, seeded()) for rate in (0.25, 0.5))
        assert torch.equal(low[low != LABELS], high[low != LABELS])
    low, high = (noise.confusion(LABELS, logits, rate, seeded()) for rate in (0.25, 0.5))
    assert torch.equal(low[low != LABELS], high[low != LABELS])


def test_symmetric_labels_are_uniform_over_the_others():
    labels = torch.zeros(40_000, dtype=torch.long)
    given = noise.symmetric(labels, K, 0.5, seeded())
    counts = torch.bincount(given, minlength=K)
    assert counts[0] == 20_000 and (counts[1:] - 5000).abs().max() < 5 * 61  # five standard deviations


def test_global_noise_has_an_exact_total():
    for model in (noise.global_symmetric, noise.global_pair):
        given = model(LABELS, K, 0.29, seeded())
        assert (given != LABELS).sum() == 23  # floor(0.29 * 80)
        assert len(set(flips_by_class(given))) > 1
    assert (noise.global_symmetric(torch.zeros(100, dtype=torch.long), 2, 0.29, seeded()) == 1).sum() == 29
    given = noise.global_pair(LABELS, K, 0.5, seeded())
    changed = given != LABELS
    assert torch.equal(given[changed], (LABELS[changed] + 1) % K)


def test_confusion_takes_the_most_probable_wrong_class():
    logits = torch.randn(len(LABELS), K, generator=seeded(1))
    logits[torch.arange(len(LABELS)), LABELS] += 2
    given = noise.confusion(LABELS, logits, 0.5, seeded())
    assert flips_by_class(given) == [8] * K
    for row in (given != LABELS).nonzero()[:, 0].tolist():
        wrong = [c for c in range(K) if c != LABELS[row]]
        assert given[row] == max(wrong, key=lambda c: logits[row, c])


def test_confusion_of_the_hardest():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    p = torch.tensor(
        [[0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.9, 0.06, 0.04], [0.3, 0.2, 0.5], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]
    )
    given = noise.confusion(labels, p.log(), 0.5, seeded(), "hardest")
    assert given.tolist() == [0, 2, 0, 2, 0, 1]


def test_matrix_by_largest_remainder():
    assert noise.allocate(torch.tensor([0.5, 0.3, 0.2]), 10).tolist() == [5, 3, 2]
    assert noise.allocate(torch.tensor([0.25, 0.25, 0.5]), 5).tolist() == [1, 1, 3]  # 1.25, 1.25, 2.5
    assert noise.allocate(torch.tensor([0.25, 0.25, 0.5]), 3).tolist() == [1, 1, 1]  # .75, .75, 1.5
    assert noise.allocate(torch.full((3,), 1 / 3), 4).tolist() == [2, 1, 1]  # ties to the first
    matrix = torch.tensor([[0.8, 0.2], [0.45, 0.55]])
    labels = torch.tensor([0, 1] * 10)
    given = noise.by_matrix(labels, matrix, seeded())
    assert noise.transition_counts(labels, given, 2).tolist() == [[8, 2], [5, 5]]  # 4.5 and 5.5: the tie to the first


def test_pools_are_cut_at_the_upper_half():
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 0, 2])
    first, rest = noise.pools(labels, 4)
    assert first.tolist() == [0, 1, 2, 3, 7] and rest.tolist() == [4, 5, 6]


def test_false_positives_keep_quotas_and_use_no_image_twice():
    labels = torch.arange(K).repeat(40)
    first, donors = noise.pools(labels, K)
    shots = torch.cat([first[labels[first] == c][:S] for c in range(K)])
    found = {r: noise.false_positives(labels, shots, donors, K, r, seeded()) for r in (0, 0.125, 0.25, 0.5)}
    assert set(found[0][0].tolist()) == set(shots.tolist()) <= set(first.tolist())
    for rate, (positions, given) in found.items():
        assert torch.bincount(given, minlength=K).tolist() == [S] * K
        assert len(positions.unique()) == K * S
        replaced = torch.isin(positions, donors)
        assert torch.equal(replaced, labels[positions] != given)
        assert torch.bincount(given[replaced], minlength=K).tolist() == [round(rate * S)] * K
    for low, high in ((0, 0.125), (0.125, 0.25), (0.25, 0.5)):
        clean = [set(found[rate][0].tolist()) - set(donors.tolist()) for rate in (low, high)]
        assert clean[1] < clean[0]


def test_donors_are_weighted_by_class_size():
    labels = torch.cat([torch.zeros(2000), torch.ones(1000), torch.full((3000,), 2)]).long()
    clean = torch.arange(1000)  # of class 0
    positions, given = noise.false_positives(labels, clean, torch.arange(1000, 6000), 3, 0.4, seeded())
    of_two = (labels[positions[given != labels[positions]]] == 2).sum().item()
    assert abs(of_two - 300) < 5 * 8.2  # 400 draws of 1,000 and 3,000 images, without replacement


def test_too_few_donors():
    labels = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="class 0 needs 2 images of other classes, and 1 are left"):
        noise.false_positives(labels, torch.tensor([0, 1]), torch.tensor([3]), 2, 0.9, seeded())


def test_transition_of_a_class_without_images():
    labels, given = torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2])
    assert noise.transition_matrix(labels, given, 3).tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 0, 1]]
