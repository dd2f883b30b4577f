import itertools
import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from effvl_cli.techniques.prune_tokens.candidates import CandidateRunner, auto_candidate_tokens
from effvl_cli.techniques.prune_tokens.ranking import (
    Ranking,
    alive_until,
    golden_ranking,
    mirrored,
    removal_windows,
    token_damage,
)
from effvl_cli.techniques.prune_tokens.scorers import ConfidenceScorer, FeatureScorer, LabelScorer
from effvl_cli.techniques.prune_tokens.taylor import taylor_scores
from effvl_cli.techniques.prune_tokens.tower import NonFiniteError


def _same(a: Ranking, b: Ranking) -> bool:
    names = ("rank", "removal_score", "round", "passes", "dense")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_orthonormal_directions_go_by_weight(sum_tower):
    weights = torch.tensor([3.0, 1, 2, 4])
    tower = sum_tower(2, 2, 4)
    result = golden_ranking(tower, torch.diag(weights)[None], layer=0, group=1, rank_until=0.25)
    order = result.rank[0].argsort()
    assert order.tolist() == [1, 2, 0, 3]
    scores = result.removal_score[0, order[:3]]
    assert torch.allclose(1 + scores, torch.tensor([29 / 30, 25 / 30, 16 / 30]).sqrt(), atol=1e-6)
    assert result.round[0].tolist() == [2, 0, 1, 3]
    for size in (1, 2, 3):  # greedy is optimal here: the weakest directions are the least missed
        best = min(itertools.combinations(range(4), size), key=lambda out: sum(weights[list(out)] ** 2))
        assert set(best) == set(order[:size].tolist())


def test_ties_go_to_the_lower_id_and_no_direction_scores_zero(sum_tower):
    states = torch.tensor([[[2.0, 0], [0, 1], [0, -1]]])
    result = golden_ranking(sum_tower(1, 3, 2), states, layer=0, group=1, rank_until=0.1)
    assert result.rank[0].tolist() == [2, 0, 1]
    assert result.removal_score[0, 1] == pytest.approx(2 / math.sqrt(5) - 1, abs=1e-6)  # 0.894427
    assert result.removal_score[0, 2] == pytest.approx(0, abs=1e-6)
    one_shot = golden_ranking(sum_tower(1, 3, 2), states, layer=0, group=0)
    assert one_shot.removal_score[0, 0] == -1
    assert one_shot.round[0].tolist() == [0, 0, 0]


def _cosine(embedding, reference):
    return float(cosine_similarity(embedding.double(), reference.double(), dim=0)) - 1


def _brute_force(tower, image, layer, side, stride, group, until, judge=_cosine, project=True):
    """Backward elimination with index lists, one candidate at a time, through open_clip's own modules."""
    visual = tower.module
    rows, columns = tower.grid
    blocks = visual.transformer.resblocks

    def embedding(kept):
        states = visual._embeds(image[None])
        for block in blocks[:layer]:
            states = block(states)
        states = states[:, [0] + [1 + patch for patch in kept]]
        for block in blocks[layer:]:
            states = block(states)
        cls = visual.ln_post(states)[0, 0]
        return cls @ visual.proj if project else cls

    tops = sorted({*range(0, rows - side + 1, stride), rows - side})
    lefts = sorted({*range(0, columns - side + 1, stride), columns - side})
    windows = [
        {(top + i) * columns + left + j for i in range(side) for j in range(side)} for top in tops for left in lefts
    ]
    alive = list(range(rows * columns))
    reference = embedding(alive)

    def similarity(kept):
        return judge(embedding(kept), reference)

    def scored():
        candidates = {frozenset(window & set(alive)) for window in windows} - {frozenset()}
        now = similarity(alive)
        scores = {c: similarity([a for a in alive if a not in c]) for c in candidates}
        damage, score = {}, {}
        for patch in alive:
            mine = [c for c in candidates if patch in c]
            damage[patch] = sum((now - scores[c]) / len(c) for c in mine) / len(mine)
            score[patch] = sum(scores[c] for c in mine) / len(mine)
        return sorted(alive, key=lambda patch: (damage[patch], patch)), score

    order, removal = [], {}
    while len(alive) > until:
        ranked, score = scored()
        for patch in ranked[: min(group, len(alive) - until)]:
            order.append(patch)
            removal[patch] = score[patch]
            alive.remove(patch)
    ranked, score = scored()
    removal.update({patch: score[patch] for patch in alive})
    return order + ranked, [removal[patch] for patch in range(rows * columns)]


