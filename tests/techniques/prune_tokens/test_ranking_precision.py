"""Rankings in float32 against the same search of the same tower in float64, where damages are small."""

import copy

import pytest
import torch
from torch.nn.functional import normalize

from effvl_cli.models.network import load
from effvl_cli.models.openclip_tower import tower_of
from effvl_cli.techniques.prune_tokens.predictor import dropped_overlap, kendall_tau
from effvl_cli.techniques.prune_tokens.ranking import golden_ranking, token_damage
from effvl_cli.techniques.prune_tokens.scorers import ConfidenceScorer, FeatureScorer, LabelScorer

COUNT = 4
TOWERS = ("tiny:clip", "random")


@pytest.fixture(scope="module")
def tiny():
    return tower_of(load("tiny:clip", None, default="tiny:clip", kind="clip").module.eval(), "tiny:clip")


@pytest.fixture
def pair(request, tiny, make_tower):
    """A tower, and the same one in float64."""
    tower = tiny if request.param == "tiny:clip" else make_tower(3, grid=6, depth=4)
    exact = copy.deepcopy(tower)
    exact.module.double()
    return tower, exact


def _smooth(tower):
    """(COUNT, 3, H, W): colours that change little from patch to patch, so that most of them are hardly missed."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(COUNT, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, tower.image_size, mode="bicubic")


def _class_scorers(tower):
    """Each image is alike to its own class alone, by a scaled cosine of at least 15, as a trained CLIP has it."""
    with torch.no_grad():
        dense = normalize(tower.module(_smooth(tower)), dim=1)
    classes = normalize(torch.linalg.pinv(dense), dim=0)
    about = {"classifier": classes, "tau": 15 / (dense @ classes).diag().min()}
    labels = torch.arange(COUNT)
    return {
        "label": LabelScorer(**about, labels=labels),
        "prob": LabelScorer(**about, labels=labels, space="prob"),
        "maxconf": ConfidenceScorer(**about),
    }


def _agreement(found, exact):
    """Worst rank correlation of an image, and the smallest share of its dropped patches that is right."""
    kept = exact.rank.shape[1] * 6 // 10
    overlap = dropped_overlap(found.rank.float(), exact.rank, kept)
    return float(kendall_tau(found.rank.float(), exact.rank).min()), float(overlap.min())


def _embeddings(exact, images, layer):
    """Unit embeddings (COUNT, E) with all patches and (COUNT, N, E) without each, by index lists, in float64."""
    with torch.no_grad():
        states = exact.embed(images)
        for index in range(layer):
            states = exact.block(index, states)
        whole, num_prefix = states, exact.num_prefix
        rows = range(states.shape[1])
        without = [states[:, [r for r in rows if r != num_prefix + p]] for p in range(states.shape[1] - num_prefix)]
        for index in range(layer, exact.depth):
            whole = exact.block(index, whole)
            without = [exact.block(index, rest) for rest in without]
        embeddings = torch.stack([exact.pool(rest) for rest in without], 1)
        return normalize(exact.pool(whole), dim=-1), normalize(embeddings, dim=-1)


def _check_one_shot(found, damages, *, tau, overlap):
    rank = damages.argsort(1).argsort(1)
    assert float(kendall_tau(found.rank.float(), rank).min()) > tau
    kept = rank.shape[1] * 6 // 10
    assert float(dropped_overlap(found.rank.float(), rank, kept).min()) > overlap


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("pair", TOWERS, indirect=True)
def test_one_shot_orders_patches_by_their_damage_in_float64(pair, layer):
    tower, exact = pair
    images = _smooth(tower)
    whole, without = _embeddings(exact, images.double(), layer)
    damages = 1 - (without * whole[:, None]).sum(2)
    found = golden_ranking(tower, images, layer=layer, group=0)
    _check_one_shot(found, damages, tau=0.99, overlap=0.95)
    assert torch.allclose(-found.removal_score.double(), damages, rtol=0.05, atol=1e-9)


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("pair", TOWERS, indirect=True)
def test_windows_of_unequal_sizes_agree_too(pair, layer):
    """Where the score with nothing removed does not cancel out."""
    tower, exact = pair
    images = _smooth(tower)
    options = {"layer": layer, "block": 2, "group": 12, "rank_until": 0.6}
    tau, overlap = _agreement(
        golden_ranking(tower, images, **options), golden_ranking(exact, images.double(), **options)
    )
    assert tau > 0.97 and overlap > 0.9


@pytest.mark.parametrize("name", ["label", "prob", "maxconf"])
@pytest.mark.parametrize("pair", TOWERS, indirect=True)
def test_one_shot_orders_patches_by_what_the_posterior_loses_in_float64(pair, name):
    tower, exact = pair
    images = _smooth(tower)
    scorer = _class_scorers(tower)[name]
    _, without = _embeddings(exact, images.double(), 1)
    logits = scorer.tau.double() * without @ scorer.classifier.double()
    own = logits.diagonal(dim1=0, dim2=2).T[:, :, None]
    odds = (logits - own).masked_fill(torch.eye(COUNT, dtype=torch.bool)[:, None], -torch.inf).exp().sum(2)
    assert float(odds.median(1).values.max()) < 1e-5
    _check_one_shot(golden_ranking(tower, images, layer=1, group=0, scorer=scorer), odds, tau=0.97, overlap=0.9)


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("pair", TOWERS, indirect=True)
def test_estimates_by_gradients_agree_too(pair, layer):
    tower, exact = pair
    images = _smooth(tower)
    options = {"layer": layer, "group": 0, "taylor": True}
    tau, overlap = _agreement(
        golden_ranking(tower, images, **options), golden_ranking(exact, images.double(), **options)
    )
    assert tau > 0.97 and overlap > 0.9


def test_damages_below_the_resolution_of_one_are_told_apart():
    removed = torch.eye(3, dtype=torch.bool)
    scores = FeatureScorer().score(torch.tensor([[1.0, 3e-5], [1.0, 1e-5], [1.0, 2e-5]]), torch.tensor([1.0, 0.0]), 0)
    assert token_damage(removed, scores, 0.0).argsort().tolist() == [1, 2, 0]
