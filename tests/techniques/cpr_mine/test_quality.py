"""Figures of mined positives against numbers worked out by hand and by plain loops."""

import math

import pytest
import torch

from effvl_cli.techniques.cpr_mine.cascade import mine
from effvl_cli.techniques.cpr_mine.forbid import Forbid
from effvl_cli.techniques.cpr_mine.quality import (
    StageTally,
    eligible,
    hubness,
    judge,
    judge_stages,
    new_share,
    recall_at,
    reciprocity,
)
from effvl_cli.techniques.cpr_mine.stages import official


def test_by_hand():
    """Class 0: items 0, 1, 2; class 1: items 3, 4; item 5 has no label. Self is forbidden, k = 3."""
    labels = torch.tensor([0, 0, 0, 1, 1, -1])
    ids = torch.arange(6)
    candidates = eligible(labels, labels, Forbid(ids, ids))
    assert candidates.tolist() == [2, 2, 2, 1, 1, 0]
    mined = torch.tensor([[1, 2, 3], [0, 3, 5], [5, -1, -1], [4, 0, 1], [0, 1, 2], [0, 1, 2]])
    found = judge(mined, labels, labels, candidates)
    precision = [2 / 3, 1 / 2, math.nan, 1 / 3, 0]  # query 1 mined two items with a label, query 2 none
    recall, hit = [1, 1 / 2, 0, 1, 0], [1, 1, 0, 1, 0]
    assert found.queries == 5
    assert found.mean["precision"] == pytest.approx((2 / 3 + 1 / 2 + 1 / 3) / 4)
    assert found.mean["recall"] == pytest.approx(sum(recall) / 5) and found.mean["hit"] == pytest.approx(sum(hit) / 5)
    assert found.per_class[0] == pytest.approx(
        {"precision": (precision[0] + precision[1]) / 2, "recall": 0.5, "true_recall": 0.5, "hit": 2 / 3, "coverage": 1}
    )
    assert found.per_class[1] == pytest.approx(
        {"precision": 1 / 6, "recall": 0.5, "true_recall": 0.5, "hit": 0.5, "coverage": 0.5}
    )
    assert found.median["recall"] == 0.5 and found.median["coverage"] == found.mean["coverage"] == 0.75
    assert found.median["precision"] == pytest.approx((7 / 12 + 1 / 6) / 2)
    assert recall_at(mined, labels, labels, (1, 3, 5)) == {1: 3 / 5, 3: 3 / 5}


def test_recall_is_over_the_smaller_of_k_and_the_class():
    labels = torch.tensor([0] * 4 + [1] * 2)
    mined = torch.tensor([[1, 2], [0, 2], [3, 5], [4, 5], [5, 0], [4, 0]])
    found = judge(mined, labels, labels, torch.tensor([3, 3, 3, 3, 1, 1]))
    assert found.per_class[0]["recall"] == pytest.approx((2 / 2 + 2 / 2 + 1 / 2 + 0) / 4)
    assert found.per_class[0]["true_recall"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 0) / 4)
    assert found.per_class[1]["recall"] == found.per_class[1]["true_recall"] == 1


def test_eligible_counts_a_pair_once_and_no_empty_slot():
    query, bank = torch.tensor([0, 1, -1]), torch.tensor([0, 0, 1, 0, 1, -1])
    ids = torch.tensor([10, 11, 12, -1, 14, 15])
    groups = torch.tensor([7, 7, 7, 7, 8, 8])
    assert eligible(query, bank, None).tolist() == [3, 2, 0]
    forbid = Forbid(torch.tensor([10, 99, 12]), ids, torch.tensor([7, 8, -1]), groups, torch.tensor([[0, 0], [1, 2]]))
    assert eligible(query, bank, forbid).tolist() == [0, 0, 0]
    forbid = Forbid(torch.tensor([10, 99, 12]), ids, pairs=torch.tensor([[0, 0], [1, 2]]))
    assert eligible(query, bank, forbid).tolist() == [1, 1, 0]


def test_stages_kept_and_purity():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 3, (30,), generator=generator)
    bank = {view: torch.randn(30, 4, generator=generator) for view in "ab"}
    ids = torch.arange(30)
    forbid = Forbid(ids, ids)
    stages = official(30, ("a", "b"), num_stages=3, ratio=0.6, top_k=4)
    tally = StageTally(labels, labels, 3)
    mined = mine(bank, bank, stages, forbid=forbid, on_stage=tally.count, return_stages=True, block_q=7)
    candidates = eligible(labels, labels, forbid)
    found = judge_stages(tally.right[:, :3], tally.known[:, :3], candidates)
    for number, rows in enumerate(mined.stage_stats):
        kept, purity = [], []
        for query in range(30):
            if labels[query] < 0:
                continue
            same = {j for j in range(30) if labels[j] == labels[query] and j != query}
            there = {int(j) for j in rows[query]} & {j for j in range(30) if labels[j] >= 0}
            kept.append(len(there & same) / len(same))
            purity.append(len(there & same) / len(there))
        assert found[number].kept == pytest.approx(sum(kept) / len(kept))
        assert found[number].purity == pytest.approx(sum(purity) / len(purity))
    last = judge(mined.indices, labels, labels, candidates)
    assert found[2].purity == pytest.approx(last.mean["precision"])
    assert found[2].kept == pytest.approx(last.mean["true_recall"])


def test_shape_of_the_graph():
    mined = torch.tensor([[1, 2], [0, 2], [3, -1], [2, 0]])
    assert new_share(mined, torch.tensor([[1, 0], [3, 3], [3, 0], [2, 0]])) == pytest.approx(3 / 7)
    assert reciprocity(mined) == pytest.approx(4 / 7)  # 0-1, 1-0, 2-3, 3-2
    found = hubness(mined, 4)
    assert found == {"max": 3.0, "p99": 3.0, "never": 0.0}
    assert new_share(torch.full((2, 2), -1), mined[:2]) is None and reciprocity(torch.full((2, 2), -1)) is None


def test_nothing_to_judge():
    unknown = torch.tensor([-1, -1])
    found = judge(torch.tensor([[1], [0]]), unknown, unknown, eligible(unknown, unknown, None))
    assert found.queries == 0 and set(found.mean.values()) == set(found.median.values()) == {None}
    alone = torch.tensor([0, 1])
    ids = torch.arange(2)
    assert judge(torch.tensor([[1], [0]]), alone, alone, eligible(alone, alone, Forbid(ids, ids))).queries == 0
    assert recall_at(torch.tensor([[1], [0]]), unknown, unknown, (1,)) == {}
