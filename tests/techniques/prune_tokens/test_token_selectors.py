import pytest
import torch
from torch import nn

from effvl_cli.techniques.prune_tokens.selectors import (
    ClsAttentionSelector,
    GoldenSelector,
    MissingRankingError,
    RandomSelector,
)
from effvl_cli.techniques.prune_tokens.tower import Context


def _states(tower, count):
    return torch.randn(count, 17, tower.width, generator=torch.Generator().manual_seed(1))


def test_random_depends_on_seed_and_sample_only(make_tower):
    tower = make_tower()
    states = _states(tower, 5)
    ids = torch.tensor([4, 0, 2**62 + 12345, 17, 4])
    together = RandomSelector(3).score(states, Context(tower, 1, ids))
    for row, sample in enumerate(ids):
        alone = RandomSelector(3).score(states[:1], Context(tower, 0, sample[None]))
        assert torch.equal(alone[0], together[row])
    assert torch.equal(together[0], together[4])
    assert not torch.equal(RandomSelector(4).score(states, Context(tower, 1, ids)), together)


def test_random_is_uniform(make_tower):
    tower = make_tower()
    scores = RandomSelector(0).score(torch.zeros(4000, 17, 1), Context(tower, 0, torch.arange(4000)))
    assert scores.min() >= 0
    assert scores.max() < 1
    assert abs(scores.mean() - 0.5) < 4 * (1 / 12 / 64000) ** 0.5  # 4 standard errors of 64,000 uniform numbers
    counts = torch.histc(scores, 20, 0, 1)
    assert ((counts - 3200) ** 2 / 3200).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    # Each patch is among the 8 best of an image half the time, whatever its place: standard error 0.0079.
    kept = (scores.argsort(1).argsort(1) >= 8).float().mean(0)
    assert (kept - 0.5).abs().max() < 4 * 0.0079


def test_cls_attention_equals_the_weights_of_the_block(make_tower):
    tower = make_tower()
    states = _states(tower, 3)
    block = tower.blocks[1]
    normed = block.ln_1(states)
    _, weights = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=True)
    scores = ClsAttentionSelector().score(states, Context(tower, 1))
    assert scores.shape == (3, 16)
    assert (scores - weights[:, 0, 1:]).abs().max() <= 1e-6


def test_cls_attention_applies_qk_norm(make_tower):
    tower = make_tower(qk_norm=True)
    states = _states(tower, 2)
    attention = tower.blocks[0].attn
    nn.init.uniform_(attention.ln_q.weight)
    rows = nn.functional.linear(tower.blocks[0].ln_1(states), attention.in_proj_weight, attention.in_proj_bias)
    query, keys, _ = rows.view(2, 17, 3, 2, 16).unbind(2)
    logits = torch.einsum("bhd,bkhd->bhk", attention.ln_q(query)[:, 0], attention.ln_k(keys)) / 4
    expected = logits.softmax(-1).mean(1)[:, 1:]
    assert (ClsAttentionSelector().score(states, Context(tower, 0)) - expected).abs().max() <= 1e-6


def test_cls_attention_needs_a_cls_token(sum_tower):
    tower = sum_tower(2, 2, 3)
    with pytest.raises(ValueError, match="predictor"):
        ClsAttentionSelector().score(torch.zeros(1, 4, 3), Context(tower, 0))


def test_golden_looks_ranks_up_by_id(make_tower):
    tower = make_tower()
    rank = torch.stack([torch.randperm(16) for _ in range(3)]).to(torch.int16)
    golden = GoldenSelector(torch.tensor([30, 10, 20]), rank)
    scores = golden.score(_states(tower, 2), Context(tower, 1, torch.tensor([20, 30])))
    assert scores.dtype == torch.float32
    assert torch.equal(scores, rank[[2, 0]].float())


@pytest.mark.parametrize("sample", [5, 15, 99])
def test_golden_names_the_missing_sample(make_tower, sample):
    tower = make_tower()
    golden = GoldenSelector(torch.tensor([10, 20]), torch.zeros(2, 16))
    with pytest.raises(MissingRankingError, match=str(sample)) as caught:
        golden.score(_states(tower, 2), Context(tower, 1, torch.tensor([10, sample])))
    assert caught.value.sample == sample


@pytest.mark.parametrize("selector", [RandomSelector(0), GoldenSelector(torch.arange(2), torch.zeros(2, 16))])
def test_ids_are_asked_for(make_tower, selector):
    tower = make_tower()
    with pytest.raises(ValueError, match="ids"):
        selector.score(_states(tower, 2), Context(tower, 1))
