"""Retrieval: R@K on examples small enough to be counted, centring, ties, and chance."""

import itertools

import pytest
import torch

from effvl_cli.techniques.cpr_mine import retrieval
from effvl_cli.techniques.cpr_mine.retrieval import centred, chance, hits, nearest


def test_recall_of_four_queries_is_counted():
    """Queries at 0, 90, 180 and 270 degrees; gallery rows a little beside them."""
    queries = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    gallery = torch.tensor([[1.0, 0.1], [0.1, 1], [-1, 0.1], [0.2, -1], [-0.1, -1]])
    found = nearest(*centred(queries, gallery, "none"), 3)
    assert found.indices.tolist() == [[0, 3, 1], [1, 0, 2], [2, 4, 1], [4, 3, 0]]
    labels, others = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 2, 1, 3, 2])
    got = hits(found, labels, others, (1, 2, 3))
    assert {k: row.tolist() for k, row in got.items()} == {
        1: [1, 0, 0, 0],  # nearest labels: 0, 2, 1, 2
        2: [1, 0, 1, 1],
        3: [1, 1, 1, 1],
    }


def test_unknown_labels_hit_nothing():
    found = nearest(torch.eye(2), torch.eye(2), 5)
    got = hits(found, torch.tensor([-1, 1]), torch.tensor([-1, 1]), (1, 50))
    assert got[1].tolist() == [0, 1] and got[50].tolist() == [0, 1]


def test_centring_cancels_a_constant_shift():
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(n, 6, generator=generator) for n in (5, 9))
    own = centred(queries + 3, gallery - 2, "own")
    torch.testing.assert_close(own[0], centred(queries, gallery, "own")[0])
    torch.testing.assert_close(own[1], centred(queries, gallery, "own")[1])
    moved = centred(queries + 3, gallery + 3, "gallery")
    torch.testing.assert_close(moved[0], centred(queries, gallery, "gallery")[0])
    shift = gallery.double().mean(0)
    by_hand = (queries.double() - shift) / (queries.double() - shift).norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved[0].double(), by_hand, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(own[0], moved[0], atol=1e-2)
    assert torch.equal(centred(queries, gallery, "none")[0], torch.nn.functional.normalize(queries, dim=1))


def test_equal_similarities_are_in_the_order_of_the_gallery_and_blocks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    queries = torch.randint(-2, 3, (40, 3), generator=generator).float()
    gallery = torch.randint(-2, 3, (60, 3), generator=generator).float()
    expected = []
    for row in (queries @ gallery.T).tolist():
        expected.append(sorted(range(60), key=lambda j, row=row: (-row[j], j))[:7])
    assert nearest(queries, gallery, 7).indices.tolist() == expected
    monkeypatch.setattr(retrieval, "_BLOCK", 120)
    assert nearest(queries, gallery, 7).indices.tolist() == expected


def test_a_row_can_be_left_out_and_a_small_gallery_gives_what_it_has():
    rows = torch.eye(3)
    found = nearest(rows, rows, 5, without=torch.tensor([0, -1, 2]))
    assert found.indices.tolist() == [[1, 2, -1], [1, 0, 2], [0, 1, -1]]
    assert nearest(rows[:0], rows, 2).indices.shape == (0, 2)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_chance_is_the_mean_over_all_orders_of_the_gallery(k):
    labels, others = torch.tensor([0, 0, 1, 2, -1]), torch.tensor([0, 0, 1, 1, 1])
    subsets = list(itertools.combinations(others.tolist(), k))
    known = labels[labels >= 0].tolist()
    expected = sum(sum(label in subset for subset in subsets) / len(subsets) for label in known) / len(known)
    assert chance(labels, others, (k,))[k] == pytest.approx(expected)
