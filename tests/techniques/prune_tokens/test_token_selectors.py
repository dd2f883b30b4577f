import pytest
import torch
from torch import nn

from effvl_cli.techniques.prune_tokens.dropped import fused
from effvl_cli.techniques.prune_tokens.evit import EvitSelector
from effvl_cli.techniques.prune_tokens.ranking import golden_ranking
from effvl_cli.techniques.prune_tokens.selectors import (
    CenterSelector,
    ClsAttentionSelector,
    GoldenSelector,
    GridSelector,
    MissingRankingError,
    NormSelector,
    RandomSelector,
    TaylorSelector,
    halton_order,
)
from effvl_cli.techniques.prune_tokens.tower import Context, PrunedVision, keep_indices


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


def test_cls_attention_of_the_previous_block(make_tower, images):
    tower = make_tower()
    batch = images(tower, 3)
    pruned = PrunedVision(tower, layer=2, num_keep=6, selector=ClsAttentionSelector(previous=True)).eval()
    before = tower.block(0, tower.embed(batch))  # the input of block 1
    block = tower.blocks[1]
    normed = block.ln_1(before)
    _, weights = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=True)
    states = tower.block(1, before)
    scores = pruned.selector.score(states, Context(tower, 2, None, before))
    assert (scores - weights[:, 0, 1:]).abs().max() <= 1e-6
    _, keep = pruned(batch, return_keep=True)
    assert torch.equal(keep, keep_indices(weights[:, 0, 1:], 6))
    own = PrunedVision(tower, layer=2, num_keep=6, selector=ClsAttentionSelector()).eval()
    assert not torch.equal(own(batch, return_keep=True)[1], keep)


def test_there_is_no_block_before_the_first(make_tower, images):
    tower = make_tower()
    pruned = PrunedVision(tower, layer=0, num_keep=6, selector=ClsAttentionSelector(previous=True)).eval()
    with pytest.raises(ValueError, match="layer is 0"):
        pruned(images(tower, 1))


def test_norm_by_hand(sum_tower):
    tower = sum_tower(1, 3, 2)
    states = torch.tensor([[[3.0, 4.0], [0.0, -6.0], [1.0, 1.0]]])
    assert torch.equal(NormSelector().score(states, Context(tower, 0)), torch.tensor([[5.0, 6.0, 2.0**0.5]]))


def test_norm_leaves_the_prefix_out(make_tower):
    tower = make_tower()
    states = _states(tower, 2)
    assert torch.equal(NormSelector().score(states, Context(tower, 0)), states[:, 1:].norm(dim=2))


def test_center_by_hand(sum_tower):
    tower = sum_tower(3, 4, 1)
    tower.patch_size = (2, 1)  # patches twice as high as wide
    scores = CenterSelector().score(torch.zeros(2, 12, 1), Context(tower, 0))
    middle, edge = [2.25, 0.25, 0.25, 2.25], [6.25, 4.25, 4.25, 6.25]
    assert torch.equal(-scores[1], torch.tensor([*edge, *middle, *edge]))
    assert keep_indices(scores, 2).tolist() == [[5, 6]] * 2


