"""Embeddings that become one."""

import pytest
import torch

from effvl_cli.techniques.pretrain.collapse import CollapseWatch, embedding_std


def test_spread_is_one_on_the_sphere_and_zero_when_collapsed():
    rows = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    assert float(embedding_std(rows)) == pytest.approx(1, abs=0.03)
    assert float(embedding_std(rows[:1].expand(10, -1))) < 1e-3


def test_it_is_told_after_a_twentieth_of_the_budget_and_again_after_each_further_one():
    watch, told = CollapseWatch(), {}
    for step in range(40):  # of 128: a twentieth is 6.4
        since = watch.since(step / 128, 0.5 if step < 10 or step == 12 else 0.01)
        if since is not None:
            told[step] = 128 * since
    assert told == {20: 13, 27: 20, 34: 27}


def test_what_goes_on_after_a_resume_is_the_moment_it_began():
    watch = CollapseWatch()
    assert watch.since(0.5, 0.0) is None
    assert CollapseWatch(watch.low_since).since(0.6, 0.0) == 0.5
