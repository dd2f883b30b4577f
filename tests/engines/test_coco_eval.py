"""COCO's box metric: against pycocotools, hand-computed cases, subsets, standard errors, results files."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from effvl_cli.core.errors import DataError
from effvl_cli.data.boxes import BoxRecord
from effvl_cli.engines.detect import coco_eval
from effvl_cli.engines.detect.coco_eval import NUMBERS, bootstrap, evaluate, proposal_recall
from effvl_cli.engines.detect.coco_results import by_image, parsed_results, results_json

CLASSES = 3


def record(
    boxes: Any, labels: Any, *, image_id: int = 1, crowd: Any = None, ignore: Any = None, area: Any = None
) -> BoxRecord:
    """An image of 200 x 200 px."""
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    nothing = np.zeros(len(boxes), dtype=bool)
    size = boxes[:, 2:] - boxes[:, :2]
    return BoxRecord(
        image_id=image_id,
        file=f"{image_id}.jpg",
        path=None,
        width=200,
        height=200,
        boxes=boxes,
        labels=np.asarray(labels, dtype=np.int64).reshape(-1),
        iscrowd=nothing if crowd is None else np.asarray(crowd, dtype=bool),
        ignore=nothing if ignore is None else np.asarray(ignore, dtype=bool),
        area=size.prod(1) if area is None else np.asarray(area, dtype=np.float32),
        seq=str(image_id),
        frame=None,
        time=None,
        source="drawn",
    )


def found(boxes: Any, labels: Any, scores: Any = None) -> dict[str, torch.Tensor]:
    """What a network says of an image."""
    boxes = torch.as_tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4))
    scores = torch.ones(len(boxes)) if scores is None else torch.as_tensor(scores, dtype=torch.float32)
    return {"boxes": boxes, "labels": torch.as_tensor(labels, dtype=torch.int64).reshape(-1), "scores": scores}


def perfect(truth: BoxRecord) -> dict[str, torch.Tensor]:
    return found(truth.boxes, truth.labels)


def noisy_problem(seed: int, images: int = 6) -> tuple[list[BoxRecord], list[dict[str, torch.Tensor]]]:
    """Boxes of all sizes, a fifth of them crowds; detections near them, of wrong classes, and of nothing."""
    rng = np.random.default_rng(seed)
    records, detections = [], []
    for image in range(images):
        count = int(rng.integers(0, 7))
        corner, size = rng.uniform(0, 100, (count, 2)), rng.choice([12.0, 50.0, 98.0], (count, 1)) * [[1, 0.9]]
        boxes = np.concatenate([corner, corner + size], 1)
        labels = rng.integers(1, CLASSES + 1, count)
        records.append(record(boxes, labels, image_id=image + 7, crowd=rng.uniform(size=count) < 0.2))
        moved = np.repeat(boxes, 2, 0) + rng.normal(0, 3, (2 * count, 4))
        kept = rng.uniform(size=2 * count) < 0.8
        stray = rng.uniform(0, 90, (3, 2))
        strays = np.concatenate([stray, stray + rng.uniform(5, 90, (3, 2))], 1)
        said = np.where(rng.uniform(size=2 * count) < 0.8, np.repeat(labels, 2), rng.integers(1, 4, 2 * count))
        detections.append(
            found(
                np.concatenate([moved[kept], strays]),
                np.concatenate([said[kept], rng.integers(1, CLASSES + 1, 3)]),
                rng.uniform(size=int(kept.sum()) + 3).astype(np.float32),
            )
        )
    return records, detections


def by_pycocotools(records: list[BoxRecord], detections: list[dict[str, torch.Tensor]]) -> list[float]:
    """Its twelve numbers; -1 where there is no ground truth."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def bbox(box: Any) -> list[float]:
        x1, y1, x2, y2 = (float(value) for value in box)
        return [x1, y1, x2 - x1, y2 - y1]

    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(1, len(records) + 1)],
        "categories": [{"id": label} for label in range(1, CLASSES + 1)],
        "annotations": [
            {
                "image_id": image,
                "category_id": int(label),
                "bbox": bbox(box),
                "area": float(area),
                "iscrowd": int(crowd),
            }
            for image, one in enumerate(records, 1)
            for box, label, area, crowd in zip(one.boxes, one.labels, one.area, one.iscrowd, strict=True)
        ],
    }
    for number, annotation in enumerate(truth.dataset["annotations"], 1):
        annotation["id"] = number
    results = [
        {"image_id": image, "category_id": int(label), "bbox": bbox(box), "score": float(score)}
        for image, one in enumerate(detections, 1)
        for box, label, score in zip(one["boxes"], one["labels"], one["scores"], strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats]


def test_twelve_numbers_are_those_of_pycocotools() -> None:
    for seed in range(50):
        records, detections = noisy_problem(seed)
        ours = evaluate(records, detections, CLASSES).whole.numbers
        theirs = by_pycocotools(records, detections)
        assert list(ours) == list(NUMBERS)
        assert [-1 if value is None else value for value in ours.values()] == pytest.approx(theirs, abs=1e-9)


def test_perfect_detections_score_one_though_annotations_of_the_file_count_from_zero() -> None:
    # annotation ids of a file never reach the evaluator; taken over, the box of id 0 would count as missed
    records = [record([[10, 10, 60, 60]], [1], image_id=0), record([[5, 5, 40, 50], [60, 60, 90, 99]], [2, 1])]
    whole = evaluate(records, [perfect(one) for one in records], 2).whole
    assert (whole.numbers["ap"], whole.numbers["ap50"], whole.numbers["ap75"]) == (1.0, 1.0, 1.0)
    assert [(one.ap, one.ap50, one.n_gt) for one in whole.per_class] == [(1.0, 1.0, 2), (1.0, 1.0, 1)]


def test_boxes_moved_to_an_iou_of_72_percent() -> None:
    shift = 50 * (1 - 0.72) / (1 + 0.72)
    truth = record([[10, 10, 60, 60]], [1])
    numbers = evaluate([truth], [found(truth.boxes + np.array([shift, 0, shift, 0]), [1])], 1).whole.numbers
    assert numbers["ap50"] == 1.0 and numbers["ap75"] == 0.0
    assert numbers["ap"] == pytest.approx(0.5, abs=1e-12)


def test_no_detection_at_all_scores_zero() -> None:
    whole = evaluate([record([[10, 10, 60, 60]], [1]), record([], [])], [found([], [])] * 2, 2).whole
    assert whole.numbers["ap"] == 0.0 and whole.numbers["ap_medium"] == 0.0 and whole.numbers["ar100"] == 0.0
    assert whole.numbers["ap_large"] is None  # no box of that size: not zero
    assert whole.per_class[0].ap == 0.0 and whole.per_class[1].ap is None


def test_a_class_without_ground_truth_is_left_out_of_the_mean() -> None:
    truth = record([[10, 10, 60, 60]], [1])
    whole = evaluate([truth], [found([[10, 10, 60, 60], [100, 100, 150, 150]], [1, 2])], 2).whole
    assert whole.numbers["ap"] == 1.0
    assert whole.per_class[1].ap is None and np.isnan(whole.precision[1]).all()


def test_a_box_to_ignore_is_no_miss_and_what_lies_in_it_no_mistake() -> None:
    boxes, inside = [[10, 10, 60, 60], [100, 100, 180, 180]], [110, 110, 130, 130]
    seen = found([inside, [10, 10, 60, 60]], [1, 1], [0.9, 0.5])
    assert evaluate([record(boxes, [1, 1])], [seen], 1).whole.per_class[0].ap50 == pytest.approx(51 / 101 / 2)
    ignored = record(boxes, [1, 1], ignore=[False, True])
    assert (
        evaluate([ignored], [seen], 1).whole.per_class[0]
        == evaluate([ignored], [perfect(ignored)], 1).whole.per_class[0]
    )
    assert evaluate([ignored], [seen], 1).whole.per_class[0].n_gt == 1
    nameless = record(boxes, [2, 0], ignore=[False, True])  # of no class: for every class
    other = found([[10, 10, 60, 60], inside], [2, 2], [0.5, 0.9])
    assert evaluate([nameless], [other], 2).whole.per_class[1].ap == 1.0


def test_subsets() -> None:
    records, detections = noisy_problem(3, images=12)
    night = [1, 4, 5, 9]
    found_ = evaluate(records, detections, CLASSES, {"all": range(12), "night": night, "none": []})
    assert found_.subsets["all"].numbers == found_.whole.numbers
    assert found_.subsets["all"].per_class == found_.whole.per_class
    alone = evaluate([records[i] for i in night], [detections[i] for i in night], CLASSES).whole
    assert found_.subsets["night"].numbers == alone.numbers and found_.subsets["night"].per_class == alone.per_class
    assert found_.subsets["night"].n_images == 4
    assert set(found_.subsets["none"].numbers.values()) == {None}


def test_precision_over_recall() -> None:
    # by score: hit, miss, hit of two boxes: precision 1 up to recall 1/2, 2/3 beyond
    truth = record([[0, 0, 50, 50], [100, 100, 150, 150]], [1, 1])
    seen = found([[0, 0, 50, 50], [0, 100, 50, 150], [100, 100, 150, 150]], [1, 1, 1], [0.9, 0.8, 0.7])
    curve = evaluate([truth], [seen], 1).whole.precision[0, 0]
    assert curve == pytest.approx([1.0] * 51 + [2 / 3] * 50)


def test_standard_error_over_images() -> None:
    # one box an image, each of score 1: hit in `hits` images; AP50 of a resample depends on its hits alone
    truth = [record([[10, 10, 60, 60]], [1]) for _ in range(20)]
    seen = [perfect(truth[0]) if i % 4 else found([], []) for i in range(20)]
    evaluation = evaluate(truth, seen, 1)
    # without false alarms AP50 is the share of the recall points 0, .01 .. 1 up to the recall
    rng = np.random.default_rng(5)
    hits = [sum(bool(i % 4) for i in rng.choice(np.arange(20), 20)) for _ in range(300)]
    expected = np.std([(np.linspace(0, 1, 101) <= h / 20).mean() for h in hits], ddof=1)
    assert bootstrap(evaluation, label=1, draws=300, seed=5) == pytest.approx(expected, abs=1e-9)
    assert bootstrap(evaluation, draws=300, seed=5) == pytest.approx(expected, abs=1e-9)
    assert bootstrap(evaluation, indices=[1, 2, 3], draws=20) == 0.0  # all hit
    assert bootstrap(evaluation, indices=[3]) is None


def test_a_resample_is_worth_what_cocos_metric_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are there several times, crowds among their boxes, by the evaluator itself."""
    records, detections = noisy_problem(8, images=9)
    matches = evaluate(records, detections, CLASSES).matches
    drawn = np.random.default_rng(0).integers(0, 9, (20, 9))
    times = np.stack([np.bincount(images, minlength=9) for images in drawn]).astype(float)
    monkeypatch.setattr(coco_eval, "LARGEST", 500)  # in several parts
    found_ = {(k, iou): matches.ranked(k).average_precision(times, iou) for k in (1, 2, 3) for iou in (None, 0.5)}
    for row, images in enumerate(drawn):
        expected = evaluate([records[i] for i in images], [detections[i] for i in images], CLASSES).whole.per_class
        for label, one in enumerate(expected, 1):
            for iou, value in ((None, one.ap), (0.5, one.ap50)):
                shown = np.nan if value is None else value
                assert found_[label, iou][row] == pytest.approx(shown, abs=1e-9, nan_ok=True)


def test_proposal_recall() -> None:
    truth = [
        record([[0, 0, 10, 10], [50, 50, 60, 60]], [1, 1]),
        record([[0, 0, 10, 10], [90, 90, 99, 99]], [1, 1], ignore=[0, 1]),
    ]
    proposals = [torch.tensor([[0.0, 0, 10, 6.5], [50, 50, 60, 60]]), torch.zeros(0, 4)]
    recall = proposal_recall(proposals, truth, limits=(1, 300))
    assert recall == pytest.approx(
        {
            **{"proposal_recall1_iou50": 1 / 3, "proposal_recall1_iou70": 0.0, "proposal_recall1_iou90": 0.0},
            **{"proposal_recall300_iou50": 2 / 3, "proposal_recall300_iou70": 1 / 3, "proposal_recall300_iou90": 1 / 3},
        }
    )
    assert proposal_recall([torch.zeros(0, 4)], [record([], [])])["proposal_recall100_iou50"] is None


def test_results_of_a_file_are_those_that_were_written(tmp_path: Path) -> None:
    records = [record([], [], image_id=42), record([], [], image_id=7)]
    detections = [
        {**found([[1.234, 2, 11.239, 12]], [2], [0.123456]), "conditions": torch.tensor([1])},
        found([], []),
    ]
    rows = results_json(records, detections, category_ids=(0, 5))
    assert rows == [
        {"image_id": 42, "category_id": 5, "bbox": [1.23, 2.0, 10.01, 10.0], "score": 0.12346, "condition": "night"}
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    path = tmp_path / "results.json"
    back = by_image(path, parsed_results(path), records, (0, 5))
    assert back[0]["boxes"] == pytest.approx(np.array([[1.23, 2.0, 11.24, 12.0]]), abs=1e-5)
    assert back[0]["labels"].tolist() == [2] and back[1]["boxes"].shape == (0, 4)
    evaluate(records, back, 2)


ROW = {"image_id": 42, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "results.json is not a JSON file"),
        ("{}", "holds no list of detections"),
        ("[3]", "row 0 is no object: 3"),
        (json.dumps([ROW, {**ROW, "bbox": [0, 0, 5]}]), "row 1 has a bbox that is not four finite numbers"),
        (json.dumps([{**ROW, "score": None}]), "row 0 has a score that is no finite number"),
        (json.dumps([{k: v for k, v in ROW.items() if k != "score"}]), "row 0 has no score"),
        (json.dumps([{**ROW, "image_id": "a.jpg"}]), "row 0 has in image_id no whole number"),
        (json.dumps([{**ROW, "category_id": 1.5}]), "row 0 has in category_id no whole number"),
        (json.dumps([{**ROW, "bbox": [0, 0, -5, 5]}]), "row 0 has a bbox of negative size"),
        (
            '[{"image_id": 42, "category_id": 1, "bbox": [0, 0, 5, 5], "score": NaN}]',
            "row 0 has a score that is no finite number",
        ),
        (
            json.dumps([ROW, {**ROW, "image_id": 9}, {**ROW, "image_id": 9}]),
            r"2 of 3 detections have no image_id .*\(9\)",
        ),
        (json.dumps([ROW, {**ROW, "category_id": 4}]), "1 of 2 detections have no category_id"),
    ],
)
def test_results_that_do_not_fit_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        path = tmp_path / "results.json"
        by_image(path, parsed_results(path), [record([], [], image_id=42)], (1,))
    assert caught.value.exit_code == 3 and "results.json" in str(caught.value)


def test_results_that_are_not_there_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        parsed_results(tmp_path / "none.json")
    assert caught.value.message == f"{tmp_path / 'none.json'} cannot be read: No such file or directory"