def test_halton_order_by_hand():
    # Points (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9), (3/8, 2/9): rows by halves, columns by thirds.
    assert halton_order(2, 3) == (4, 2, 3, 1, 5, 0)


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (16, 12), (1, 5)])
def test_grid_is_an_order_of_all_patches_that_spreads_evenly(sum_tower, grid):
    rows, columns = grid
    order = torch.tensor(halton_order(rows, columns))
    assert sorted(order.tolist()) == list(range(rows * columns))
    scores = GridSelector().score(torch.zeros(2, rows * columns, 1), Context(sum_tower(rows, columns, 1), 0))
    assert torch.equal(scores.argsort(1, descending=True), order.expand(2, -1))
    if rows == 1:
        return
    half, side = rows // 2, columns // 2
    for share in (0.2, 0.3, 0.5, 0.7, 0.9):  # each quarter of the image has its part; 4 to 8 off for random patches
        kept = torch.zeros(rows * columns)
        kept[order[: round(share * rows * columns)]] = 1
        kept = kept.view(rows, columns)
        for part in (kept[:half, :side], kept[:half, -side:], kept[-half:, :side], kept[-half:, -side:]):
            assert abs(part.sum() - share * part.numel()) <= 2.5


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_evit_equals_a_slow_reference(make_tower, images, layer):
    """Drop the least attended patches, append their attention-weighted mean; one image and one patch at a time."""
    tower = make_tower()
    batch = images(tower, 3)
    pruned = PrunedVision(tower, layer=layer, num_keep=6, selector=EvitSelector()).eval()
    with torch.no_grad():
        output, keep = pruned(batch, return_keep=True)
        for row, image in enumerate(batch):
            states = tower.embed(image[None])
            for index in range(layer):
                states = tower.block(index, states)
            block = tower.blocks[layer]
            normed = block.ln_1(states)
            weights = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=True)[1][0, 0, 1:]
            ranked = sorted(range(16), key=lambda patch: -float(weights[patch]))
            kept, dropped = sorted(ranked[:6]), ranked[6:]
            assert keep[row].tolist() == kept
            fused = sum(weights[patch] * states[0, 1 + patch] for patch in dropped)
            fused = fused / sum(weights[patch] for patch in dropped)
            rows = torch.stack([states[0, 0], *(states[0, 1 + patch] for patch in kept), fused])[None]
            for index in range(layer, tower.depth):
                rows = tower.block(index, rows)
            assert (output[row] - tower.pool(rows)[0]).abs().max() <= 1e-5


def test_evit_weights_by_hand():
    patches = torch.tensor([[[1.0], [2.0], [5.0], [7.0]]])
    scores = torch.tensor([[0.1, 0.4, 0.3, 0.05]])
    assert fused(patches, torch.tensor([[1, 3]]), scores).item() == pytest.approx((0.1 * 1 + 0.3 * 5) / 0.4)
    nothing = fused(patches, torch.tensor([[1, 3]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
    assert nothing.item() == 0  # attention that underflowed: no NaN


def test_evit_keeps_its_row_before_the_prompts(make_tower, images):
    from effvl_cli.techniques.prune_tokens.prompts import VisualPrompts

    tower = make_tower(output_tokens=True)
    prompts = VisualPrompts(torch.zeros(1, 32), 2, start=0)
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=EvitSelector(), prompts=prompts).eval()
    states = pruned.states(images(tower, 1))
    scores = torch.rand(1, 16)
    seen = []
    tower.module.transformer.resblocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pruned.from_states(states, keep_indices(scores, 5), scores)
    assert seen[0].shape == (1, 1 + 5 + 1 + 2, 32)
    assert torch.equal(seen[0][:, -2:], states[:, -2:])
    assert (seen[0][:, 6] - fused(states[:, 1:17], keep_indices(scores, 5), scores)[:, 0]).abs().max() == 0


def test_taylor_agrees_with_evaluated_removals(make_tower, images):
    """With all probes it is the second-order damage; single removals from a tower of mild weights are close to it."""
    tower = make_tower()
    batch = images(tower, 4)
    with torch.no_grad():
        states = tower.block(0, tower.embed(batch))
    scores = TaylorSelector(probes=16).score(states, Context(tower, 1))
    assert scores.shape == (4, 16)
    rank = golden_ranking(tower, batch, layer=1, group=0).rank.float()
    correlation = torch.stack(
        [
            torch.corrcoef(torch.stack([s.argsort().argsort().float(), r]))[0, 1]
            for s, r in zip(scores, rank, strict=True)
        ]
    )
    assert correlation.min() > 0.8


def test_taylor_works_where_nothing_else_keeps_gradients(make_tower, images):
    tower = make_tower()
    batch = images(tower, 2)
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=TaylorSelector()).eval()
    expected = pruned(batch)
    with torch.inference_mode():
        together = pruned(batch)
        alone = torch.cat([pruned(image[None]) for image in batch])
    assert (together - expected).abs().max() <= 1e-5
    assert (together - alone).abs().max() <= 1e-5
