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
BY_SPACE = {"logit": LOGITS, "prob": PROBS, "log": [[math.log(p) for p in row] for row in PROBS]}


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
    assert FeatureScorer().score(nothing, EMBEDDINGS[0], 0).tolist() == [0]
    assert ConfidenceScorer(**ABOUT).score(nothing, EMBEDDINGS[0], 0).tolist() == pytest.approx([math.log(0.5)])


def test_a_posterior_saturates_where_its_logarithm_does_not():
    """At tau = 100 two removals differ in the log-posterior and not in the posterior."""
    sharp = {"classifier": torch.eye(2), "tau": torch.tensor(100.0), "labels": torch.tensor([0])}
    close = torch.tensor([[1.0, 0.0], [1.0, 0.05]])
    assert LabelScorer(**sharp, space="prob").score(close, close[0], 0).tolist() == [1, 1]
    logs = LabelScorer(**sharp, space="logit").score(close, close[0], 0)
    assert logs[0] > logs[1]
