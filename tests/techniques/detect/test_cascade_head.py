"""The cascade's head against torchvision's, against detectron2's, and against what can be computed by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn, tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FasterRCNN, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, roi_align

from effvl_cli.models.detector import detector
from effvl_cli.models.detector_spec import DetectorSpec
from effvl_cli.techniques.detect.box_pooling import PyramidRoIAlign
from effvl_cli.techniques.detect.box_sampling import SeededSampler, Truth, assigned
from effvl_cli.techniques.detect.cascade_head import (
    REG_WEIGHTS,
    CascadePredictor,
    CascadeRoIHeads,
    stage_iou,
)
from effvl_cli.techniques.detect.roi_gradient import pooled_from
from effvl_cli.techniques.detect.subclass import conditions_of, parents_of

FIXTURE = Path(__file__).parent / "data" / "cascade_head_detectron2.npz"
SIZE = (64, 96)
SINGLE = {"fg_iou": (0.5,), "reg_weights": REG_WEIGHTS[:1], "loss_weights": (1.0,)}
AS_TORCHVISION = {**SINGLE, "class_agnostic": False, "box_loss_beta": 1 / 9}


# --- torchvision -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> tuple[FasterRCNN, nn.Module]:
    """torchvision's Faster R-CNN, and ours with one stage, its settings and its weights."""
    spec = DetectorSpec.of(
        "light",
        num_stages=1,
        class_agnostic=False,
        box_loss_beta=1 / 9,
        fpn=16,
        head_width=16,
        min_size=(96,),
        max_size=160,
    )
    torch.manual_seed(0)
    ours = detector(spec, 4)
    anchors = AnchorGenerator(tuple((side,) for side in spec.anchors), ((0.5, 1.0, 2.0),) * 5)
    theirs = FasterRCNN(
        ours.backbone,
        rpn_anchor_generator=anchors,
        box_head=ours.roi_heads.box_heads[0],
        box_predictor=ours.roi_heads.box_predictors[0],
        min_size=96,
        max_size=160,
        rpn_pre_nms_top_n_train=2000,
        rpn_post_nms_top_n_train=1000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=300,
    )
    for part in ours.roi_heads.box_predictors[0].children():  # scores and boxes that differ
        nn.init.normal_(part.weight, std=0.3)
    theirs.rpn.head.load_state_dict(ours.rpn.head.state_dict())
    return theirs, ours


def _images() -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.rand(3, 96, 160, generator=draw), torch.rand(3, 130, 90, generator=draw)]


def test_one_stage_is_faster_rcnn_bit_for_bit(pair):
    theirs, ours = (network.eval() for network in pair)
    with torch.no_grad():
        wanted, found = theirs(_images()), ours(_images())
    for a, b in zip(wanted, found, strict=True):
        assert len(a["scores"]) > 20
        assert all(torch.equal(a[name], b[name]) for name in ("boxes", "scores", "labels"))


