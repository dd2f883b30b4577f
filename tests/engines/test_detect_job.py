"""The whole job of detect, `train` and `eval` through the real command, on a few procedural scenes."""

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from effvl_cli.config.detect_predict import PredictConfig
from effvl_cli.config.detect_train import DetectConfig, TrainConfig
from effvl_cli.core import distributed, signals
from effvl_cli.core.checkpoint import load_model
from effvl_cli.core.errors import UsageError
from effvl_cli.core.table import Table
from effvl_cli.engines.detect import box_splits, detecting, detector_arms, detector_training, predict, tables
from effvl_cli.engines.detect import eval as evaluating
from effvl_cli.models import network as networks
from tests.data.box_files import coco_data
from tests.data.box_files import write_coco as coco_files
from tests.engines.coco_files import write_coco
from tests.kills import assert_same_result, run_with_kills

pytestmark = pytest.mark.usefixtures("shared_cache")
FEW = ("--data", "road-scenes:scenes=8,val=3,test=4", "--min-size", 64, "--max-size", 96, "--log-every", 1)
JOB = ("detect", *FEW, "--steps", 2)
TRAIN = ("detect", "train", *FEW, "--steps", 2)
NAMED = ("ap", "ap50", "ap75", "ap_day", "ap_night", "ap75_single_stage", "images_per_s")


@pytest.fixture(scope="module")
def job(shared):
    return shared.run("detect-job", *JOB, "--save-every", 1)


@pytest.fixture(scope="module")
def trained(shared):
    """A detector with subclasses, kept as a moving average."""
    return shared.run("detect-train", *TRAIN, "--subclass", "--ema", 0.5, "--num-stages", 2)


def test_both_arms_are_trained_and_measured_on_the_test_images(job, report, records):
    found = report(job)
    assert found.status == "completed"
    for name in NAMED:
        assert found.metrics[name].value is not None and found.metrics[name].split == "test"
    assert found.metrics["ap"].n == 4 and found.metrics["ap_day"].n == found.metrics["ap_night"].n == 2
    for limit in (100, 300):
        assert 0 <= found.metrics[f"proposal_recall{limit}_iou50"].value <= 1
    arms = found.technique["arms"]
    assert {name: arm["num_stages"] for name, arm in arms.items()} == {"single": 1, "cascade": 3}
    assert [arm["steps"] for arm in arms.values()] == [2, 2]
    assert found.metrics["ap75_single_stage"].value == arms["single"]["figures"]["ap75"]
    assert [row.split for row in found.data] == ["train", "val", "test"]
    [source] = found.technique["sources"]
    assert (source["n_images"], source["n_day"], source["n_night"], source["n_skipped_dup"]) == (8, 4, 4, 0)
    assert len(found.technique["stage_iou"]) in (0, 4) and len(found.technique["ap_by_stage"]) == 3
    assert set(found.technique["per_part"]) == {"day", "night"}  # one source, and a scene for each image
    steps = {row["phase"]: row for row in records(job) if row["event"] == "train"}
    assert {"rpn_cls", "rpn_box", "s0_cls", "s0_box", "num_pos_s0"} < steps["single"].keys()
    assert "s1_cls" not in steps["single"] and {"s2_cls", "s2_box", "num_pos_s2"} < steps["cascade"].keys()
    parts = [steps["cascade"][name] for name in steps["cascade"] if name.endswith(("_cls", "_box"))]
    assert steps["cascade"]["loss"] == pytest.approx(sum(parts), rel=1e-5) and len(parts) == 8


def test_the_job_is_evaluated_every_second_epoch_and_at_the_end(job, records):
    one = TrainConfig(data="road-scenes", eval_every=3)
    assert [detector_training.period_of(own, 50) for own in (TrainConfig(), DetectConfig(), one)] == [50, 100, 3]
    seen = [(row["phase"], row["step"]) for row in records(job) if row["event"] == "eval"]
    assert seen == [("single", 2), ("cascade", 2)]  # an epoch is 2 steps, of which 4 would be two


def test_what_the_job_leaves(job):
    assert {path.stem for path in (job / "plots").iterdir()} == {"detections", "precision-recall", "ap-by-stage"}
    state, manifest = load_model(job / "checkpoint.safetensors")
    assert manifest["model"] == "cascade-rcnn:tiny,min=64,max=96"
    assert manifest["classes"] == ["pedestrian", "vehicle", "scooter", "bicycle"]
    assert state["roi_heads.box_predictors.2.cls_score.weight"].shape[0] == 5


