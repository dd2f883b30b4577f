import torch

from effvl_cli.techniques.prompt_tune.pseudo_labels import averaged, pseudo_labels

DRAW = torch.Generator().manual_seed(0)
LABELS = torch.tensor([0] * 10 + [1] * 3 + [2] * 20)  # predicted; class 3 never
PROBABILITIES = torch.rand(33, generator=DRAW) * 0.5 + 0.5
LOGITS = torch.full((33, 4), 0.0)
LOGITS[torch.arange(33), LABELS] = torch.log(3 * PROBABILITIES / (1 - PROBABILITIES))  # against three others


def chosen(select, num_select=5, tau=0.9, seed=0):
    return pseudo_labels(LOGITS, select, num_select, tau, torch.Generator().manual_seed(seed))


def test_topk_takes_the_surest_of_each_predicted_class():
    found = chosen("topk")
    assert found.per_class(4).tolist() == [5, 3, 5, 0]
    for label, rows in ((0, range(10)), (1, range(10, 13)), (2, range(13, 33))):
        surest = sorted(rows, key=lambda row: -PROBABILITIES[row])[:5]
        assert found.rows[found.labels == label].tolist() == sorted(surest)
    torch.testing.assert_close(found.confidence.float(), PROBABILITIES[found.rows])


def test_random_is_drawn_among_the_predicted():
    found, other = chosen("random"), chosen("random", seed=1)
    assert found.per_class(4).tolist() == [5, 3, 5, 0]
    assert torch.equal(found.labels, LABELS[found.rows]) and len(found.rows.unique()) == 13
    assert torch.equal(found.rows, chosen("random").rows) and not torch.equal(found.rows, other.rows)


def test_random_of_all():
    found = chosen("random-global", num_select=4)
    assert len(found.rows.unique()) == 16 and torch.equal(found.labels, LABELS[found.rows])
    assert len(chosen("random-global", num_select=16).rows) == 33


def test_threshold():
    found = chosen("threshold", tau=0.8)
    assert found.rows.tolist() == [row for row in range(33) if PROBABILITIES[row] > 0.8]
    assert 0 < len(found.rows) < 33


def test_logits_of_models_are_averaged_with_their_scales():
    first, second = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 20.0]])
    assert averaged([first, second]).tolist() == [[50.0, 10.0]]