@pytest.mark.parametrize("empty", [False, True])
def test_one_stage_has_the_losses_of_faster_rcnn_bit_for_bit(pair, empty):
    theirs, ours = (network.train() for network in pair)
    boxes = tensor([[10.0, 12.0, 60.0, 70.0], [30.0, 5.0, 80.0, 44.0]])
    targets = [{"boxes": boxes, "labels": tensor([2, 4])}, {"boxes": boxes[:1] / 2, "labels": tensor([1])}]
    if empty:
        targets[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = []
    for network in (theirs, ours):
        torch.manual_seed(5)
        losses.append(network(_images(), targets))
    wanted, found = losses
    assert len(wanted) == len(found) == 4
    for name, value in wanted.items():
        stage = f"{name}_s0" if name in {"loss_classifier", "loss_box_reg"} else name
        assert torch.equal(value, found[stage]), name


# --- detectron2 ------------------------------------------------------------------------------------------------------


def _loaded(file: np.lib.npyio.NpzFile, **changes: object) -> CascadeRoIHeads:
    tensors = {name: torch.from_numpy(file[name]) for name in file.files}
    heads, predictors = [], []
    for k in range(3):
        head, predictor = TwoMLPHead(392, 24), CascadePredictor(24, 5)
        for layer, name in (
            (head.fc6, "fc1"),
            (head.fc7, "fc2"),
            (predictor.cls_score, "cls"),
            (predictor.bbox_pred, "box"),
        ):
            layer.load_state_dict({part: tensors[f"stage{k}.{name}.{part}"] for part in ("weight", "bias")})
        heads.append(head)
        predictors.append(predictor)
    weights = [tuple(row) for row in file["reg_weights"].tolist()]
    settings = {"box_roi_pool": PyramidRoIAlign(), "reg_weights": weights} | changes
    pool = settings.pop("box_roi_pool")
    return CascadeRoIHeads(pool, heads, predictors, **settings).eval()


def _answer(heads: CascadeRoIHeads, file: np.lib.npyio.NpzFile) -> dict[str, Tensor]:
    features = {str(k): torch.from_numpy(file[f"features.p{k + 2}"]) for k in range(4)}
    size = tuple(file["image_size_hw"].tolist())
    with torch.no_grad():
        return heads(features, [torch.from_numpy(file["proposals"])], [size])[0][0]


def test_three_stages_are_detectron2s():
    file = np.load(FIXTURE)
    found = _answer(_loaded(file), file)
    assert np.array_equal(found["labels"].numpy(), file["expected.labels"])
    np.testing.assert_allclose(found["boxes"].numpy(), file["expected.boxes"], atol=1e-3, rtol=0)
    np.testing.assert_allclose(found["scores"].numpy(), file["expected.scores"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"box_roi_pool": PyramidRoIAlign(aligned=False)},
        {"reg_weights": REG_WEIGHTS[:1] * 3},
        {"score_avg": "logit"},
    ],
)
def test_the_fixture_tells_other_heads_apart(change):
    file = np.load(FIXTURE)
    found = _answer(_loaded(file, **change), file)
    assert found["boxes"].shape != file["expected.boxes"].shape or not np.allclose(
        found["boxes"].numpy(), file["expected.boxes"], atol=1e-3
    )


@pytest.mark.parametrize("aligned", [False, True])
def test_the_gradient_of_pooling_is_torchvisions(aligned):
    """Boxes within, across and outside the borders, narrow ones and those that cover everything."""
    draw = torch.Generator().manual_seed(5)
    level = torch.rand(2, 3, 12, 16, dtype=torch.float64, generator=draw)
    corners = torch.rand(60, 2, dtype=torch.float64, generator=draw) * 90 - 15
    sides = 120 * torch.rand(60, 2, dtype=torch.float64, generator=draw) ** 3
    numbers = torch.randint(2, (60, 1), generator=draw).double()
    rois = torch.cat([numbers, corners, corners + sides], 1)
    weights = torch.rand(60, 3, 7, 7, dtype=torch.float64, generator=draw)
    found = []
    for pool in (roi_align, pooled_from):
        own = level.clone().requires_grad_()
        values = pool(own, rois, (7, 7), 0.25, 2, aligned)
        (values * weights).sum().backward()
        found.append((values.detach(), own.grad))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1].abs().max() > 1
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-10, atol=1e-12)
    own = level.clone().requires_grad_()
    pooled_from(own, rois[:0], (7, 7), 0.25, 2, aligned).sum().backward()
    assert torch.equal(own.grad, torch.zeros_like(level))


def test_boxes_are_pooled_in_float32_whatever_the_features_are():
    """At 1000 px half precision is 4 px off; features that grow from left to right tell where a box was."""
    level = torch.linspace(0, 1, 300).expand(1, 1, 20, 300)
    boxes = [tensor([[1003.0, 10.0, 1017.0, 24.0]])]
    exact = PyramidRoIAlign(strides=(4,))({"0": level}, boxes)
    half = PyramidRoIAlign(strides=(4,))({"0": level.bfloat16()}, boxes)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=2**-8, rtol=0)


