"""Parts of the images, figures of each, and what detectors are built from the training images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from effvl_cli.config.detect import TrainConfig
from effvl_cli.config.validate import validate
from effvl_cli.core.run import unopened
from effvl_cli.data.boxes import load_boxes
from effvl_cli.engines.detect.box_splits import augment_of, thinned
from effvl_cli.engines.detect.detecting import _gathered
from effvl_cli.engines.detect.detection_figures import measure, parts_of, per_class, per_part, slug
from effvl_cli.engines.detect.detection_task import Trainee
from effvl_cli.engines.detect.detector_training import _plan
from effvl_cli.engines.detect.detectors import asked_spec, boxes_by_condition, spec_for
from effvl_cli.models.detector import detector
from effvl_cli.models.detector_spec import DetectorSpec

SCENES = "road-scenes:scenes=12,val=2,test=2"
pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.fixture
def source():
    return load_boxes(SCENES, "train")


def config_of(**options):
    return validate(TrainConfig, {"data": SCENES, "steps": 4, **options})


def shifted(source, share=0.0):
    """The truth, moved to the right by a share of its width."""
    found = []
    for record in source.records:
        move = np.zeros_like(record.boxes)
        move[:, [0, 2]] = share * (record.boxes[:, 2] - record.boxes[:, 0])[:, None]
        found.append({"boxes": record.boxes + move, "scores": np.ones(len(move)), "labels": record.labels})
    return found


def test_parts_are_times_and_those_sources_and_scenes_that_share_images(source):
    records = [replace(r, source="ab"[k % 2], seq=f"s{k // 4}") for k, r in enumerate(source.records)]
    found = parts_of(records, ("time", "source", "scene"))
    assert set(found) == {"day", "night", "source a", "source b", "scene s0", "scene s1", "scene s2"}
    assert found["scene s1"] == [4, 5, 6, 7] and found["source b"] == list(range(1, 12, 2))
    assert sorted(found["day"] + found["night"]) == list(range(12))
    assert set(parts_of(source.records, ("source", "scene"))) == set()  # one source, a scene for each image


def test_figures_of_day_and_night_are_those_of_their_images_alone(source):
    """At night every box is found, by day each is off by an IoU of .72: AP .5, as at .50 to .70 alone."""
    offset = (1 - 0.72) / (1 + 0.72)
    right, wrong = shifted(source), shifted(source, offset)
    found = [a if r.time == "night" else b for r, a, b in zip(source.records, right, wrong, strict=True)]
    measured = measure(source, found)
    numbers = {part: row["ap"] for part, row in per_part(measured).items()}
    assert numbers == {"night": pytest.approx(1.0), "day": pytest.approx(0.5)}
    for row in per_class(measured).values():
        if row["n_gt_day"]:
            assert (row["ap_day"], row["ap50_day"], row["ap75_day"]) == (pytest.approx(0.5), pytest.approx(1), 0)
    counts = boxes_by_condition(source)
    assert [row["n_gt_night"] for row in per_class(measured).values()] == counts[1].tolist()
    assert counts.sum() == sum(int((~record.ignore).sum()) for record in source.records)


def test_detections_of_images_are_gathered_with_those_that_have_none():
    boxes = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    one = {"boxes": boxes, "scores": torch.tensor([0.9, 0.1]), "labels": torch.tensor([2, 91])}
    one["conditions"] = torch.tensor([-1, 1])
    nothing = {key: value[:0] for key, value in one.items()}
    found = _gathered([nothing, one, None], 3)
    for key, value in one.items():
        assert torch.equal(found[1][key], value) and len(found[0][key]) == len(found[2][key]) == 0


def test_subclasses_that_no_image_has_are_left_out_with_a_warning(source):
    config = config_of(subclass=True)
    run = unopened("detect train", config)
    assert spec_for(config, source, run, None).absent == ()
    assert any("boxes by night, which is little" in text for text in run.report.warnings)
    day = source.with_records([record for record in source.records if record.time == "day"])
    run = unopened("detect train", config)
    assert spec_for(config, day, run, None).absent == ("1.1", "1.2", "1.3", "1.4")
    assert run.report.warnings == ["no boxes of night images: subclasses of the other condition alone"]
    spared = [r.keep((r.labels != 2) | (r.time == "day")) for r in source.records]
    run = unopened("detect train", config)
    assert spec_for(config, source.with_records(spared), run, None).absent == ("1.2",)
    assert any(text.startswith("vehicle has 0 boxes by night") for text in run.report.warnings)
    assert spec_for(config_of(), source, run, None).conditions == ()


@pytest.mark.parametrize(
    ("given", "sides"),
    [({}, ((160,), 256)), ({"max_size": 128}, ((80,), 128)), ({"max_size": 384}, ((240,), 384))],
)
def test_the_shorter_side_follows_the_longest(given, sides):
    spec = asked_spec(config_of(**given))
    assert (spec.min_size, spec.max_size) == sides
    assert asked_spec(config_of(min_size="64,96", max_size=128)).min_size == (64, 96)


def test_presets_bring_the_training_that_suits_them():
    tiny, light = config_of(), config_of(preset="light", batch_size=32)
    assert (tiny.optimizer, tiny.lr, tiny.lr_decay, tiny.batch_size) == ("adamw", 1.5e-3, "cosine", 4)
    assert (light.optimizer, light.lr, light.lr_decay) == ("sgd", pytest.approx(0.04), "step")
    assert config_of(preset="paper").lr == pytest.approx(0.01) and config_of(lr=0.5).lr == 0.5
    assert validate(TrainConfig, {"data": "coco:x"}).subclass and not tiny.subclass


@pytest.mark.parametrize(
    ("given", "first", "tenth"), [({}, 0, 9 / 30), ({"warmup": 0.1}, 0, 9 / 10), ({"warmup": 5}, 0, 1)]
)
def test_the_rate_rises_over_steps_or_a_share_of_the_training(given, first, tenth, source):
    from effvl_cli.engines.detect.box_splits import TrainingBatches

    batches = TrainingBatches(lambda k: iter(()), 3)
    plan = _plan(config_of(steps=100, lr_decay="step", **given), batches, "train", chosen=True)
    assert plan.rate(0) == first and plan.rate(9) == pytest.approx(tenth)
    assert plan.eval_every == 3 and plan.best == "ap_val"
    assert plan.rate(70) == pytest.approx(0.1) and plan.rate(95) == pytest.approx(0.01)


def test_images_of_a_first_try_are_taken_evenly(source):
    assert [record.image_id for record in thinned(source, 3).records] == [1, 5, 9]
    assert thinned(source, 99) is source


def test_brightness_changes_little_where_night_is_told_from_day():
    assert augment_of(config_of(color_jitter=True)).brightness == 0.3
    assert augment_of(config_of(color_jitter=True, subclass=True)).brightness == 0.1
    assert augment_of(config_of()).brightness == 0


def test_a_moving_average_is_of_numbers_and_leaves_whole_ones():
    spec = DetectorSpec.of("tiny", conditions=("day", "night"), fpn=4, head_width=4)
    module = detector(spec, 5)
    trainee = Trainee(module, 0.9)
    assert trainee.average is not None and trainee.result is trainee.average.module
    weight, norm = module.backbone.body.conv1.weight, module.backbone.body.bn1
    first = weight.detach().clone()
    trainee.average.update_parameters(module)  # the first time, a copy
    with torch.no_grad():
        weight.add_(1)
        norm.running_mean.add_(2)
    trainee.average.update_parameters(module)
    body = trainee.result.backbone.body
    assert torch.allclose(body.conv1.weight, first + 0.1) and torch.allclose(body.bn1.running_mean, torch.tensor(0.2))
    for name in ("parents", "conditions"):
        assert torch.equal(getattr(trainee.result.roi_heads, name), getattr(module.roi_heads, name))
    assert trainee.result.roi_heads.parents.tolist() == [0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5]


def test_names_become_words_of_metrics():
    assert slug("Traffic light / red") == "traffic_light_red"
