import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel

from effvl_cli.models.timm_tower import TimmTower
from effvl_cli.techniques.prune_tokens.macs import TowerShape
from effvl_cli.techniques.prune_tokens.token_sizes import merge
from effvl_cli.techniques.prune_tokens.tome import (
    MergedVision,
    equal_keep,
    merge_schedule,
    merging_block,
    soft_matching,
)

B16 = TowerShape(196, 1, 768, 768, 12, 3072, 512)


@pytest.fixture(scope="module")
def timm_tower():
    """The first four blocks of vit_tiny on 5 x 5 patches, random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TimmModel("vit_tiny_patch16_224", embed_dim=16, image_size=224, pool="token", proj="linear")
        model.trunk.set_input_size(img_size=80)
        del model.trunk.blocks[4:]
        for block in model.trunk.blocks:  # attention that tells tokens apart, which tiny initial weights do not
            torch.nn.init.normal_(block.attn.qkv.weight, std=0.1)
        torch.nn.init.normal_(model.trunk.pos_embed)
    return TimmTower(model.eval().requires_grad_(False))


def _published_tome(trunk, image, schedule):
    """One image through a timm ViT as in arXiv 2210.09461, token by token; returns the states and their sizes."""
    tokens = list(trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(image[None])))[0])
    sizes = [1] * len(tokens)
    for block, count in zip(trunk.blocks, schedule, strict=True):
        attention, heads = block.attn, block.attn.num_heads
        width = len(tokens[0]) // heads
        rows = [attention.qkv(block.norm1(token)).view(3, heads, width) for token in tokens]
        attended = []
        for query, _, _ in rows:
            mixed = []
            for head in range(heads):
                logits = torch.stack([query[head] @ key[head] / math.sqrt(width) for _, key, _ in rows])
                weights = torch.stack([size * logit.exp() for size, logit in zip(sizes, logits, strict=True)])
                weights = weights / weights.sum()
                mixed.append(sum(w * value[head] for w, (_, _, value) in zip(weights, rows, strict=True)))
            attended.append(attention.proj(torch.cat(mixed)))
        tokens = [token + more for token, more in zip(tokens, attended, strict=True)]
        keys = [key.mean(0) for _, key, _ in rows]
        if count:
            tokens, sizes = _published_merge(tokens, sizes, keys, count)
        tokens = [token + block.mlp(block.norm2(token)) for token in tokens]
    return torch.stack(tokens), sizes


def _published_merge(tokens, sizes, keys, count):
    """Partition A = even, B = odd tokens; an edge from each of A to its most similar of B; the r best edges merge."""
    a, b = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
    edges = []
    for i in a[1:]:  # not CLS
        similarity = {j: float(F.cosine_similarity(keys[i], keys[j], dim=0)) for j in b}
        best = max(similarity, key=similarity.get)
        edges.append((similarity[best], i, best))
    chosen = sorted(edges, reverse=True)[:count]
    merged = {i for _, i, _ in chosen}
    out = [(tokens[i], sizes[i]) for i in a if i not in merged]
    for j in b:
        parts = [j, *(i for _, i, target in chosen if target == j)]
        size = sum(sizes[k] for k in parts)
        out.append((sum(tokens[k] * sizes[k] for k in parts) / size, size))
    return [token for token, _ in out], [size for _, size in out]


@pytest.mark.parametrize("schedule", [(6, 5, 3, 2), (12, 0, 4, 1), (0, 0, 7, 0)])
def test_equals_the_published_algorithm_on_a_timm_vit(timm_tower, schedule):
    images = torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(1))
    vision = MergedVision(timm_tower, layer=0, schedule=schedule).eval()
    with torch.no_grad():
        output = vision(images)
        expected = []
        for image in images:
            states, sizes = _published_tome(timm_tower.trunk, image, schedule)
            assert sum(sizes) == 26
            assert len(states) == 26 - sum(schedule)
            expected.append(timm_tower.head(states[None])[0])
        dense = timm_tower.module(images)
    assert (output - torch.stack(expected)).abs().max() <= 1e-4
    assert (output - dense).abs().max() > 1e-2


def test_the_published_matching_by_hand():
    # Rows: CLS, then patches of which 1, 3, 5 are the second half and 2, 4 the first. 4 is most alike to 5.
    angles = torch.tensor([0.0, 0.0, 0.5, 1.0, 2.0, 2.1])
    metric = torch.stack([angles.cos(), angles.sin()], 1)[None]
    assert soft_matching(metric, 1, 1).tolist() == [[0, 2, 1, 3, 4, 4]]
    assert soft_matching(metric, 2, 1).tolist() == [[0, 1, 1, 2, 3, 3]]  # 2 lies between 1 and 3: the first of equals
    # Without prefix the halves change places: 0, 2, 4 look for the best of 1, 3, 5.
    assert soft_matching(metric, 1, 0).tolist() == [[2, 2, 0, 3, 1, 4]]


def test_no_prefix_token_merges():
    metric = torch.randn(3, 17, 8, generator=torch.Generator().manual_seed(0))
    for prefix in (0, 1, 2, 5):
        metric[:, :prefix] = metric[:, prefix : prefix + 1]  # as alike as can be
        target = soft_matching(metric, 4, prefix)
        assert torch.equal(target[:, :prefix], torch.arange(prefix).expand(3, -1))
        assert (target[:, prefix:] >= prefix).all()
        for row in target:
            assert sorted(row.unique().tolist()) == list(range(13))


def test_means_are_weighted_with_sizes():
    rows = torch.tensor([[[1.0], [2.0], [4.0], [10.0]]])
    merged, size = merge(rows, torch.tensor([[1.0, 3.0, 1.0, 2.0]]), torch.tensor([[0, 1, 1, 2]]), 1)
    assert merged[0, :, 0].tolist() == [1, 2.5, 10]
    assert size.tolist() == [[1, 4, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [0, 2])
def test_merging_nothing_is_the_untouched_tower_bit_for_bit(make_tower, images, layer, dtype):
    tower = make_tower()
    tower.module.to(dtype)
    batch = images(tower, 3).to(dtype)
    with torch.no_grad():
        vision = MergedVision(tower, layer=layer, schedule=(0,) * (3 - layer)).eval()
        assert torch.equal(vision(batch), tower.module(batch))


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"ls_init_value": 0.1}])
def test_the_rewritten_block_equals_the_towers(make_tower, options):
    tower = make_tower(**options)
    states = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tower.block(1, states)
        for size in (None, torch.ones(2, 17), torch.full((2, 17), 3.0)):  # equal sizes change no softmax
            output, after, target = merging_block(tower, 1, states, size, 0)
            assert (output - expected).abs().max() <= 1e-5
            assert after is size and target is None


@pytest.mark.parametrize(
    "pooling",
    [
        {"pool_type": "avg", "final_ln_after_pool": True},
        {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    ],
)
def test_towers_that_read_patches_weight_them_with_their_sizes(make_tower, images, pooling):
    """Merging equal tokens changes nothing, however the tower pools."""
    tower = make_tower(**pooling)
    with torch.no_grad():
        tower.module.positional_embedding.zero_()
        image = images(tower, 1)
        patch = image[:, :, :4, :4]
        other = image[:, :, 4:8, 4:8]
        image = torch.cat([patch.repeat(1, 1, 4, 3), other.repeat(1, 1, 4, 1)], 3)  # twelve alike, four alike
        vision = MergedVision(tower, layer=0, schedule=(3, 3, 2)).eval()
        assert (vision(image) - tower.module(image)).abs().max() <= 1e-5
        assert (vision(images(tower, 1)) - tower.module(images(tower, 1))).abs().max() > 1e-3


def test_batch_composition_does_not_matter(make_tower, images):
    tower = make_tower()
    batch = images(tower, 4)
    vision = MergedVision(tower, layer=1, schedule=(5, 4)).eval()
    with torch.no_grad():
        alone = torch.cat([vision(image[None]) for image in batch])
        assert (vision(batch) - alone).abs().max() <= 1e-5


def test_schedule_costs_what_dropping_costs():
    for keep in (176, 157, 137, 118, 98, 78, 59):
        schedule = merge_schedule(B16, 12, keep, 3)
        assert len(schedule) == 9
        halves = [(196 - sum(schedule[:block])) // 2 for block in range(9)]
        free = [count for count, half in zip(schedule, halves, strict=True) if count < half]
        assert all(count <= half for count, half in zip(schedule, halves, strict=True))
        assert max(free) - min(free) <= 1
        assert B16.merged(schedule, 3, 12) == pytest.approx(B16.pruned(keep, 3), rel=0.005)
    assert merge_schedule(B16, 12, 196, 3) == (0,) * 9


def test_schedule_stops_at_half_of_the_tokens_of_a_block():
    shape = TowerShape(64, 1, 192, 64, 4, 128, 64)
    assert merge_schedule(shape, 4, 1, 0) == (32, 16, 8, 4)
    assert shape.merged((32, 16, 8, 4), 0, 4) > shape.pruned(1, 0)


def test_what_merging_cannot_reach_is_named_by_what_it_costs():
    shape = TowerShape(64, 1, 192, 64, 4, 128, 64)
    cost = shape.merged((32, 16, 8, 4), 0, 4)
    for keep in (1, 13, 20):
        assert equal_keep(shape, 4, keep, 0) == 23
    assert shape.pruned(23, 0) <= cost < shape.pruned(24, 0)
    assert all(equal_keep(shape, 4, keep, 0) is None for keep in (26, 38, 64))
    assert merge_schedule(shape, 4, 23, 0) == (32, 16, 8, 4)


def test_out_of_range_is_refused(make_tower):
    tower = make_tower()
    for layer, schedule in [(3, ()), (1, (1,)), (1, (9, 0)), (1, (8, 5)), (1, (-1, 0))]:
        with pytest.raises(ValueError, match=r"the tower has|numbers for|cannot merge"):
            MergedVision(tower, layer=layer, schedule=schedule)
    assert MergedVision(tower, layer=1, schedule=(8, 4)).schedule == (8, 4)


def test_two_removers_of_tokens_are_refused(make_tower, images):
    tower = make_tower(patch_dropout=0.5)
    with pytest.raises(ValueError, match="patch_dropout"):
        MergedVision(tower, layer=1, schedule=(1, 1)).train()(images(tower, 1))


def test_it_has_no_state_of_its_own(make_tower):
    vision = MergedVision(make_tower(), layer=1, schedule=(1, 1))
    assert not vision.state_dict() and not list(vision.parameters())
    assert vision.to(torch.float64).tower.module.conv1.weight.dtype == torch.float64
