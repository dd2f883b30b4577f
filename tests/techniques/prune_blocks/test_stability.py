"""Rankings by parts of the images."""

import torch

from effvl_cli.techniques.prune_blocks.stability import ranking_stability


def _table(images=400):
    """A network that is always right, and three candidates that are wrong on 1 %, half and all of the images."""
    correct = torch.ones(4, images, dtype=torch.bool)
    correct[1, ::100], correct[2, ::2], correct[3] = False, False, False
    return correct, torch.where(correct, 0.1, 3.0).double()


def test_what_no_part_can_confuse_is_ranked_the_same_by_each():
    [row] = ranking_stability(*_table(), torch.Generator().manual_seed(0), sizes=(100, 400, 1000), draws=5)
    assert row == {"images": 100, "winner_top1": 1, "winner_loss": 1, "tau_top1": 1, "tau_loss": 1}


def test_a_single_candidate_has_no_ranking():
    correct, loss = _table()
    assert ranking_stability(correct[:2], loss[:2], torch.Generator()) == []


def test_candidates_that_hardly_differ_are_confused_by_few_images():
    generator = torch.Generator().manual_seed(1)
    correct = torch.rand(5, 2000, generator=generator) < torch.tensor([0.9, 0.801, 0.8, 0.799, 0.798])[:, None]
    rows = ranking_stability(correct, (~correct).double(), generator, sizes=(20, 1500), draws=40)
    assert rows[0]["tau_top1"] < rows[1]["tau_top1"] < 1