CLASSES, TAU, LABEL = 5, 20.0, 3


def _class_weights():
    return torch.nn.functional.normalize(torch.randn(16, CLASSES, generator=torch.Generator().manual_seed(1)), dim=0)


def _logits(embedding):
    weights = _class_weights()
    length = math.sqrt(sum(float(x) ** 2 for x in embedding))
    return [TAU * float(embedding @ weights[:, c]) / length for c in range(CLASSES)]


def _log_posteriors(embedding):
    logits = _logits(embedding)
    top = max(logits)
    total = math.log(sum(math.exp(x - top) for x in logits)) + top
    return [x - total for x in logits]


ABOUT = {"classifier": _class_weights(), "tau": torch.tensor(TAU)}
SCORERS = {
    "feature": (FeatureScorer(), _cosine),
    "label": (LabelScorer(**ABOUT, labels=torch.tensor([LABEL])), lambda e, _: _log_posteriors(e)[LABEL]),
    "label, prob": (
        LabelScorer(**ABOUT, labels=torch.tensor([LABEL]), space="prob"),
        lambda e, _: math.expm1(_log_posteriors(e)[LABEL]),
    ),
    "maxconf": (ConfidenceScorer(**ABOUT), lambda e, _: max(_log_posteriors(e))),
    "maxconf, logit": (ConfidenceScorer(**ABOUT, space="logit"), lambda e, _: max(_logits(e))),
}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", SCORERS)
def test_equals_brute_force_with_single_patches(make_tower, images, seed, name):
    tower = make_tower(seed, grid=2, width=8, depth=2)
    image = images(tower, 1, seed)
    scorer, judge = SCORERS[name]
    with torch.no_grad():
        order, scores = _brute_force(tower, image[0], layer=1, side=1, stride=1, group=1, until=2, judge=judge)
    result = golden_ranking(tower, image, layer=1, scorer=scorer, group=1, rank_until=0.5)
    assert result.rank[0].argsort().tolist() == order
    assert torch.allclose(result.removal_score[0], torch.tensor(scores), atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", SCORERS)
def test_equals_brute_force_with_windows(make_tower, images, seed, layer, name):
    tower = make_tower(seed, grid=3, width=8, depth=2)
    image = images(tower, 1, seed)
    scorer, judge = SCORERS[name]
    with torch.no_grad():
        order, scores = _brute_force(tower, image[0], layer=layer, side=2, stride=1, group=2, until=3, judge=judge)
    result = golden_ranking(tower, image, layer=layer, scorer=scorer, block=2, group=2, rank_until=0.3)
    assert result.rank[0].argsort().tolist() == order
    assert torch.allclose(result.removal_score[0], torch.tensor(scores), atol=2e-6)


def test_before_the_projection_the_cosine_is_another(make_tower, images):
    tower = make_tower(2, grid=3, width=8, depth=2)
    image = images(tower, 1)
    with torch.no_grad():
        order, scores = _brute_force(tower, image[0], 0, side=2, stride=1, group=2, until=3, project=False)
    options = {"layer": 0, "block": 2, "group": 2, "rank_until": 0.3}
    result = golden_ranking(tower, image, pool=tower.pooled, **options)
    assert result.rank[0].argsort().tolist() == order and result.dense.shape == (1, 8)
    assert torch.allclose(result.removal_score[0], torch.tensor(scores), atol=1e-6)
    assert not torch.allclose(golden_ranking(tower, image, **options).removal_score[0], torch.tensor(scores), atol=1e-5)


def test_the_anchor_is_the_class_of_the_first_candidate_of_each_round(make_tower, images):
    tower = make_tower(1, grid=3, width=8, depth=2)
    image = images(tower, 1, 1)
    seen = []

    class Spy(ConfidenceScorer):
        def score(self, embeddings, reference, sample):
            scores = super().score(embeddings, reference, sample)
            seen.append((embeddings, scores))
            return scores

    golden_ranking(tower, image, layer=0, block=2, group=3, scorer=Spy(**ABOUT, anchor_first=True, space="logit"))
    assert len(seen) == 3  # 9, 6 and 3 alive
    with torch.no_grad():
        states = tower.embed(image)[:, [0, 3, 6, 7, 8, 9]]  # without window {0, 1, 3, 4}: patches 2, 5, 6, 7, 8
        first = tower.pool(tower.block(1, tower.block(0, states)))[0]
    assert torch.allclose(seen[0][0][0], first, atol=1e-5)
    for embeddings, scores in seen:
        anchor = max(range(CLASSES), key=lambda c: _logits(embeddings[0])[c])
        assert scores.tolist() == pytest.approx([_logits(e)[anchor] for e in embeddings], abs=1e-4)


def test_taylor_ranks_by_its_estimates(make_tower, images):
    tower = make_tower()
    batch = images(tower, 2)
    result = golden_ranking(tower, batch, layer=1, group=0, taylor=True)
    for sample, image in enumerate(batch):
        with torch.no_grad():
            states = tower.block(0, tower.embed(image[None]))
        estimates, _ = taylor_scores(tower, states, 1, FeatureScorer(), result.dense[sample], sample)
        assert torch.equal(result.removal_score[sample].argsort(descending=True), result.rank[sample].argsort())
        assert torch.allclose(result.removal_score[sample], estimates, atol=1e-6)
    assert result.passes.tolist() == [1 + 2 * 17] * 2
    by_class = golden_ranking(tower, batch, layer=1, group=0, taylor=True, scorer=ConfidenceScorer(**ABOUT))
    assert by_class.passes.tolist() == [3, 3]


def test_taylor_windows_do_the_damage_of_their_patches(make_tower, images):
    tower = make_tower()
    image = images(tower, 1)
    single = golden_ranking(tower, image, layer=1, group=0, taylor=True).removal_score[0]
    windows = removal_windows(tower.grid, 2, 1).float()
    damage = -single
    of_windows = (windows @ damage) / 4
    of_patches = (windows.T @ of_windows) / windows.sum(0)
    result = golden_ranking(tower, image, layer=1, group=0, block=2, taylor=True)
    assert result.rank[0].argsort().tolist() == of_patches.argsort(stable=True).tolist()


@pytest.mark.parametrize("side", [1, 2])
def test_a_shortlist_evaluates_the_patches_that_gradients_name(make_tower, images, side):
    tower = make_tower()
    image = images(tower, 1, 5)
    result = golden_ranking(tower, image, layer=1, block=side, group=3, rank_until=0.5, shortlist=2)
    windows = removal_windows(tower.grid, side, 1)
    with torch.no_grad():
        states = tower.block(0, tower.embed(image))
        dense = tower.module(image)[0]

    def embedding(alive):
        with torch.no_grad():
            rows = states[:, [0, *(1 + patch for patch in alive)]]
            return tower.pool(tower.block(2, tower.block(1, rows)))[0]

    alive, order, evaluated = list(range(16)), [], 0
    while len(alive) > 8:
        take = min(3, len(alive) - 8)
        estimates, now = taylor_scores(tower, states[:, [0, *(1 + p for p in alive)]], 1, FeatureScorer(), dense, 0)
        rough = dict(zip(alive, (now - estimates).tolist(), strict=True))
        candidates = {frozenset(w.nonzero().flatten().tolist()) & frozenset(alive) for w in windows} - {frozenset()}

        def mean(patch, damage, candidates):
            mine = [c for c in candidates if patch in c]
            return sum(damage(c) for c in mine) / len(mine)

        def by_gradient(c, rough=rough):
            return sum(rough[p] for p in c) / len(c)

        listed = sorted(alive, key=lambda p: (mean(p, by_gradient, candidates), p))[: 2 * take]
        candidates = {c for c in candidates if c & set(listed)}
        here = _cosine(embedding(alive), dense)
        scores = {c: (here - _cosine(embedding([p for p in alive if p not in c]), dense)) / len(c) for c in candidates}
        evaluated += len(candidates) + 35 + (len({len(c) for c in candidates}) > 1)
        removed = sorted(listed, key=lambda p: (mean(p, scores.get, candidates), p))[:take]
        order += removed
        alive = [p for p in alive if p not in removed]
    assert result.rank[0].argsort().tolist()[:8] == order
    if side == 1:
        assert int(result.passes) == evaluated + 8 == 2 * (3 + 3 + 2) + 3 * 35 + 8


def test_a_shortlist_of_everything_changes_nothing(make_tower, images):
    tower = make_tower()
    batch = images(tower, 2)
    options = {"layer": 1, "group": 4, "rank_until": 0.5}
    assert _same(golden_ranking(tower, batch, **options), golden_ranking(tower, batch, **options, shortlist=4))


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": True, "scale_attn": True, "scale_attn_inner": True, "scale_fc": True, "scale_heads": True},
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    ],
    ids=["plain", "custom", "avg", "pooler"],
)
@pytest.mark.parametrize(("block", "group"), [(1, 5), (2, 4)])
def test_fast_paths_equal_the_plain_path(make_tower, images, layer, options, block, group):
    tower = make_tower(**options)
    tower.module.double()  # so that no rounding decides between patches that do almost the same damage
    batch = images(tower, 2).double()
    fast, plain = (
        golden_ranking(tower, batch, layer=layer, block=block, group=group, exact_fast_paths=paths)
        for paths in (True, False)
    )
    assert torch.equal(fast.rank, plain.rank)
    assert torch.equal(fast.passes, plain.passes)
    assert (fast.removal_score - plain.removal_score).abs().max() <= 1e-5
    assert (fast.dense - plain.dense).abs().max() <= 1e-5
    with torch.no_grad():
        assert (fast.dense - tower.module(batch)).abs().max() <= 1e-5


