import copy

import pytest
import torch

from effvl_cli.techniques.prune_tokens.predictor import MixerPredictor
from effvl_cli.techniques.prune_tokens.prompts import VisualPrompts
from effvl_cli.techniques.prune_tokens.selectors import ClsAttentionSelector, RandomSelector
from effvl_cli.techniques.prune_tokens.tower import (
    NonFiniteError,
    PrunedVision,
    gather_patches,
    keep_indices,
    num_keep,
)


class FixedScores:
    """The same scores whatever the states are."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, states, context):
        return self.scores


@pytest.mark.parametrize(
    ("patches", "keep", "expected"),
    [(196, 0.6, 118), (196, 0.5, 98), (49, 0.6, 29), (256, 0.6, 154), (64, 0.6, 38), (5, 0.5, 3), (4, 0.01, 1)],
)
def test_keep_arithmetic_rounds_half_up(patches, keep, expected):
    assert num_keep(keep, patches) == expected


@pytest.mark.parametrize("keep", [0, 1.2, -1, float("nan")])
def test_keep_out_of_range_is_refused(keep):
    with pytest.raises(ValueError, match="keep"):
        num_keep(keep, 196)


def test_gather_by_hand():
    states = torch.tensor([[9.0, 10, 11, 12, 13], [9, 20, 21, 22, 23]])[..., None]
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8], [0.7, 0.2, 0.6, 0.1]])
    keep = keep_indices(scores, 2)
    assert keep.tolist() == [[1, 3], [0, 2]]
    assert gather_patches(states, keep, 1, 4)[..., 0].tolist() == [[9, 11, 13], [9, 20, 22]]
    with_prompts = torch.cat([states, torch.full((2, 2, 1), 7.0)], 1)
    assert gather_patches(with_prompts, keep, 1, 4)[..., 0].tolist() == [[9, 11, 13, 7, 7], [9, 20, 22, 7, 7]]


def test_raster_order_stays():
    assert keep_indices(torch.tensor([[0.1, 0.8, 0.2, 0.9]]), 2).tolist() == [[1, 3]]
    assert keep_indices(torch.tensor([[0.9, 0.1, 0.2, 0.95]]), 3).tolist() == [[0, 2, 3]]


def test_equal_scores_keep_the_lowest_ids():
    assert keep_indices(torch.zeros(1, 6), 3).tolist() == [[0, 1, 2]]
    assert keep_indices(torch.tensor([[0.0, 1, 1, 0, 1, 1]]), 3).tolist() == [[1, 2, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeping_all_is_the_untouched_tower_bit_for_bit(make_tower, images, dtype):
    tower = make_tower()
    tower.module.to(dtype)
    batch = images(tower, 3).to(dtype)
    pruned = PrunedVision(tower, layer=1, num_keep=16, selector=RandomSelector(0)).eval()
    with torch.no_grad():
        assert torch.equal(pruned(batch), tower.module(batch))
        everything = torch.arange(16).expand(3, -1)
        forced = pruned.from_states(pruned.states(batch), everything)
        assert (forced - tower.module(batch)).abs().max() <= 1e-6
    _, keep = pruned(batch, return_keep=True)
    assert torch.equal(keep, everything)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_dropping_equals_masking_the_keys(make_tower, images, layer, options):
    tower = make_tower(**options)
    batch = images(tower, 2)
    pruned = PrunedVision(tower, layer=layer, num_keep=7, selector=RandomSelector(0)).eval()
    with torch.no_grad():
        output, keep = pruned(batch, torch.arange(2), return_keep=True)
        states = pruned.states(batch)
        masked = []
        for row, kept in zip(states, keep, strict=True):  # one by one: the mask of a block is the same for all rows
            mask = torch.full((17, 17), float("-inf"))
            mask[:, 0] = 0
            mask[:, kept + 1] = 0
            x = row[None]
            for index in range(layer, tower.depth):
                x = tower.blocks[index](x, attn_mask=mask)
            masked.append(tower.pool(x))
    assert (output - torch.cat(masked)).abs().max() <= 1e-5


def test_output_tokens_has_a_row_for_each_kept_patch(make_tower, images):
    tower = make_tower(output_tokens=True)
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=ClsAttentionSelector()).eval()
    (pooled, tokens), keep = pruned(images(tower, 2), return_keep=True)
    assert pooled.shape == (2, 16)
    assert tokens.shape == (2, 5, 32)
    assert keep.shape == (2, 5)


def test_cached_states_give_the_same_embedding(make_tower, images):
    tower = make_tower()
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=ClsAttentionSelector()).eval()
    batch = images(tower, 4)
    states = pruned.states(batch)
    assert torch.equal(pruned.from_states(states, pruned.select(states)), pruned(batch))


def test_state_and_parameters_hold_only_selector_and_prompts(make_tower):
    tower = make_tower()
    predictor = MixerPredictor(16, 1, width=8)
    prompts = VisualPrompts(torch.zeros(2, 32), 2, start=1)
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=predictor, prompts=prompts)
    assert {key.split(".")[0] for key in pruned.state_dict()} == {"selector", "prompts"}
    assert sum(p.numel() for p in pruned.parameters()) == sum(p.numel() for p in predictor.parameters()) + 2 * 2 * 32


def test_mode_and_type_reach_the_tower(make_tower, images):
    tower = make_tower()
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=MixerPredictor(16, 1, width=8))
    pruned.train()
    assert tower.module.training
    pruned.eval()
    assert not tower.module.training
    pruned.to(torch.float64)
    assert tower.module.conv1.weight.dtype == torch.float64
    assert pruned(images(tower, 1).double()).dtype == torch.float64


def test_a_copy_is_independent(make_tower, images):
    pruned = PrunedVision(make_tower(), layer=1, num_keep=5, selector=ClsAttentionSelector()).eval()
    twin = copy.deepcopy(pruned)
    batch = images(pruned.tower, 1)
    assert torch.equal(twin(batch), pruned(batch))
    assert twin.tower.module is not pruned.tower.module


def test_non_finite_scores_name_the_samples(make_tower, images):
    tower = make_tower()
    scores = torch.zeros(3, 16)
    scores[1, 4] = float("nan")
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=FixedScores(scores)).eval()
    with pytest.raises(NonFiniteError) as caught:
        pruned(images(tower, 3), torch.tensor([7, 8, 9]))
    assert caught.value.samples == (8,)
    with pytest.raises(NonFiniteError) as caught:
        pruned(images(tower, 3))
    assert caught.value.samples == (1,)


def test_a_nan_image_is_not_pruned_silently(make_tower, images):
    tower = make_tower()
    batch = images(tower, 2)
    batch[1] = float("nan")
    pruned = PrunedVision(tower, layer=0, num_keep=5, selector=ClsAttentionSelector()).eval()
    with pytest.raises(NonFiniteError) as caught:
        pruned(batch)
    assert caught.value.samples == (1,)


def test_two_removers_of_tokens_are_refused(make_tower, images):
    tower = make_tower(patch_dropout=0.5)
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=ClsAttentionSelector())
    with pytest.raises(ValueError, match="patch_dropout"):
        pruned.train()(images(tower, 1))
    assert pruned.eval()(images(tower, 1)).shape == (1, 16)


@pytest.mark.parametrize(("layer", "keep"), [(3, 5), (-1, 5), (1, 0), (1, 17)])
def test_layer_and_count_out_of_range_are_refused(make_tower, layer, keep):
    with pytest.raises(ValueError, match="the tower has"):
        PrunedVision(make_tower(), layer=layer, num_keep=keep, selector=ClsAttentionSelector())


def test_autocast_does_not_change_which_patches_are_scored_in_float32(make_tower, images):
    seen = []

    class Spy(MixerPredictor):
        def forward(self, inputs):
            scores = super().forward(inputs)
            seen.append((inputs.dtype, self.head.weight.dtype, torch.is_autocast_enabled("cpu")))
            return scores

    tower = make_tower()
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=Spy(16, 1, width=8)).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pruned(images(tower, 1))
    assert seen == [(torch.float32, torch.float32, False)]