def test_the_table_has_a_row_for_each_arm_and_class(job, report):
    table: Table = tables.results(report(job))
    assert [str(row[0]).strip() for row in table.rows] == [
        *("single", "cascade", "pedestrian", "vehicle", "scooter", "bicycle")
    ]
    assert "not to be read" in table.notes[-1]
    rule = "within 10 bits and distance 0.02 (dhash+ncc); label guard on"
    assert f"8 of 8 training images are used; near-duplicates {rule}" in table.notes


def test_the_row_of_a_training_is_the_detectors(trained, report):
    found = report(trained)
    table = tables.results(found)
    assert table.rows[0][0] == "detector"
    assert "cascade-rcnn:tiny on road-scenes" in table.title and "test images" in table.title


def test_a_size_that_does_not_fit_is_refused_before_data_are_read(effvl, monkeypatch):
    line = ("detect", "train", "--data", "road-scenes:scenes=2", "--min-size", 300, "--out", "r")
    monkeypatch.setattr("effvl_cli.engines.detect.box_data.load_boxes", None)
    for more in (("--dry-run",), ()):
        outcome = effvl(*line, *more)
        assert outcome.code == 2 and "--min-size 300 exceeds --max-size 256" in outcome.error, outcome.err


def test_a_training_that_failed_in_its_beginning_gives_way(effvl):
    line = (*TRAIN, "--out", "r", "--weights")
    assert effvl(*line, "nowhere.safetensors").code == 4
    assert not Path("r/dedup.json").exists()
    assert effvl(*line, "elsewhere.safetensors").code == 4


def test_a_request_to_stop_ends_an_evaluation_between_batches(job, effvl, monkeypatch):
    seen = []
    original = detecting._Share.add
    monkeypatch.setattr(detecting._Share, "add", lambda *words: seen.append(1) or original(*words))
    monkeypatch.setattr(signals, "requested", lambda: signal.SIGTERM if seen else 0)
    outcome = effvl("detect", "eval", job, "--split", "test", "--eval-batch-size", 1, "--out", "r")
    assert outcome.code == 75 and len(seen) == 1


def test_a_finished_detector_is_measured_again_and_alike(job, effvl, report):
    outcome = effvl("detect", "eval", job, "--split", "test", "--by", "time,class", "--out", "r")
    assert outcome.code == 0, outcome.err
    before, after = report(job), report("r")
    for name in ("ap", "ap50", "ap75", "ap_night", "ar10", "proposal_recall100_iou50"):
        assert after.metrics[name].value == before.metrics[name].value
    assert after.technique["per_class"] == before.technique["per_class"]
    assert set(after.technique["per_part"]) == {"day", "night"}


def test_results_of_any_program_are_measured(effvl, report, monkeypatch):
    """The truth itself, then images that the split does not have."""
    from effvl_cli.data.boxes import load_boxes
    from effvl_cli.engines.detect.coco_results import results_json

    source = load_boxes(FEW[1], "test")
    truth = [
        {"boxes": record.boxes, "scores": [1.0] * len(record.boxes), "labels": record.labels}
        for record in source.records
    ]
    Path("found.json").write_text(json.dumps(results_json(source.records, truth)))
    line = ("detect", "eval", "--results", "found.json", "--data", FEW[1], "--split", "test")
    outcome = effvl(*line, "--out", "r")
    assert outcome.code == 0, outcome.err
    assert report("r").metrics["ap"].value == pytest.approx(1.0) and report("r").metrics["gap"].value == 0
    rows = json.loads(Path("found.json").read_text())
    Path("found.json").write_text(json.dumps([{**rows[0], "image_id": 99}]))
    monkeypatch.setattr(evaluating, "tagger_of", None)  # refused before the images are looked at
    outcome = effvl(*line, "--out", "other")
    assert outcome.code == 3 and "found.json" in outcome.error and "99" in outcome.error
    monkeypatch.setattr(evaluating, "open_boxes", None)  # before the data are read, and before there is a run
    Path("found.json").write_text(json.dumps([{"image_id": 1}]))
    outcome = effvl(*line, "--out", "none")
    assert outcome.code == 3 and "found.json: row 0 has no category_id" in outcome.error
    assert not Path("none").exists()


