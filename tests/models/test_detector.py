"""Detectors: sizes of the presets, names that say what they are made of, start weights, and what they give."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead

from effvl_cli.config.options import ModelOptions
from effvl_cli.core.checkpoint import save_model
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.models import network as networks
from effvl_cli.models.detector import detector, spec_of
from effvl_cli.models.detector_spec import DetectorSpec
from effvl_cli.models.detector_weights import start, with_norm
from effvl_cli.techniques.detect.shared_batch import Group, use_group

SMALL = {"fpn": 8, "head_width": 8, "rois": 8, "min_size": (64,), "max_size": 96}


@pytest.mark.parametrize(("preset", "stages", "millions"), [("paper", 3, 56.1), ("light", 3, 17.06), ("tiny", 3, 0.68)])
def test_presets_have_the_sizes_of_their_table(preset, stages, millions):
    with torch.device("meta"):
        module = detector(DetectorSpec.of(preset, num_stages=stages), 4)
    count = sum(p.numel() for p in module.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.05 if preset == "paper" else 0.005)


def test_a_name_says_all_that_differs_and_is_read_back():
    spec = DetectorSpec.of(
        "tiny",
        num_stages=1,
        class_agnostic=False,
        box_loss_beta=1 / 9,
        head_width=179,
        merge="sum",
        norm="group",
        conditions=("day", "night"),
        absent=("1.2",),
    )
    network = networks.build(spec.name, seed=0, num_classes=3)
    assert spec_of(network) == spec == network.module.spec
    assert network.module.roi_heads.parents.tolist() == [0, 1, 2, 3, 1, 3]
    assert network.module.roi_heads.conditions.tolist() == [-1, 0, 0, 0, 1, 1]
    assert DetectorSpec.of("light").name == "cascade-rcnn:light"
    assert DetectorSpec.of("light", num_stages=2).name == "cascade-rcnn:light,stages=2"
    assert DetectorSpec.parse("light,iou=.4/.5/.6").iou == (0.4, 0.5, 0.6)


def test_further_stages_go_on_as_the_published_three_do() -> None:
    spec = DetectorSpec.of("tiny", num_stages=4)
    assert spec.iou == (0.5, 0.6, 0.7, 0.8)
    assert spec.reg_weights == (10, 20, 30, 40) and spec.loss_weights == (1, 0.5, 0.25, 0.125)
    assert spec.name == "cascade-rcnn:tiny,stages=4"
    assert DetectorSpec.parse("tiny,stages=4") == spec


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("huge", "unknown --preset 'huge'"),
        ("tiny,stage=1", "unknown word 'stage'"),
        ("tiny,stages=x", "stages=x cannot be read"),
        ("tiny,agnostic=2", "agnostic=2 cannot be read"),
        ("tiny,norm=layer", "norm=layer cannot be read"),
        ("tiny,stages=0", "--num-stages 0"),
        ("tiny,stages=6", "--iou 0.5,0.6,0.7,0.8,0.9 has 5 values for 6 stages"),
        ("tiny,iou=.5/.6/1.", "not inside"),
        ("tiny,anchors=8/16", "not 5 sides"),
        ("tiny,min=300", "exceeds --max-size 256"),
        ("tiny,conditions=day/night,absent=2.1", "no such subclass"),
    ],
)
def test_names_that_do_not_fit_are_refused(argument, message):
    with pytest.raises(UsageError, match=message):
        networks.build(f"cascade-rcnn:{argument}", seed=0, num_classes=3)


def _images() -> list[Tensor]:
    return [torch.rand(3, 64, 96), torch.rand(3, 50, 60)]


def _targets() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[4.0, 4.0, 40.0, 30.0], [50.0, 10.0, 80.0, 50.0]])
    return [
        {"boxes": boxes, "labels": torch.tensor([1, 5]), "ignore": torch.tensor([False, True])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


def test_it_gives_losses_in_training_and_boxes_in_pixels_of_the_images_in_evaluation():
    spec = DetectorSpec.of("tiny", **SMALL, conditions=("day", "night"), score_thresh=0.01)
    module = networks.build(spec.name, seed=0, num_classes=4).module
    losses = module.train()(_images(), _targets())
    stages = {f"loss_{part}_s{k}" for part in ("classifier", "box_reg") for k in range(3)}
    assert set(losses) == stages | {"loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in module.parameters())
    module.eval()
    module.expose = True
    large = torch.rand(3, 128, 192)
    small = torch.nn.functional.interpolate(large[None], size=(64, 96), mode="bilinear", align_corners=False)[0]
    with torch.no_grad():
        found, inside = module([large]), module([small])
    assert len(found[0]["boxes"]) > 0 and found[0]["boxes"].max() > 96
    for name in ("boxes", "proposals", "stage_boxes"):
        torch.testing.assert_close(found[0][name], inside[0][name] * 2, atol=0.01, rtol=1e-4)
    assert found[0]["labels"].min() >= 1 and found[0]["labels"].max() <= 4
    assert set(found[0]["conditions"].tolist()) <= {0, 1}
    assert len(found[0]["stages"]) == 3 and torch.equal(found[0]["stages"][2]["boxes"], found[0]["boxes"])
    with torch.no_grad():
        pixels = (large * 255).to(torch.uint8)
        assert torch.equal(module([pixels])[0]["boxes"], module([pixels.float() / 255])[0]["boxes"])


def test_an_image_of_which_nothing_is_learned_has_losses_of_zero():
    module = networks.build(DetectorSpec.of("tiny", **SMALL).name, seed=0, num_classes=4).module.train()
    everything = torch.tensor([[-1000.0, -1000.0, 1000.0, 1000.0]])
    targets = [{"boxes": everything, "labels": torch.tensor([0]), "ignore": torch.tensor([True])}] * 2
    losses = module(_images(), targets)
    assert all(value.item() == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_draws_follow_the_generator_and_leave_the_global_stream_alone():
    spec = DetectorSpec.of("tiny", **{**SMALL, "min_size": (48, 56, 64)})
    module = networks.build(spec.name, seed=0, num_classes=5).module.train()
    images, targets = _images(), _targets()
    state = torch.get_rng_state()
    first, again, other = (
        module(images, targets, [torch.Generator().manual_seed(seed + k) for k in range(2)]) for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_mean_loss_of_processes_is_that_of_one():
    """Two processes with one image each, of different sizes; most of the second image is ignored."""
    spec = DetectorSpec.of("tiny", **{**SMALL, "rois": 64}, norm="group", pre_nms=(50, 50), post_nms=(50, 50))
    module = networks.build(spec.name, seed=0, num_classes=5).module.train()
    images, targets = _images(), _targets()
    targets[1] = {
        "boxes": torch.cat([targets[1]["boxes"], torch.tensor([[-200.0, -200.0, 70.0, 200.0]])]),
        "labels": torch.cat([targets[1]["labels"], torch.tensor([1])]),
        "ignore": torch.tensor([False] * len(targets[1]["boxes"]) + [True]),
    }

    def losses(chosen, total=lambda rows: rows):
        sides = iter([3, 64, 96])  # of the larger image
        use_group(module, Group(3 - len(chosen), total, lambda side: next(sides)))
        seeded = [torch.Generator().manual_seed(k) for k in chosen]
        return module([images[k] for k in chosen], [targets[k] for k in chosen], seeded)

    whole = losses([0, 1])
    asked = [[], []]
    for own in (0, 1):
        losses([own], lambda rows, own=own: asked[own].append(rows.clone()) or rows)
    sums = [sum(pair) for pair in zip(*asked, strict=True)]
    answers = [iter(sums), iter(sums)]
    parts = [losses([own], lambda rows, own=own: next(answers[own])) for own in (0, 1)]
    assert all(not torch.equal(asked[0][k], asked[1][k]) for k in (0, 4))  # anchors drawn, rows of the first stage
    for name, value in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, value, atol=1e-6, rtol=1e-5)


def test_proposals_on_objects_that_nobody_marked_are_not_taught_as_background():
    """Four anchors, the first on the only box; objectness is above .5 on the first two."""
    rpn = networks.build(DetectorSpec.of("tiny", **SMALL).name, seed=0, num_classes=2).module.rpn
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    target = {"boxes": anchors[:1].clone(), "labels": torch.tensor([1])}
    taught = {}
    for name, labelled in {"all": None, "every": [True] * 3, "partly": [True, True, False]}.items():
        more = {} if labelled is None else {"labelled": torch.tensor(labelled)}
        objectness = torch.tensor([[2.0], [1.0], [-1.0], [0.0]], requires_grad=True)
        deltas = torch.zeros(4, 4, requires_grad=True)
        labels, matched = rpn.assign_targets_to_anchors([anchors], [target | more])
        rpn.compute_loss(objectness, deltas, labels, matched)[0].backward()
        taught[name] = objectness.grad.flatten()
    assert torch.equal(taught["all"], taught["every"]) and (taught["all"] != 0).all()
    assert (taught["partly"] != 0).tolist() == [True, False, True, True]
    shares = torch.sigmoid(torch.tensor([2.0, -1.0, 0.0])) - torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(taught["partly"][[0, 2, 3]], shares / 3)


def test_bf16_keeps_boxes_in_float32():
    module = networks.build(DetectorSpec.of("tiny", **SMALL, score_thresh=0.01).name, seed=0, num_classes=5).module
    with torch.autocast("cpu", torch.bfloat16):
        losses = module.train()(_images(), _targets())
        with torch.no_grad():
            found = module.eval()(_images())
    assert all(torch.isfinite(value) and value.dtype == torch.float32 for value in losses.values())
    assert found[0]["boxes"].dtype == found[0]["scores"].dtype == torch.float32


def test_a_run_loads_as_any_other(tmp_path):
    spec = DetectorSpec.of("tiny", **SMALL, num_stages=2, conditions=("day", "night"), absent=("1.1",))
    network = networks.build(spec.name, seed=3, num_classes=4)
    path = tmp_path / networks.CHECKPOINT
    save_model(path, network.module.state_dict(), network.describe() | {"classes": ["a", "b", "c", "d"]})
    again = networks.load(None, str(tmp_path), default="cascade-rcnn:tiny", kind="detector", num_classes=4)
    assert spec_of(again) == spec
    for key, value in again.module.state_dict().items():
        assert torch.equal(value, network.module.state_dict()[key])


def _start(spec: DetectorSpec, weights: str | None, said: list[str], classes: int = 4) -> networks.Network:
    return start(spec, weights, num_classes=classes, seed=1, options=ModelOptions(), log=said.append)


def test_norm_follows_the_weights(tmp_path):
    spec = DetectorSpec.of("tiny", **SMALL)
    assert with_norm(spec, "auto", None, 8).norm == "batch" and with_norm(spec, "auto", "none", 2).norm == "group"
    frozen = with_norm(spec, "auto", "file.pt", 8)
    assert (frozen.norm, frozen.trainable_layers) == ("frozen", 3)
    with pytest.raises(UsageError, match="--norm frozen with random weights"):
        with_norm(spec, "frozen", "none", 8)
    earlier = networks.build(with_norm(spec, "group", None, 8).name, seed=0, num_classes=4)
    save_model(tmp_path / networks.CHECKPOINT, earlier.module.state_dict(), earlier.describe())
    assert with_norm(spec, "auto", str(tmp_path), 8).norm == "group"


def test_a_run_with_other_classes_leaves_its_predictors_random(tmp_path):
    spec, said = DetectorSpec.of("tiny", **SMALL), []
    earlier = networks.build(spec.name, seed=0, num_classes=3)
    save_model(tmp_path / networks.CHECKPOINT, earlier.module.state_dict(), earlier.describe())
    found = _start(spec, str(tmp_path), said).module.state_dict()
    names = [f"roi_heads.box_predictors.{k}.cls_score.{part}" for k in range(3) for part in ("weight", "bias")]
    assert len(said) == 1 and all(name in said[0] for name in names) and "bbox_pred" not in said[0]
    kept = {key for key, value in earlier.module.state_dict().items() if torch.equal(value, found[key])}
    assert set(names) <= found.keys() - kept and "roi_heads.box_heads.2.fc7.weight" in kept


def test_a_faster_rcnn_of_torchvision_starts_every_stage(tmp_path):
    ours = DetectorSpec.of("light", num_stages=2, fpn=8, head_width=8)
    backbone = detector(replace(ours, norm="frozen"), 4).backbone
    theirs = FasterRCNN(backbone, box_head=TwoMLPHead(8 * 49, 8), box_predictor=FastRCNNPredictor(8, 5))
    torch.save(theirs.state_dict(), tmp_path / "frcnn.pt")
    spec, said = with_norm(ours, "frozen", "frcnn.pt", 8), []
    module = _start(spec, str(tmp_path / "frcnn.pt"), said).module
    for k in range(2):
        assert torch.equal(module.roi_heads.box_heads[k].fc6.weight, theirs.roi_heads.box_head.fc6.weight)
        assert torch.equal(
            module.roi_heads.box_predictors[k].cls_score.bias, theirs.roi_heads.box_predictor.cls_score.bias
        )
    assert "2 stages start as copies" in said[0] and "bbox_pred" in said[1] and "cls_score" not in said[1]
    assert torch.equal(module.backbone.body.layer4[1].conv2.weight, theirs.backbone.body.layer4[1].conv2.weight)
    assert [p.requires_grad for p in module.backbone.body.parameters()].count(False) == 5  # conv1, layer1


def test_a_classifier_is_a_backbone(tmp_path):
    classifier = networks.build("tiny:thin-resnet", seed=0, num_classes=7)
    save_model(tmp_path / networks.CHECKPOINT, classifier.module.state_dict(), classifier.describe())
    for norm in ("frozen", "batch"):
        said: list[str] = []
        spec = with_norm(DetectorSpec.of("tiny", **SMALL), norm, str(tmp_path), 8)
        module = _start(spec, str(tmp_path), said).module
        assert torch.equal(module.backbone.body.layer4[0].conv1.weight, classifier.module.layer4[0].conv1.weight)
        assert said == [
            f"--weights {tmp_path}: weights of a classifier: the backbone is pretrained, all else is random"
        ]


def test_a_file_of_torchvisions_resnet_is_a_backbone(tmp_path):
    theirs, said = resnet18(weights=None, num_classes=3), []
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "resnet18.pth")
    path = str(tmp_path / "resnet18.pth")
    spec = with_norm(DetectorSpec.of("light", fpn=8, head_width=8, num_stages=1), "auto", path, 8)
    module = _start(spec, path, said).module
    assert spec.norm == "frozen" and "the backbone is pretrained" in said[-1]
    assert torch.equal(module.backbone.body.layer3[1].conv2.weight, theirs.layer3[1].conv2.weight)


def test_weights_of_something_else_are_refused(tmp_path):
    torch.save({"visual.proj": torch.zeros(3, 3)}, tmp_path / "other.pt")
    spec = DetectorSpec.of("tiny", **SMALL)
    with pytest.raises(ModelError, match="neither a detector's nor a ResNet's"):
        _start(spec, str(tmp_path / "other.pt"), [])
    with pytest.raises(ModelError, match="no imagenet weights of the tiny backbone"):
        _start(spec, "imagenet", [])
    with pytest.raises(ModelError, match="Give imagenet"):
        _start(DetectorSpec.of("light"), "imagenett", [])
