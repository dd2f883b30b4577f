import math

import pytest
import torch

from effvl_cli.techniques.prune_tokens.scorers import ConfidenceScorer, FeatureScorer, LabelScorer

# Classes along the axes of the plane, tau 2: an embedding at angle a has logits 2 cos a and 2 sin a.
ABOUT = {"classifier": torch.eye(2), "tau": torch.tensor(2.0)}
ANGLES = [0.0, math.pi / 3]
EMBEDDINGS = torch.tensor([[3 * math.cos(a), 3 * math.sin(a)] for a in ANGLES])
LOGITS = [[2 * math.cos(a), 2 * math.sin(a)] for a in ANGLES]
PROBS = [[math.exp(x) / (math.exp(x) + math.exp(y)) for x, y in ((a, b), (b, a))] for a, b in LOGITS]
BY_SPACE = {
    "logit": LOGITS,
    "prob": [[p - 1 for p in row] for row in PROBS],
    "log": [[math.log(p) for p in row] for row in PROBS],
}


@pytest.mark.parametrize("space", BY_SPACE)
def test_the_label_of_the_sample_counts(space):
    scorer = LabelScorer(**ABOUT, space=space, labels=torch.tensor([1, 0]))
    for sample, label in enumerate((1, 0)):
        expected = [row[label] for row in BY_SPACE[space]]
        assert scorer.score(EMBEDDINGS, EMBEDDINGS[0], sample).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("space", BY_SPACE)
def test_the_largest_class_of_each_candidate_or_of_the_first(space):
    values = BY_SPACE[space]
    each = ConfidenceScorer(**ABOUT, space=space).score(EMBEDDINGS, EMBEDDINGS[0], 0)
    assert each.tolist() == pytest.approx([values[0][0], values[1][1]], abs=1e-6)
    first = ConfidenceScorer(**ABOUT, space=space, anchor_first=True).score(EMBEDDINGS, EMBEDDINGS[0], 0)
    assert first.tolist() == pytest.approx([values[0][0], values[1][0]], abs=1e-6)


def test_no_direction_is_the_worst_for_features_and_says_nothing_of_classes():
    nothing = torch.zeros(1, 2)
    assert FeatureScorer().score(nothing, EMBEDDINGS[0], 0).tolist() == [-1]
    assert ConfidenceScorer(**ABOUT).score(nothing, EMBEDDINGS[0], 0).tolist() == pytest.approx([math.log(0.5)])


def test_the_cosine_keeps_its_digits_near_one():
    """Angles from 1e-2 to 1e-6 from the reference: 1 - cos from 5e-5 to 5e-13, of which float32 keeps none."""
    angles = [10.0**-power for power in range(2, 7)]
    turned = torch.tensor([[1.0, angle] for angle in angles])
    scores = FeatureScorer().score(turned, torch.tensor([3.0, 0.0]), 0)
    expected = [math.cos(math.atan(float(row[1]))) - 1 for row in turned[:3]]
    assert scores[:3].tolist() == pytest.approx(expected, rel=1e-6)
    assert scores.tolist() == pytest.approx([-(angle**2) / 2 for angle in angles], rel=1e-3)


@pytest.mark.parametrize("space", ["log", "prob"])
def test_a_posterior_near_one_keeps_its_digits(space):
    """At tau = 100 the other class has e^-100 to e^-95 of the mass, which 1 minus it cannot show, even in float64."""
    sharp = {"classifier": torch.eye(2), "tau": torch.tensor(100.0)}
    close = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.05]])
    lacking = []
    for x, y in close.double().tolist():
        lacking.append(math.exp(100 * (y - x) / math.hypot(x, y)))
    for scorer in (LabelScorer(**sharp, labels=torch.tensor([0]), space=space), ConfidenceScorer(**sharp, space=space)):
        scores = scorer.score(close, close[0], 0)
        assert scores.tolist() == pytest.approx([-share for share in lacking], rel=1e-9, abs=0)