def test_an_exported_detector_is_measured_as_the_run_is(job, effvl, report, monkeypatch):
    """The network itself stands for the graph, which tests of `export` compare with it."""
    network = networks.load(None, str(job), default="cascade-rcnn:tiny", kind="detector")
    network.module.eval()

    class Exported:
        classes = tuple(network.manifest["classes"])
        props: ClassVar = {"min_size": 64, "max_size": 96}

        def __init__(self, path):
            assert path == "model.onnx"

        @torch.inference_mode()
        def __call__(self, images):
            return network.module(images)

    monkeypatch.setattr(evaluating, "OnnxDetector", Exported)
    line = ("detect", "eval", "--onnx", "model.onnx", *FEW[:2], "--split", "test")
    outcome = effvl(*line, "--out", "r")
    assert outcome.code == 0, outcome.err
    for name in ("ap", "ap50", "ar100"):
        assert report("r").metrics[name].value == pytest.approx(report(job).metrics[name].value, abs=1e-6)
    monkeypatch.setattr(Exported, "classes", ("car",))
    monkeypatch.setattr(evaluating, "tagger_of", None)  # refused before the images are looked at
    outcome = effvl(*line, "--out", "other")
    assert outcome.code == 3 and "--onnx model.onnx has 1 classes (car)" in outcome.error
    outcome = effvl("detect", "eval", "--onnx", "model.onnx", "--merge", "sum", *FEW[:2])
    assert outcome.code == 2 and "--merge" in outcome.error


def test_scenes_that_have_no_figures_are_said_to_have_none():
    judged = SimpleNamespace(
        measured=SimpleNamespace(parts={"day": [0, 1, 2]}),
        source=SimpleNamespace(records=[SimpleNamespace(seq=name) for name in "abb"]),
        found=SimpleNamespace(seen=[0, 1, 2]),
    )
    warnings: list[str] = []
    run = SimpleNamespace(warn=warnings.append)
    evaluating._remark_scenes(SimpleNamespace(by=("time",)), judged, run)
    assert warnings == []
    evaluating._remark_scenes(SimpleNamespace(by=("time", "scene")), judged, run)
    assert "--by scene: 3 images of 2 scenes have no figures by scene" in warnings[0]
    judged.measured.parts["scene a"] = [0]
    evaluating._remark_scenes(SimpleNamespace(by=("scene",)), judged, run)
    assert len(warnings) == 1


def test_the_moving_average_is_what_is_kept(trained):
    state, manifest = load_model(trained / "checkpoint.safetensors")
    assert "conditions=day/night" in manifest["model"] and "stages=2" in manifest["model"]
    saved = max((trained / "checkpoints").glob("**/step-*"))
    both, _ = load_model(saved / "model.safetensors")
    name = "roi_heads.box_predictors.0.cls_score.weight"
    assert torch.equal(state[name], both[f"average.module.{name}"])
    assert not torch.equal(state[name], both[f"detector.{name}"])
    assert int(both["average.n_averaged"]) == 2


def test_merging_is_a_choice_of_evaluation(trained, effvl, report):
    for how in ("max", "gated"):
        outcome = effvl("detect", "eval", trained, "--merge", how, "--split", "test", "--out", how)
        assert outcome.code == 0, outcome.err
        assert report(how).technique["merge"] == how
    assert report("max").metrics["ap"].value == report(trained).metrics["ap"].value