def test_pooling_without_shift_is_torchvisions_and_pooling_every_level_is_the_same():
    draw = torch.Generator().manual_seed(0)
    features = {str(k): torch.rand(2, 3, 64 >> k, 96 >> k, generator=draw) for k in range(4)}
    corners = torch.rand(40, 2, generator=draw) * 150
    boxes = torch.cat([corners, corners + 4 + 220 * torch.rand(40, 2, generator=draw) ** 3], 1)
    boxes = clip_boxes_to_image(boxes, (256, 384)).split([25, 15])
    shapes = [(256, 384), (250, 380)]
    wanted = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)(features, list(boxes), shapes)
    for every in (False, True):
        pool = PyramidRoIAlign(aligned=False, every_level=every)
        assert torch.equal(pool(features, list(boxes), shapes), wanted)
    shifted = [PyramidRoIAlign(every_level=every)(features, list(boxes)) for every in (False, True)]
    assert torch.equal(*shifted) and not torch.allclose(shifted[0], wanted, atol=1e-3)


# --- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", REG_WEIGHTS)
def test_a_box_that_is_encoded_and_decoded_is_itself(weights):
    draw = torch.Generator().manual_seed(0)
    corners = torch.rand(50, 4, generator=draw) * 100
    boxes = torch.cat([corners[:, :2], corners[:, :2] + 3 + corners[:, 2:]], 1)
    shifted = boxes + 3 * torch.rand(50, 4, generator=draw) - 1
    coder = BoxCoder(weights)
    found = coder.decode_single(coder.encode_single(boxes, shifted), shifted)
    torch.testing.assert_close(found, boxes, atol=1e-3, rtol=0)


def test_regression_targets_by_hand():
    proposal, first, second = tensor([[0.0, 0.0, 10.0, 20.0]]), BoxCoder(REG_WEIGHTS[0]), BoxCoder(REG_WEIGHTS[1])
    shifted, doubled = proposal + tensor([1.0, 0.0, 1.0, 0.0]), tensor([[-5.0, 0.0, 15.0, 20.0]])
    assert first.encode_single(shifted, proposal)[0].tolist() == pytest.approx([1, 0, 0, 0])
    assert first.encode_single(doubled, proposal)[0].tolist() == pytest.approx([0, 0, 3.4657, 0], abs=1e-4)
    for box in (shifted, doubled):
        assert torch.equal(second.encode_single(box, proposal), 2 * first.encode_single(box, proposal))
    widest = first.decode_single(tensor([[0.0, 0.0, 1e4, 0.0]]), proposal)
    assert float(widest[0, 2] - widest[0, 0]) == pytest.approx(10 * 1000 / 16, rel=1e-5)


def test_a_proposal_is_positive_in_the_stages_whose_iou_it_reaches():
    proposal = tensor([[0.0, 0.0, 10.0, 10.0]])
    truth = Truth(tensor([[0.0, 0.0, 10.0, 6.5]]), tensor([3]), torch.zeros(0, 4))
    found = [assigned(proposal, truth, iou, iou) for iou in (0.5, 0.6, 0.7)]
    assert [int(labels) for labels, _, _ in found] == [3, 3, 0]
    assert [float(quality) for _, _, quality in found] == pytest.approx([0.65] * 3)
    assert int(assigned(proposal, truth, 0.7, 0.6)[0]) == -1  # neither