def test_cached_states_equal_recomputation_from_pixels(make_tower, images):
    tower = make_tower()
    batch = images(tower, 1)
    result = golden_ranking(tower, batch, layer=2, group=0)
    for patch in (0, 7, 15):
        kept = [row for row in range(17) if row != patch + 1]
        with torch.no_grad():
            states = tower.block(1, tower.block(0, tower.embed(batch)))[:, kept]
            score = cosine_similarity(tower.pool(tower.block(2, states)), tower.module(batch)) - 1
        assert result.removal_score[0, patch] == pytest.approx(float(score), abs=1e-5)


def test_window_means_by_hand():
    windows = removal_windows((3, 3), 2, 1)
    assert windows.sum(0).tolist() == [1, 2, 1, 2, 4, 2, 1, 2, 1]
    scores = -4 * torch.tensor([1.0, 2, 3, 4])  # windows of 4 patches with damages 1, 2, 3, 4
    assert token_damage(windows, scores, 0.0).tolist() == [1, 1.5, 2, 2, 2.5, 3, 3, 3.5, 4]


def test_windows_shrink_with_what_is_alive():
    removed = torch.tensor([[True, True, False], [False, False, True]])
    damage = token_damage(removed, torch.tensor([0.5, 0.7]), 0.9)
    assert torch.allclose(damage, torch.tensor([0.2, 0.2, 0.2]))
    assert token_damage(removed[:1], torch.tensor([0.5]), 0.9).tolist()[2] == float("inf")


