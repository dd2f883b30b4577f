"""What becomes of dropped patches, and choosing patches that are not alike."""

import pytest
import torch

from effvl_cli.config import prune_tokens as config
from effvl_cli.techniques.prune_tokens.dropped import fused, nearest_kept
from effvl_cli.techniques.prune_tokens.keeping import LEAST_DIVERSITY, diverse_indices, keep_indices
from effvl_cli.techniques.prune_tokens.selectors import ClsAttentionSelector, GridSelector, RandomSelector
from effvl_cli.techniques.prune_tokens.token_sizes import sized_block
from effvl_cli.techniques.prune_tokens.tower import PrunedVision


@pytest.fixture
def pairs(make_tower):
    """A tower, and states in which patch 2k + 1 is patch 2k."""
    tower = make_tower()
    states = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(3))
    states[:, 2::2] = states[:, 1::2]
    return tower, states


def halved(tower, dropped, **options):
    return PrunedVision(tower, layer=1, num_keep=8, selector=GridSelector(), dropped=dropped, **options).eval()


def through(tower, states):
    for index in range(1, tower.depth):
        states = tower.block(index, states)
    return tower.pool(states)


def test_each_patch_goes_with_the_most_similar_kept_one():
    angles = torch.tensor([[0.0, 80.0, 30.0, 90.0, 65.0]]).deg2rad()
    patches = torch.stack([angles.cos(), angles.sin()], -1) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    assert nearest_kept(patches, torch.tensor([[0, 3]])).tolist() == [[0, 1, 0, 1, 1]]


def test_merging_what_is_there_twice_equals_the_dense_tower(pairs):
    tower, states = pairs
    keep = torch.arange(0, 16, 2).expand(2, -1)
    dense = through(tower, states)
    assert (halved(tower, "merge").from_states(states, keep) - dense).abs().max() <= 2e-6
    assert (halved(tower, "discard").from_states(states, keep) - dense).abs().max() > 1e-3  # the pairs counted once
    assert torch.allclose(
        halved(tower, "average").from_states(states, keep),
        halved(tower, "discard").from_states(states, keep),
        atol=1e-6,
    )


def test_a_tower_that_reads_its_patches_counts_each_token_as_often_as_its_patches(make_tower):
    tower = make_tower(pool_type="avg")
    states = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(3))
    states[:, 2::2] = states[:, 1::2]
    states[:, 4:7] = states[:, 3:4]  # four of one, so that the tokens weigh differently
    keep = torch.tensor([[0, 2, 6, 8, 10, 12, 14, 15]]).expand(2, -1)
    merged = halved(tower, "merge").from_states(states, keep)
    assert (merged - through(tower, states)).abs().max() <= 2e-6


def test_tokens_of_size_one_and_prompts_behind_them_change_nothing(pairs):
    tower, states = pairs
    for sizes in (17, 14):  # rows without a size count once
        found = sized_block(tower, 1, states, torch.ones(2, sizes))
        assert (found - tower.block(1, states)).abs().max() <= 1e-6


def test_averages_by_a_plain_loop(make_tower, images):
    tower = make_tower()
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=RandomSelector(0), dropped="average").eval()
    ids = torch.arange(3)
    states = pruned.states(images(tower, 3))
    output, keep = pruned(images(tower, 3), ids, return_keep=True)
    for row in range(3):
        groups = {int(patch): [int(patch)] for patch in keep[row]}
        for patch in set(range(16)) - set(groups):
            near = max(
                groups, key=lambda k: float(torch.cosine_similarity(states[row, 1 + k], states[row, 1 + patch], 0))
            )
            groups[near].append(patch)
        rows = [states[row, 0], *(states[row, [1 + p for p in group]].mean(0) for group in groups.values())]
        assert (output[row] - through(tower, torch.stack(rows)[None])[0]).abs().max() <= 1e-5


def test_one_token_is_the_mean_of_the_dropped_or_weighted_by_attention(make_tower, images):
    tower = make_tower()
    batch, ids = images(tower, 2), torch.arange(2)
    for selector in (RandomSelector(0), ClsAttentionSelector()):
        pruned = PrunedVision(tower, layer=1, num_keep=6, selector=selector, dropped="fuse").eval()
        states = pruned.states(batch)
        scores = pruned.scores(states, ids)
        weights = scores if isinstance(selector, ClsAttentionSelector) else torch.ones(2, 16)
        output, keep = pruned(batch, ids, return_keep=True)
        one = fused(states[:, 1:], keep, weights)
        rows = torch.cat([states[:, :1], states[:, 1:][torch.arange(2)[:, None], keep], one], 1)
        assert (output - through(tower, rows)).abs().max() <= 1e-5


def test_diverse_choice_by_hand_and_with_no_weight():
    scores = torch.tensor([[3.0, 2.9, 1.0, 0.0]])  # scaled: 1.01, .93, -.57, -1.36
    vectors = torch.tensor([[[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]])
    assert diverse_indices(scores, vectors, 2, 0.0).tolist() == [[0, 1]]
    # patch 1 covers 0 to .9988 and itself; what is left to gain: by 0 at most .0012, by 2 its own .95 * e^-.57
    assert diverse_indices(scores, vectors, 1, 1.0).tolist() == [[1]]
    assert diverse_indices(scores, vectors, 2, 1.0).tolist() == [[1, 2]]
    assert diverse_indices(scores, vectors, 3, 1.0).tolist() == [[1, 2, 3]]
    assert diverse_indices(scores, vectors, 3, 0.1).tolist() == [[0, 1, 2]]  # e^-15.8 and e^-23.7 hardly count
    many = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    assert torch.equal(diverse_indices(many, torch.randn(5, 40, 3), 17, 0.0), keep_indices(many, 17))
    assert config.LEAST_DIVERSITY == LEAST_DIVERSITY
    with pytest.raises(ValueError, match="must be 0 or at least"):
        diverse_indices(many, torch.randn(5, 40, 3), 17, 0.09)


def test_of_patches_that_are_all_alike_the_highest_scores_stay():
    many = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    assert torch.equal(diverse_indices(many, torch.ones(5, 40, 2), 17, 1.0), keep_indices(many, 17))
    assert torch.equal(diverse_indices(torch.ones(5, 4), torch.ones(5, 4, 2), 2, 1.0), torch.arange(2).expand(5, 2))


def test_each_diverse_choice_adds_most_to_the_weighted_cover_in_float64():
    generator = torch.Generator().manual_seed(1)
    scores, vectors = torch.randn(3, 12, generator=generator), torch.randn(3, 12, 5, generator=generator)
    for image in range(3):
        score, unit = scores[image].double(), torch.nn.functional.normalize(vectors[image].double(), dim=-1)
        weights = ((score - score.mean()) / score.std(correction=0) / 2).exp()

        def cover(kept, unit=unit, weights=weights):
            return float((weights * (unit @ unit[kept].T).max(1).values).sum())

        kept = []
        for _ in range(5):
            kept.append(max(set(range(12)) - set(kept), key=lambda patch: cover([*kept, patch])))
        assert diverse_indices(scores, vectors, 5, 2.0)[image].tolist() == sorted(kept)
