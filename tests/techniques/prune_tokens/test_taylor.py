"""Estimated removal scores against finite differences through open_clip's own modules, in double precision."""

import pytest
import torch
import torch.nn.functional as F

from effvl_cli.techniques.prune_tokens import taylor as module
from effvl_cli.techniques.prune_tokens.predictor import kendall_tau
from effvl_cli.techniques.prune_tokens.ranking import golden_ranking
from effvl_cli.techniques.prune_tokens.scorers import ConfidenceScorer, FeatureScorer, LabelScorer
from effvl_cli.techniques.prune_tokens.taylor import taylor_scores

ABOUT = {
    "classifier": F.normalize(torch.randn(16, 5, generator=torch.Generator().manual_seed(1)).double(), dim=0),
    "tau": torch.tensor(20.0, dtype=torch.float64),
}


@pytest.fixture
def case(make_tower, images):
    """A tower in double precision, its states before block 1, and a function of additive attention biases."""
    tower = make_tower(3, width=16)
    tower.module.double()
    image = images(tower, 1).double()
    with torch.no_grad():
        states = tower.block(0, tower.embed(image))

    def embedding(bias, rows=states):
        mask = F.pad(bias, (1, 0)).expand(rows.shape[1], -1)
        with torch.no_grad():
            for index in (1, 2):
                rows = tower.module.transformer.resblocks[index](rows, attn_mask=mask)
            return tower.pool(rows)[0]

    return tower, states, embedding


def _slopes(function, count, step=1e-5):
    """(count, ...) derivatives by central differences."""
    rows = []
    for patch in range(count):
        bias = torch.zeros(count, dtype=torch.float64)
        bias[patch] = step
        rows.append((function(bias) - function(-bias)) / (2 * step))
    return torch.stack(rows)


@pytest.mark.parametrize("scorer", [LabelScorer(**ABOUT, labels=torch.tensor([2])), ConfidenceScorer(**ABOUT)])
def test_class_scores_to_the_first_order(case, scorer):
    tower, states, embedding = case
    dense = embedding(torch.zeros(16, dtype=torch.float64))
    slopes = _slopes(lambda bias: scorer.score(embedding(bias)[None], dense, 0)[0], 16)
    estimates, now = taylor_scores(tower, states, 1, scorer, dense, 0)
    assert torch.allclose(now, scorer.score(dense[None], dense, 0)[0], atol=1e-12)
    assert torch.allclose(estimates, now - slopes, atol=1e-7)
    assert slopes.abs().max() > 1e-3


def test_the_cosine_to_the_second_order(case):
    tower, states, embedding = case
    dense = embedding(torch.zeros(16, dtype=torch.float64))
    jacobian = _slopes(lambda bias: F.normalize(embedding(bias), dim=0), 16)
    estimates, now = taylor_scores(tower, states, 1, FeatureScorer(), dense, 0, probes=16)
    assert torch.allclose(now, torch.zeros_like(now), atol=1e-14)
    assert torch.allclose(estimates, -jacobian.square().sum(1) / 2, atol=1e-9)
    assert (-estimates).min() > 1e-6


def test_where_patches_are_gone_already_both_orders_count(case):
    tower, states, embedding = case
    dense = embedding(torch.zeros(16, dtype=torch.float64))
    left = states[:, :9]
    jacobian = _slopes(lambda bias: F.normalize(embedding(bias, left), dim=0), 8)
    here, target = F.normalize(embedding(torch.zeros(8, dtype=torch.float64), left), dim=0), F.normalize(dense, dim=0)
    estimates, now = taylor_scores(tower, left, 1, FeatureScorer(), dense, 0, probes=16)
    expected = here @ target - 1 - jacobian @ target - jacobian.square().sum(1) / 2
    assert torch.allclose(estimates, expected, atol=1e-9) and float(now) == pytest.approx(float(here @ target) - 1)


def test_a_closed_gate_is_a_removal(case):
    """What the gates stand for: minus infinity on a patch's logits gives the embedding without it."""
    _, states, embedding = case
    bias = torch.zeros(16, dtype=torch.float64)
    bias[4] = -torch.inf
    rest = [row for row in range(17) if row != 5]
    assert torch.allclose(embedding(bias), embedding(torch.zeros(15, dtype=torch.float64), states[:, rest]), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_estimates_order_patches_as_evaluation_does(make_tower, images, seed):
    tower = make_tower(seed)  # 16 dimensions, as many as there are probes
    batch = images(tower, 4)
    exact = golden_ranking(tower, batch, layer=1, group=0)
    estimated = golden_ranking(tower, batch, layer=1, group=0, taylor=True)
    assert kendall_tau(-estimated.removal_score, exact.rank).mean() > 0.9


def test_probes_have_the_squared_length_as_mean():
    probes = module._probes(64, 16)
    assert torch.allclose(probes @ probes.T, 4 * torch.eye(16), atol=1e-5)  # 64 / 16
    assert torch.equal(probes, module._probes(64, 16))
    assert torch.equal(module._probes(8, 16), torch.eye(8))


@pytest.mark.parametrize(
    "options",
    [{"pool_type": "avg"}, {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}],
)
def test_towers_that_pool_patches_are_refused(make_tower, images, options):
    tower = make_tower(**options)
    with pytest.raises(ValueError, match="CLS"):
        golden_ranking(tower, images(tower, 1), layer=1, group=0, taylor=True)