@pytest.mark.parametrize(
    ("grid", "side", "stride", "count"),
    [((14, 14), 3, 3, 25), ((14, 14), 2, 2, 49), ((14, 14), 2, 1, 169), ((14, 14), 1, 1, 196), ((3, 5), 3, 2, 2)],
)
def test_windows_cover_every_patch(grid, side, stride, count):
    windows = removal_windows(grid, side, stride)
    assert len(windows) == count
    assert windows.any(0).all()
    assert (windows.sum(1) == side**2).all()


@pytest.mark.parametrize(("side", "stride"), [(0, 1), (4, 1), (2, 0), (2, 3)])
def test_windows_that_do_not_fit_are_refused(side, stride):
    with pytest.raises(ValueError, match="3 x 5"):
        removal_windows((3, 5), side, stride)


@pytest.mark.parametrize(("group", "expected"), [(1, 12_285 + 118), (10, 1_288 + 118), (0, 196)])
def test_pass_counts(sum_tower, group, expected):
    states = torch.rand(1, 196, 4, generator=torch.Generator().manual_seed(0))
    result = golden_ranking(sum_tower(14, 14, 4), states, layer=0, group=group, rank_until=118 / 196)
    assert result.passes.tolist() == [expected]  # the last 118 are the pass that orders what stays
    assert sorted(result.rank[0].tolist()) == list(range(196))


@pytest.mark.parametrize(("share", "patches", "expected"), [(0.3, 64, 20), (0.07, 100, 7), (0.01, 4, 1), (1.0, 5, 5)])
def test_alive_until_rounds_up(share, patches, expected):
    assert alive_until(share, patches) == expected


def test_rank_until_one_orders_everything_in_one_pass(make_tower, images):
    tower = make_tower()
    batch = images(tower, 2)
    everything = golden_ranking(tower, batch, layer=1, group=4, rank_until=1.0)
    assert _same(everything, golden_ranking(tower, batch, layer=1, group=0))


