"""Labels of subclasses, and how their scores become one again."""

import pytest
import torch
from torch import tensor
from torchvision.ops import batched_nms

from effvl_cli.techniques.detect.subclass import Children, child_labels, conditions_of, merge, parents_of


def test_night_is_numbered_after_day():
    assert parents_of(3) == [0, 1, 2, 3, 1, 2, 3]
    assert conditions_of(3) == [-1, 0, 0, 0, 1, 1, 1]
    labels = tensor([3, 1, 0])
    assert child_labels(labels, 0, 3).tolist() == [3, 1, 0]
    assert child_labels(labels, 1, 3).tolist() == [6, 4, 0]
    assert child_labels(labels, 2, 3, conditions=3).tolist() == [9, 7, 0]


def test_without_subclasses_a_label_is_its_own():
    assert parents_of(3, 1) == [0, 1, 2, 3] and conditions_of(3, 1) == [-1, -1, -1, -1]
    assert child_labels(tensor([2, 3]), 0, 3, conditions=1).tolist() == [2, 3]


def test_what_is_absent_has_no_output_and_its_boxes_go_to_the_other_child():
    present = tensor([[True, True, False, False], [True, False, True, False]])
    parents = parents_of(4, present=present)
    assert parents == [0, 1, 2, 4, 1, 3]  # the fourth class has no boxes at all, and keeps its first child
    assert conditions_of(4, present=present) == [-1, 0, 0, 0, 1, 1]
    for night, wanted in ((0, [1, 2, 5, 3]), (1, [4, 2, 5, 3])):
        found = child_labels(tensor([1, 2, 3, 4]), night, 4, present)
        assert found.tolist() == wanted
        assert [parents[k] for k in found] == [1, 2, 3, 4]


def test_merge_by_hand():
    parents, row = tensor([0, 1, 2, 1, 2]), tensor([[0.1, 0.2, 0.05, 0.6, 0.05]])
    torch.testing.assert_close(merge(row, parents, "max"), tensor([[0.1, 0.6, 0.05]]))
    torch.testing.assert_close(merge(row, parents, "sum"), tensor([[0.1, 0.8, 0.1]]))
    day, night = tensor([True, True, True, False, False]), tensor([True, False, False, True, True])
    torch.testing.assert_close(merge(row, parents, "gated", day), tensor([[0.1, 0.2, 0.05]]))
    torch.testing.assert_close(merge(row, parents, "gated", night), tensor([[0.1, 0.6, 0.05]]))
    torch.testing.assert_close(merge(row, parents, "gated"), tensor([[0.1, 0.6, 0.05]]))


def test_classes_with_fewer_children_are_not_counted_twice():
    parents, row = tensor([0, 1, 2, 1]), tensor([[0.1, 0.2, 0.4, 0.3]])
    torch.testing.assert_close(merge(row, parents, "sum"), tensor([[0.1, 0.5, 0.4]]))
    only_night = tensor([False, False, False, True])
    torch.testing.assert_close(merge(row, parents, "gated", only_night), tensor([[0.1, 0.3, 0.4]]))


def test_the_best_child_is_named():
    rows = tensor([[0.1, 0.2, 0.05, 0.6, 0.05], [0.1, 0.5, 0.1, 0.1, 0.2]])
    for how in ("max", "sum"):
        _, best = Children.of([0, 1, 2, 1, 2]).merged(rows, how)
        assert best[:, 1].tolist() == [3, 1] and best[1, 2] == 4
    _, best = Children.of([0, 1, 2]).merged(rows[:, :3], "max")
    assert best.tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("seed", [0, 1])
def test_max_and_nms_are_relabelling_and_nms_for_each_class(seed):
    draw = torch.Generator().manual_seed(seed)
    corners = torch.rand(200, 2, generator=draw) * 60
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(200, 2, generator=draw)], 1)
    parents = tensor([0, 1, 2, 3, 1, 2, 3])
    scores = torch.softmax(2 * torch.randn(200, 7, generator=draw), 1)

    def kept(scores: torch.Tensor, classes: torch.Tensor) -> list[tuple[float, int]]:
        rows = torch.arange(200).repeat_interleave(len(classes))
        labels, flat = classes.repeat(200), scores.reshape(-1)
        chosen = batched_nms(boxes[rows], flat, labels, 0.5)
        return [(float(flat[k]), int(labels[k])) for k in chosen]

    merged = kept(merge(scores, parents, "max")[:, 1:], tensor([1, 2, 3]))
    relabelled = kept(scores[:, 1:], parents[1:])
    assert merged == relabelled and len(merged) > 50