def test_proposals_in_an_ignored_box_are_no_negatives():
    boxes = tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [6.0, 0.0, 16.0, 10.0], [0.0, 0.0, 10.0, 8.0]])
    target = {
        "boxes": tensor([[0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 10.0]]),
        "labels": tensor([2, 1]),
        "ignore": tensor([False, True]),
    }
    truth = Truth.of(target, torch.float32)
    labels, matched, _ = assigned(boxes, truth, 0.9, 0.9)
    # In full, by half, by less than half; a positive stays one.
    assert labels.tolist() == [-1, -1, 0, 2] and matched[3].tolist() == [0, 0, 10, 8]
    nothing = Truth.of(target | {"ignore": tensor([True, True])}, torch.float32)
    assert assigned(boxes, nothing, 0.5, 0.5)[0].tolist() == [-1, -1, 0, -1]


def test_the_sampler_is_torchvisions_and_takes_a_generator():
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    labels = [torch.randint(-1, 3, (60,), generator=torch.Generator().manual_seed(k)) for k in range(2)]
    ours, theirs = SeededSampler(16, 0.25), BalancedPositiveNegativeSampler(16, 0.25)
    torch.manual_seed(9)
    wanted = theirs(labels)
    torch.manual_seed(9)
    found = ours(labels)
    ours.generators = [torch.Generator().manual_seed(9)] * 2
    again = ours(labels)
    for parts in (found, again):
        for a, b in zip(wanted, parts, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert [int(mask.sum()) for mask in found[0]] == [4, 4] and [int(mask.sum()) for mask in found[1]] == [12, 12]


class _Seen(nn.Module):
    """The pooler, which remembers the boxes that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.seen = PyramidRoIAlign(output_size=2, aligned=False), []

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: object) -> Tensor:
        self.seen.append([rows.clone() for rows in boxes])
        return self.pool(features, boxes, shapes)


def _heads(stages: int = 3, outputs: int = 5, *, agnostic: bool = True, **words: object) -> CascadeRoIHeads:
    torch.manual_seed(0)
    heads = [TwoMLPHead(4 * 4, 8) for _ in range(stages)]
    predictors = [CascadePredictor(8, outputs, class_agnostic=agnostic) for _ in range(stages)]
    for predictor in predictors:
        nn.init.normal_(predictor.cls_score.weight, std=0.5)
        nn.init.normal_(predictor.bbox_pred.weight, std=0.5)
    own = {"fg_iou": (0.5, 0.6, 0.7), "reg_weights": REG_WEIGHTS, "loss_weights": (1.0, 0.5, 0.25)}
    own = {name: values[:stages] for name, values in own.items()}
    return CascadeRoIHeads(_Seen(), heads, predictors, class_agnostic=agnostic, **(own | words))


def _features() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {str(k): torch.rand(2, 4, SIZE[0] // (4 << k), SIZE[1] // (4 << k), generator=draw) for k in range(4)}


PROPOSALS = [
    tensor([[4.0, 4.0, 36.0, 40.0], [0.0, 0.0, 96.0, 64.0], [40.0, 20.0, 60.0, 60.0]]),
    tensor([[8.0, 8.0, 16.0, 16.0], [30.0, 10.0, 90.0, 50.0]]),
]
SHAPES = [SIZE, (60, 90)]


def _targets() -> list[dict[str, Tensor]]:
    return [
        {"boxes": tensor([[4.0, 6.0, 38.0, 40.0], [44.0, 20.0, 62.0, 58.0]]), "labels": tensor([1, 3])},
        {"boxes": tensor([[28.0, 12.0, 88.0, 50.0]]), "labels": tensor([4])},
    ]


def _no_targets() -> list[dict[str, Tensor]]:
    return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in range(2)]


def test_stages_that_change_nothing_are_one_stage():
    one, three = _heads(1).eval(), _heads(3).eval()
    for k in range(3):
        three.box_heads[k].load_state_dict(one.box_heads[0].state_dict())
        three.box_predictors[k].cls_score.load_state_dict(one.box_predictors[0].cls_score.state_dict())
    for heads in (one, three):
        for predictor in heads.box_predictors:
            nn.init.zeros_(predictor.bbox_pred.weight)
        heads.expose_stages = True
    with torch.no_grad():
        wanted, found = (heads(_features(), PROPOSALS, SHAPES)[0] for heads in (one, three))
    for a, b, boxes, shape in zip(wanted, found, PROPOSALS, SHAPES, strict=True):
        assert len(a["boxes"]) and torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["labels"], b["labels"])
        torch.testing.assert_close(a["scores"], b["scores"], atol=1e-6, rtol=0)
        for stage in b["stage_boxes"]:
            torch.testing.assert_close(stage, clip_boxes_to_image(boxes, shape), atol=1e-5, rtol=0)


def test_refined_boxes_of_the_truth_do_not_reach_the_next_stage():
    heads = _heads(3).train()
    heads(_features(), [torch.zeros(0, 4)] * 2, SHAPES, _targets())
    for stage in heads.box_roi_pool.seen:
        assert all(torch.equal(rows, t["boxes"]) for rows, t in zip(stage, _targets(), strict=True))
    heads = _heads(3, resample=False).train()
    heads(_features(), [torch.zeros(0, 4)] * 2, SHAPES, _targets())
    first, second, third = heads.box_roi_pool.seen  # detectron2 keeps them, refined, and appends none
    assert [len(rows) for rows in first] == [len(rows) for rows in second] == [len(rows) for rows in third] == [2, 1]
    assert not torch.equal(first[0], second[0])


def test_no_gradient_flows_into_an_earlier_stage():
    heads = _heads(3).train()
    _, losses = heads(_features(), PROPOSALS, SHAPES, _targets())
    assert losses["loss_box_reg_s1"].item() > 0
    earlier = [*heads.box_heads[0].parameters(), *heads.box_predictors[0].parameters()]
    for later in ("loss_box_reg_s1", "loss_classifier_s2"):
        found = torch.autograd.grad(losses[later], earlier, allow_unused=True, retain_graph=True)
        assert all(gradient is None for gradient in found)


def test_a_loss_weight_scales_its_stage_and_no_other():
    losses = []
    for second in (0.5, 1.0):
        heads = _heads(3, loss_weights=(1.0, second, 0.25)).train()
        losses.append(heads(_features(), PROPOSALS, SHAPES, _targets())[1])
    for name, value in losses[0].items():
        assert torch.equal(value * (2 if name.endswith("s1") else 1), losses[1][name])


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("resample", [True, False])
@pytest.mark.parametrize("proposals", [PROPOSALS, [torch.zeros(0, 4)] * 2])
def test_nothing_to_find_still_reaches_every_parameter(agnostic, resample, proposals):
    heads = _heads(3, agnostic=agnostic, resample=resample).train()
    _, losses = heads(_features(), proposals, SHAPES, _no_targets())
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(losses[f"loss_box_reg_s{k}"].item() == 0 for k in range(3))
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in heads.parameters())


@pytest.mark.parametrize("agnostic", [True, False])
def test_without_proposals_nothing_is_found(agnostic):
    with torch.no_grad():
        found, losses = _heads(3, agnostic=agnostic).eval()(_features(), [torch.zeros(0, 4)] * 2, SHAPES)
    assert losses == {} and len(found) == 2
    for result in found:
        assert result["boxes"].shape == (0, 4) and result["scores"].shape == result["labels"].shape == (0,)
        assert (result["boxes"].dtype, result["labels"].dtype) == (torch.float32, torch.int64)


def test_a_head_that_was_used_for_inference_can_be_used_with_gradients():
    heads = _heads(3).eval()
    with torch.inference_mode():
        wanted = heads(_features(), PROPOSALS, SHAPES)[0][0]["scores"].clone()
    found = heads(_features(), PROPOSALS, SHAPES)[0][0]["scores"]
    assert len(found) and found.requires_grad and torch.equal(found.detach(), wanted)


def test_losses_of_one_stage_by_hand():
    """Two rows, one of them positive, through a head of which only the biases count."""
    heads = _heads(1, outputs=3, batch_size_per_image=8, box_loss_beta=1.0).train()
    for predictor in heads.box_predictors:
        nn.init.zeros_(predictor.cls_score.weight)
        nn.init.zeros_(predictor.bbox_pred.weight)
        predictor.cls_score.bias.data = tensor([1.0, 0.0, 2.0])
        predictor.bbox_pred.bias.data = tensor([0.0, 0.5, 0.0, 3.0])
    truth = tensor([[10.0, 10.0, 30.0, 30.0]])
    proposals = [tensor([[60.0, 40.0, 90.0, 60.0]]), torch.zeros(0, 4)]
    targets = [{"boxes": truth, "labels": tensor([2])}, _no_targets()[0]]
    _, losses = heads(_features(), proposals, SHAPES, targets)
    shares = torch.log_softmax(tensor([1.0, 0.0, 2.0]).double(), 0)
    assert losses["loss_classifier_s0"].item() == pytest.approx(float(-(shares[0] + shares[2]) / 2), rel=1e-6)
    assert losses["loss_box_reg_s0"].item() == pytest.approx((0.5 * 0.5**2 + (3 - 0.5)) / 2, rel=1e-6)
    assert int(heads.diagnostics["num_pos_s0"]) == 1


def test_classes_without_labels_do_not_count_against_negatives():
    logits = tensor([[1.0, 0.0, 2.0, 0.5, 1.5]] * 2)
    heads = _heads(1, parents=parents_of(2), conditions=conditions_of(2)).train()
    truth = Truth(torch.zeros(0, 4), tensor([]), torch.zeros(0, 4), tensor([True, True, False]))
    masked = heads._masked(logits, [tensor([0, 3])], [truth])
    assert masked[0].tolist() == [1.0, 0.0, -float("inf"), 0.5, -float("inf")] and torch.equal(masked[1], logits[1])
    nothing, everything = {"labelled": tensor([True, False, False])}, {"labelled": tensor([True, True, True])}
    losses = []
    for labelled in ({}, everything, nothing):
        heads = _heads(1, parents=parents_of(2), conditions=conditions_of(2)).train()
        targets = [target | labelled for target in _no_targets()]
        losses.append(heads(_features(), PROPOSALS, SHAPES, targets)[1]["loss_classifier_s0"].item())
    assert losses[0] == losses[1] > 0 and losses[2] == 0  # of one class that is left


def test_the_two_children_of_a_class_are_one_detection():
    """Two identical boxes: day .8 and night .7 of one class are one detection, of two classes two."""
    box = tensor([[10.0, 10.0, 30.0, 30.0]] * 2)
    for labels, kept in (((1, 3), 1), ((1, 4), 2)):
        heads = _heads(1, parents=parents_of(2), conditions=conditions_of(2)).eval()
        logits = torch.full((2, 5), 0.01)
        for row, (label, score) in enumerate(zip(labels, (0.8, 0.7), strict=True)):
            logits[row, label], logits[row, 0] = score, 0.97 - score
        for predictor in heads.box_predictors:
            predictor.forward = lambda features, logits=logits: (logits.log(), torch.zeros(2, 4))
        found = heads(_features(), [box, torch.zeros(0, 4)], SHAPES)[0][0]
        assert len(found["scores"]) == kept and float(found["scores"][0]) == pytest.approx(0.8)
        assert found["labels"].tolist() == [1, 2][:kept] and found["conditions"].tolist() == [0, 1][:kept]


@pytest.mark.parametrize("how", ["max", "sum"])
def test_boxes_of_children(how):
    """Each child has its own box: the best one's is taken, or, with sum, the mean by probability."""
    heads = _heads(1, agnostic=False, parents=parents_of(2), conditions=conditions_of(2), merge=how).eval()
    shares = tensor([[0.1, 0.2, 0.04, 0.6, 0.06], [0.9, 0.04, 0.02, 0.02, 0.02]])
    deltas = torch.zeros(2, 5, 4)
    deltas[0, 1, 0], deltas[0, 3, 0] = 2.0, -2.0  # by a fifth of the width, 20 px
    for predictor in heads.box_predictors:
        predictor.forward = lambda features: (shares.log(), deltas.flatten(1))
    rows = tensor([[20.0, 20.0, 40.0, 40.0], [50.0, 20.0, 70.0, 40.0]])
    found = heads(_features(), [rows, torch.zeros(0, 4)], SHAPES)[0][0]
    first = {"max": 16.0, "sum": 20 + 4 * (0.2 - 0.6) / 0.8}[how]
    assert found["boxes"][0, 0] == pytest.approx(first) and found["labels"][0] == 1 and found["conditions"][0] == 1
    assert found["scores"][0] == pytest.approx({"max": 0.6, "sum": 0.8}[how])


def test_the_frame_gates_its_children():
    heads = _heads(1, parents=parents_of(2), conditions=conditions_of(2), merge="gated").eval()
    shares = tensor([[0.1, 0.2, 0.04, 0.6, 0.06]])
    for predictor in heads.box_predictors:
        predictor.forward = lambda features: (shares.log(), torch.zeros(1, 4))
    proposals = [tensor([[20.0, 20.0, 40.0, 40.0]]), torch.zeros(0, 4)]
    for condition, score in ((0, 0.2), (1, 0.6), (-1, 0.6), (None, 0.6)):
        targets = None if condition is None else [{"condition": tensor(condition)}] * 2
        found = heads(_features(), proposals, SHAPES, targets)[0][0]
        assert float(found["scores"][0]) == pytest.approx(score)


def test_gradients_of_features_can_be_divided_by_the_stages():
    gradients = []
    for scaled in (False, True):
        features = {name: value.requires_grad_() for name, value in _features().items()}
        _, losses = _heads(3, stage_grad_scale=scaled).train()(features, PROPOSALS, SHAPES, _targets())
        gradients.append(torch.autograd.grad(sum(losses.values()), features["0"])[0])
    torch.testing.assert_close(gradients[0] / 3, gradients[1])


def test_iou_of_the_stages_follows_the_same_proposals():
    proposals = tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 4.0], [50.0, 50.0, 60.0, 60.0]])
    truth = tensor([[0.0, 0.0, 10.0, 8.0]])
    after = torch.stack([proposals - tensor([0.0, 0.0, 0.0, 1.0]), truth.expand(3, 4)])
    # Of the first two: .8 and .5 before, 8/9 and 3/8 after the first stage, both 1 after the second.
    assert stage_iou(proposals, after, truth).tolist() == pytest.approx([2, 1.3, 8 / 9 + 3 / 8, 2])
    assert stage_iou(proposals, after, truth[:0]).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"fg_iou": (0.5, 0.6)}, "fg_iou has length 2, not 3"),
        ({"loss_weights": (1.0,)}, "loss_weights has length 1"),
        ({"reg_weights": REG_WEIGHTS[:2]}, "reg_weights has length 2"),
        ({"bg_iou": (0.5,)}, "bg_iou has length 1"),
        ({"fg_iou": (0.5, 0.6, 1.0)}, "not inside"),
        ({"bg_iou": (0.5, 0.7, 0.7)}, "exceeds fg_iou"),
        ({"parents": [0, 1]}, "parents has length 2, not 5"),
    ],
)
def test_stages_that_do_not_fit_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        _heads(3, **words)


def test_ious_that_fall_are_warned_of():
    with pytest.warns(UserWarning, match="falls from one stage to the next"):
        _heads(3, fg_iou=(0.6, 0.5, 0.7))