@pytest.mark.parametrize(("block", "group"), [(1, 0), (1, 5), (2, 3)])
def test_a_rank_does_not_depend_on_the_batch(make_tower, images, block, group):
    tower = make_tower()
    batch = images(tower, 6)
    options = {"layer": 1, "block": block, "group": group, "candidate_tokens": 100}
    together = golden_ranking(tower, batch, **options)
    alone = Ranking.cat([golden_ranking(tower, image[None], **options) for image in batch])
    assert _same(together, alone)


def test_chunks_respect_the_budget(make_tower, images, monkeypatch):
    tower = make_tower()
    seen = []
    embed = CandidateRunner._embed
    monkeypatch.setattr(CandidateRunner, "_embed", lambda self, keep: (seen.append(keep.shape), embed(self, keep))[1])
    batch = images(tower, 1)
    small = golden_ranking(tower, batch, layer=1, group=0, candidate_tokens=50)
    assert seen == [(1, 16)] + [(3, 15)] * 5 + [(1, 15)]  # 3 * (1 + 15) <= 50
    assert torch.equal(small.rank, golden_ranking(tower, batch, layer=1, group=0).rank)


def test_too_little_memory_halves_the_chunk_and_starts_the_image_again(make_tower, images, monkeypatch):
    tower = make_tower()
    embed = CandidateRunner._embed

    def limited(self, keep):
        if keep.numel() > 60:
            raise torch.OutOfMemoryError("no")
        return embed(self, keep)

    batch = images(tower, 2)
    expected = golden_ranking(tower, batch, layer=1, group=6, candidate_tokens=64)
    monkeypatch.setattr(CandidateRunner, "_embed", limited)
    result = golden_ranking(tower, batch, layer=1, group=6, candidate_tokens=256)
    assert result.candidate_tokens == 64
    assert _same(result, expected)
    monkeypatch.setattr(CandidateRunner, "_embed", lambda self, keep: limited(self, keep.repeat(9, 9)))
    with pytest.raises(torch.OutOfMemoryError):
        golden_ranking(tower, batch, layer=1, candidate_tokens=256)


def test_candidate_tokens_of_a_memory():
    # ViT-B/16: 768 * (2 * 4 + 8) * 4 bytes = 49,152 bytes a token, half of 80 GiB
    assert auto_candidate_tokens(80 << 30, 768, 4.0) == (40 << 30) // 49_152
    assert auto_candidate_tokens(80 << 30, 768, 4.0, cpu=True) == 2048
    assert auto_candidate_tokens(1, 768, 4.0) == 1


def test_a_nan_image_is_named(make_tower, images):
    tower = make_tower()
    batch = images(tower, 3)
    batch[2, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        golden_ranking(tower, batch, layer=1, group=0)
    assert caught.value.samples == (2,)


@pytest.mark.parametrize(
    "options",
    [
        {"layer": 3},
        {"layer": 1, "group": -1},
        {"layer": 1, "rank_until": 0},
        {"layer": 1, "block": 5},
        {"layer": 1, "shortlist": -1},
        {"layer": 1, "shortlist": 2, "group": 0},
        {"layer": 1, "shortlist": 2, "taylor": True},
    ],
)
def test_options_out_of_range_are_refused(make_tower, images, options):
    tower = make_tower()
    with pytest.raises(ValueError, match=r"layer|group|windows|shortlist"):
        golden_ranking(tower, images(tower, 1), **options)


def test_a_scorer_of_ones_own_knows_the_sample(make_tower, images):
    tower = make_tower()
    calls = []

    class LabelLike:
        def score(self, embeddings, reference, sample):
            calls.append((embeddings.shape, reference.shape, sample))
            return -embeddings[:, 0]

    result = golden_ranking(tower, images(tower, 2), layer=1, group=0, scorer=LabelLike())
    assert calls == [((16, 16), (16,), 0), ((16, 16), (16,), 1)]
    assert torch.equal(result.removal_score[0].argsort(descending=True), result.rank[0].argsort())


def test_numbers_have_the_stored_types(make_tower, images):
    tower = make_tower()
    result = golden_ranking(tower, images(tower, 1), layer=1)
    types = [result.rank.dtype, result.removal_score.dtype, result.round.dtype, result.passes.dtype]
    assert types == [torch.int16, torch.float32, torch.int16, torch.int64]


def test_a_mirrored_ranking_exchanges_left_and_right_of_every_row():
    ranks = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0]])
    found = mirrored(ranks, (2, 3))
    assert found.tolist() == [[2, 1, 0, 5, 4, 3], [1, 3, 5, 0, 2, 4]]
    assert torch.equal(mirrored(found, (2, 3)), ranks)