def test_a_training_goes_on_from_a_run_of_the_same_classes_alone(trained, effvl, report, tmp_path):
    outcome = effvl("detect", "train", trained, "--steps", 1, "--lr", 1e-9, "--out", "r")
    assert outcome.code == 0, outcome.err
    before, after = (load_model(Path(run, "checkpoint.safetensors")) for run in (trained, "r"))
    assert before[1]["model"] == after[1]["model"]
    for name in before[0]:
        if name.endswith("weight"):
            assert torch.allclose(before[0][name], after[0][name], atol=1e-6), name
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["classes"][1:3] = ["scooter", "vehicle"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    for verb in ("train", "eval"):
        outcome = effvl("detect", verb, other, "--out", f"refused-{verb}")
        assert outcome.code == 3 and "scooter, vehicle" in outcome.error and "--map" in outcome.error


def test_a_resumed_job_and_one_that_never_died_are_the_same(job, monkeypatch):
    killed = run_with_kills(monkeypatch, [str(word) for word in (*JOB, "--out", "killed", "--save-every", 1)], KILLING)
    assert killed >= 4
    assert_same_result(Path("killed"), job)


KILLING = r"single/step-00000001|cascade/step-00000001|cascade/step-00000002|phases\.json"


def test_a_loss_that_is_not_finite_names_its_images(effvl):
    line = ("detect", "train", *FEW, "--steps", 4, "--loss-weights", "3e38,3e38,3e38")
    outcome = effvl(*line, "--out", "r")
    assert outcome.code == 6, outcome.err
    assert outcome.error.count("train/0000") == 4 and "images train/0000" in outcome.error


def test_weights_that_do_not_fit_are_refused_before_data_are_read(trained, effvl, monkeypatch):
    monkeypatch.setattr(detector_arms, "open_splits", None)
    misfits = (
        ("train", "--weights", trained, "--head-width", 8),
        ("train", trained, "--head-width", 8),
        ("train", "--weights", "nowhere.pt"),
        ("--weights", "nowhere.pt"),
    )
    for words in misfits:
        outcome = effvl("detect", *words, *FEW, "--steps", 1, "--out", "r")
        assert outcome.code == 4, outcome.err
        assert "do not fit" in outcome.error or "nowhere.pt" in outcome.error
        assert not Path("r").exists()


def test_what_cannot_be_drawn_is_refused_before_the_images_are_looked_at(effvl, workdir, monkeypatch):
    coco_files(workdir / "set", coco_data(20))
    Path("mix.yml").write_text("classes: [car, person]\nsources:\n  - {name: own, root: set, ratio: 0}\n")
    monkeypatch.setattr(box_splits.Tagger, "tagged", None)
    for words, code, part in (
        (("--data", "boxes:mix.yml"), 2, "the ratio of every source"),
        (("--data", "coco:set", "--batch-size", 400), 2, "--batch-size"),
    ):
        outcome = effvl("detect", "train", *words, "--steps", 1, "--out", "r")
        assert outcome.code == code, outcome.err
        assert part in outcome.error


def test_what_several_processes_cannot_do_is_refused_before_data_are_read(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: distributed.World(size=2))
    run = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(UsageError, match="--sync-bn works on GPUs, and the device is cpu"):
        detector_arms.train_and_measure({"train": TrainConfig(sync_bn=True, data="nowhere")}, run, None)
    with pytest.raises(UsageError, match="runs on one process"):
        predict.run(PredictConfig(input=("nowhere.jpg",)), run)


def test_dry_run_names_few_of_many_classes_and_what_is_remarkable(effvl, workdir):
    row = {"pixels": np.zeros((60, 96, 3), dtype=np.uint8)}
    write_coco(workdir / "set", {split: [row | {"file_name": f"{split}.png"}] for split in ("train", "val")})
    for split in ("train", "val"):
        path = workdir / "set" / f"{split}.json"
        content = json.loads(path.read_text())
        content["categories"] = [{"id": k, "name": f"class{k}"} for k in range(1, 81)]
        path.write_text(json.dumps(content))
    outcome = effvl("detect", "train", "--data", "coco:set", *FEW[2:6], "--batch-size", 1, "--steps", 1, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "1 test images of class1, class2" in outcome.out and "more" in outcome.out and "class40" not in outcome.out
    assert "those called val are measured" in outcome.out


def test_dry_run_says_what_each_arm_costs(effvl):
    outcome = effvl(*JOB, "--dry-run")
    assert outcome.code == 0, outcome.err
    for part in ("train single", "detect single", "train cascade", "2 steps of 4 images of 96x60 px"):
        assert part in outcome.out


REFUSED = {
    "arms twice": (("--arms", "single,single"), 2, "--arms"),
    "ious": (("--iou", "0.5,0.6"), 2, "--iou"),
    "sizes": (("--min-size", 160, "--max-size", 96, "--data", "coco:nowhere.json"), 2, "--min-size 160 exceeds"),
    "length": (("--steps", 3, "--epochs", 2), 2, "--steps or --epochs"),
    "frozen": (("--norm", "frozen"), 2, "--norm frozen"),
    "batch": (("--batch-size", 9), 2, "--batch-size"),
    "weights": (("--weights", "nowhere.safetensors"), 4, "nowhere.safetensors"),
    "images": (("--data", "digits"), 2, "digits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused(name, effvl):
    words, code, said = REFUSED[name]
    pairs = dict(zip(JOB[1::2], JOB[2::2], strict=True)) | dict(zip(words[::2], words[1::2], strict=True))
    line = ["detect", *(word for pair in pairs.items() for word in pair)]
    outcome = effvl(*line, "--out", "r")
    assert outcome.code == code and said in outcome.error, outcome.err
