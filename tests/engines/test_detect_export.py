"""ONNX files of detectors: the graph, the runner around it, the comparison, and the real command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from effvl_cli.core.checkpoint import save_model
from effvl_cli.core.errors import ModelError
from effvl_cli.core.run_files import CONFIG
from effvl_cli.engines.detect import export
from effvl_cli.engines.detect.fixed_images import road_images
from effvl_cli.engines.detect.onnx_runner import OnnxDetector, nms
from effvl_cli.models import detector_onnx
from effvl_cli.models import network as networks
from effvl_cli.models.detector_graph import FixedSize
from effvl_cli.models.detector_onnx import properties, write_onnx
from effvl_cli.models.detector_spec import DetectorSpec
from effvl_cli.models.network import CHECKPOINT, Network

CLASSES = ("pedestrian", "vehicle", "scooter", "bicycle")
SIZE = (64, 96)
KEYS = ("image_id", "category_id", "condition")
SMALL = {"fpn": 8, "head_width": 16, "min_size": (64,), "max_size": 96, "post_nms": (60, 40), "score_thresh": 0.3}


def _detector(**changes: object) -> Network:
    """A detector that finds something, though it has learned nothing: its outputs are spread out."""
    spec = DetectorSpec.of("tiny", **{**SMALL, "conditions": ("day", "night"), **changes})
    network = networks.build(spec.name, seed=0, num_classes=4)
    draw = torch.Generator().manual_seed(1)
    module = network.module.eval()
    nn.init.normal_(module.rpn.head.cls_logits.weight, std=1.0, generator=draw)
    for predictor in module.roi_heads.box_predictors:
        nn.init.normal_(predictor.cls_score.weight, std=3.0, generator=draw)
        nn.init.normal_(predictor.bbox_pred.weight, std=0.3, generator=draw)
        predictor.cls_score.bias.data[0] = 1.0
    return network


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """What `effvl detect` leaves, as far as `export` reads it."""
    folder = tmp_path_factory.mktemp("made")
    network = _detector()
    save_model(folder / CHECKPOINT, network.module.state_dict(), network.describe() | {"classes": list(CLASSES)})
    (folder / CONFIG).write_text("effvl: 1\ncommand: detect train\nconfig: {precision: bf16, batch-size: 4}\n")
    return folder


@pytest.mark.parametrize("changes", [{}, {"class_agnostic": False, "merge": "sum"}, {"roi_aligned": True}])
def test_the_graph_of_one_size_finds_what_the_detector_finds(changes):
    module = _detector(**changes).module
    images = torch.cat([(image[None] - 0.45) / 0.23 for image in road_images(2, SIZE, 0)])
    runner = OnnxDetector.__new__(OnnxDetector)
    runner.props = properties(module, CLASSES, SIZE, "raw")
    for image in images[:, None]:
        with torch.no_grad():
            wanted = module.at_size(ImageList(image, [SIZE]))[0][0]
            full = FixedSize(module, SIZE, full=True)(image)
            raw = FixedSize(module, SIZE, full=False)(image)
        assert len(wanted["scores"]) > 5
        rest = map(torch.from_numpy, runner.selected(*(part.numpy() for part in raw)))
        for name, first, second in zip(("boxes", "scores", "labels", "conditions"), full, rest, strict=True):
            torch.testing.assert_close(first, wanted[name], atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(second, wanted[name], atol=1e-4, rtol=1e-5)


def test_proposals_that_are_lacking_have_no_scores():
    module = _detector(post_nms=(200, 200)).module
    module.rpn.nms_thresh = 0.01
    with torch.no_grad():
        boxes, scores, _ = FixedSize(module, SIZE, full=False)(torch.rand(1, 3, *SIZE))
    few = int((scores.amax(1) > 0).sum())
    assert boxes.shape == (200, 4) and 0 < few < 200 and scores[few:].abs().max() == 0


def test_nms_is_torchvisions():
    draw = torch.Generator().manual_seed(0)
    corners = torch.rand(150, 2, generator=draw) * 50
    boxes = torch.cat([corners, corners + 5 + 25 * torch.rand(150, 2, generator=draw)], 1)
    scores, labels = torch.rand(150, generator=draw), torch.randint(1, 4, (150,), generator=draw)
    wanted = batched_nms(boxes, scores, labels, 0.5)
    assert nms(boxes.numpy(), scores.numpy(), labels.numpy(), 0.5).tolist() == wanted.tolist()
    assert nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0), 0.5).tolist() == []


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, OnnxDetector]:
    """Both graphs of one detector."""
    pytest.importorskip("onnxruntime")
    folder, module = tmp_path_factory.mktemp("onnx"), _detector().module
    for graph in ("full", "raw"):
        props = properties(module, CLASSES, SIZE, graph)
        write_onnx(FixedSize(module, SIZE, full=graph == "full"), folder / f"{graph}.onnx", props, 17)
    return {graph: OnnxDetector(folder / f"{graph}.onnx") for graph in ("full", "raw")}


@pytest.mark.parametrize("graph", ["full", "raw"])
def test_files_find_what_the_detector_finds_in_images_of_any_size(files, graph):
    file, module = files[graph], _detector().module
    assert file.classes == CLASSES and file.props["parents"] == [0, 1, 2, 3, 4, 1, 2, 3, 4]
    wide = road_images(1, (128, 192), 0)[0]
    pixels = (wide * 255).to(torch.uint8)
    with torch.no_grad():
        wanted = module([pixels])[0]
    found = file([pixels])[0]
    assert len(found["scores"]) > 5 and found["boxes"].max() > 96
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("graph", ["full", "raw"])
def test_predict_writes_the_same_by_a_file_as_by_the_run(here, run_folder, files, workdir, graph):
    """Through the command, from files to detections.json; what is shrunk differs by rounding."""
    Path("in").mkdir()
    images = {"a": torch.zeros(3, *SIZE), "b": road_images(1, SIZE, 3)[0], "c": road_images(1, SIZE, 0)[0]}
    for name, image in (images | {"wide": road_images(1, (128, 192), 0)[0]}).items():
        Image.fromarray((image * 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(f"in/{name}.png")
    line = ("detect", "predict", "--input", "in", "--save", "coco", "--score", 0.3)
    here(*line, run_folder, "--precision", "fp32", "--out", "by-run")
    here(*line, "--onnx", files[graph].path, "--out", "by-file")
    ours, theirs = (json.loads(Path(name, "detections.json").read_text()) for name in ("by-run", "by-file"))
    assert {row["image_id"] for row in theirs} >= {2, 3, 4}
    ours, theirs = ([row for row in rows if row["image_id"] < 4] for rows in (ours, theirs))
    assert len(ours) == len(theirs) > 5
    for one, other in zip(ours, theirs, strict=True):
        assert [one[key] for key in KEYS] == [other[key] for key in KEYS]
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.02)
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


@pytest.mark.parametrize("graph", ["full", "raw"])
def test_a_blank_image_and_narrow_ones_are_no_faults(files, graph, monkeypatch):
    if graph == "raw":
        monkeypatch.setitem(files[graph].props, "score_thresh", 1.0)
        found = files[graph]([torch.zeros(3, *SIZE)])[0]
        assert found["boxes"].shape == (0, 4) and found["labels"].shape == (0,)
    tall = road_images(1, (192, 64), 0)[0]
    placed, inside = files[graph].placed(tall)
    assert placed.shape == (1, 3, *SIZE) and inside == (64, 21) and np.abs(placed[..., 21:]).max() == 0
    found = files[graph]([tall])[0]
    assert ((found["boxes"] >= 0) & (found["boxes"] <= torch.tensor([64.0, 192.0] * 2))).all()


def test_what_differs_is_told_apart(files):
    module, images = _detector().module, road_images(2, SIZE, 0)
    parity = export.compared(module, files["full"], images)
    assert parity.holds and parity.detections > 5 and "image" in parity.worst
    ours = {
        "boxes": np.array([[0.0, 0, 10, 10], [20, 20, 40, 40]]),
        "scores": np.array([0.9, 0.8]),
        "labels": np.array([1, 2]),
    }
    moved = ours | {"boxes": ours["boxes"] + np.array([[0], [0.1]])}
    found = export._in_image(ours, moved, 0.05, "image 1")
    assert (found.detections, found.box, found.holds) == (2, pytest.approx(0.1), False) and "class 2" in found.worst
    scored = ours | {"scores": np.array([0.9, 0.8002])}
    assert not export._in_image(ours, scored, 0.05, "image 1").holds
    found = export._in_image(ours, ours | {"labels": np.array([2, 2])}, 0.05, "image 1")
    assert found.lonely == 2 and found.worst.startswith("image 1: the detector finds class 1 at (0.000, 0.000, 10.000")
    one = {name: values[:1] for name, values in ours.items()}
    found = export._in_image(one, ours, 0.05, "image 1")
    assert (found.detections, found.lonely) == (1, 1) and "the file finds class 2" in found.worst and not found.holds
    assert export._in_image(one, ours, 0.85, "image 1").holds  # what is not sure needs no like


def test_the_command_writes_a_file_that_passes(effvl, report, run_folder, workdir, monkeypatch):
    monkeypatch.setattr("effvl_cli.core.run.slow_precision", lambda *words: "slow in computing")
    outcome = effvl("detect", "export", run_folder, "--precision", "fp16", "--num-check", 2, "--out", "out")
    assert outcome.code == 0, outcome.err
    assert "slow in computing" not in outcome.err  # nothing is computed in fp16
    about = report("out").technique["export"]
    path = workdir / "out" / "model.onnx"
    assert path.stat().st_size == about["bytes"] and about["size"] == list(SIZE) and about["graph"] == "full"
    exact, rounded = about["parity"]
    assert exact["detections"] > 5 and exact["lonely"] == 0
    assert exact["box"] <= 0.05 and exact["score"] <= 1e-4 < rounded["score"] < 0.1
    assert OnnxDetector(path).classes == CLASSES
    import onnx

    halved = [
        tensor for tensor in onnx.load(str(path)).graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16
    ]
    assert sum(np.prod(tensor.dims) for tensor in halved) > 0.9 * sum(
        p.numel() for p in _detector().module.parameters()
    )


def test_a_file_that_finds_something_else_is_not_kept(effvl, run_folder, files, workdir, monkeypatch):
    other = _detector()
    other.module.roi_heads.box_predictors[-1].bbox_pred.bias.data += 0.2
    monkeypatch.setattr(export, "open_detector", lambda folder, run: other)
    monkeypatch.setattr(export, "write_onnx", lambda graph, path, *rest: shutil.copy(files["raw"].path, path))
    outcome = effvl("detect", "export", run_folder, "--graph", "raw", "--num-check", 2, "--out", "out")
    assert outcome.code == 8 and "finds something else" in outcome.err
    assert not list((workdir / "out").glob("*onnx"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--size", "100x160"), 2, "multiples of 32"),
        (("--size", "96"), 2, "--size is 96"),
        (("--precision", "bf16"), 2, "bf16 is not for files"),
        (("--opset", "12"), 2, "opset"),
        (("--opset", "99"), 2, "--opset"),
    ],
)
def test_what_cannot_be_written_is_refused(effvl, run_folder, workdir, words, code, message):
    outcome = effvl("detect", "export", run_folder, *words, "--out", "out")
    assert outcome.code == code and message in outcome.err


@pytest.mark.parametrize("verb", ["export", "bench"])
def test_a_run_without_a_detector_is_refused(effvl, workdir, verb):
    network = networks.build("tiny:thin-resnet", seed=0, num_classes=2)
    save_model(workdir / "other" / CHECKPOINT, network.module.state_dict(), network.describe())
    (workdir / "other" / CONFIG).write_text("effvl: 1\ncommand: detect train\nconfig: {}\n")
    outcome = effvl("detect", verb, "other", "--out", "out")
    assert outcome.code == 4 and "other holds no detector" in outcome.error and "effvl detect train" in outcome.error


def test_without_the_extra_the_install_line_is_given(effvl, run_folder, workdir, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = effvl("detect", "export", run_folder, "--out", "out")
    assert outcome.code == 5 and "pip install 'effvl[onnx]'" in outcome.err


def test_a_torch_without_the_exporter_is_named(monkeypatch, tmp_path):
    def gone(*words: object, **more: object) -> None:
        raise TypeError("export() got an unexpected keyword argument 'dynamo'")

    monkeypatch.setattr(detector_onnx.torch.onnx, "export", gone)
    module = _detector().module
    with pytest.raises(ModelError, match="exporter of traces"):
        write_onnx(FixedSize(module, SIZE, full=True), tmp_path / "m.onnx", {}, 17)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"size": [96, 64]}, "its input is {'image': [1, 3, 64, 96]}, expected {'image': [1, 3, 96, 64]}"),
        ({"size": "64x96"}, "invalid literal"),
        ({"graph": "raw"}, "its outputs are boxes, scores, labels, conditions, expected boxes, scores, conditions"),
        ({"graph": "half"}, "it has no 'half'"),
        ({"classes": []}, "its classes are no list of names"),
        ({"mean": [0.5]}, "mean is [0.5], expected three numbers"),
        ({"score_thresh": None}, "float"),
        ({"nms_thresh": ...}, "it has no 'nms_thresh'"),
        ("hello", "Expecting value"),
        ("[1]", "list indices"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(tmp_path, files, changes, part):
    import onnx

    proto = onnx.load(str(files["full"].path))
    (entry,) = [one for one in proto.metadata_props if one.key == detector_onnx.PROPS]
    if isinstance(changes, str):
        entry.value = changes
    else:
        both = json.loads(entry.value) | changes
        entry.value = json.dumps({key: value for key, value in both.items() if value is not ...})
    onnx.save(proto, str(tmp_path / "changed.onnx"))
    with pytest.raises(ModelError) as caught:
        OnnxDetector(tmp_path / "changed.onnx")
    assert part in str(caught.value)
    assert f"--onnx {tmp_path / 'changed.onnx'}" in str(caught.value)


def test_files_of_something_else_are_refused(tmp_path, files):
    with pytest.raises(ModelError, match="no file"):
        OnnxDetector(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        OnnxDetector(tmp_path / "text.onnx")
    import onnx

    node = onnx.helper.make_node("Identity", ["image"], ["out"])
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("image", "out")]
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]), ir_version=8)
    proto.opset_import[0].version = 17
    onnx.save(proto, str(tmp_path / "other.onnx"))
    with pytest.raises(ModelError, match="not of effvl detect export"):
        OnnxDetector(tmp_path / "other.onnx")


def test_bench_times_stages_parts_and_onnxruntime(here, report, run_folder, files, workdir, monkeypatch):
    from effvl_cli.engines.detect import bench

    monkeypatch.setattr(bench, "write_onnx", lambda graph, path, *rest, **more: shutil.copy(files["full"].path, path))
    outcome = here("detect", "bench", run_folder, "--batch-size", "1,2", "--seconds", 0.01, "--out", "out")
    done = report("out")
    rows = {(row["arm"], row["batch"]): row for row in done.technique["bench"]}
    assert set(rows) == {
        *((arm, n) for arm in ("first stage alone", "all stages") for n in (1, 2)),
        ("eager", 1),
        ("file", 1),
    }
    assert rows["all stages", 1]["mac_ratio"] > 1 and rows["file", 1]["runtime"] == "onnxruntime"
    cost = done.technique["cost"]
    assert (
        cost["params"]
        == sum(cost["params_by_part"].values())
        == sum(p.numel() for p in _detector().module.parameters())
    )
    assert [found["batch"] for found in done.technique["parts"]] == [1, 2]
    assert all(found[name] > 0 for found in done.technique["parts"] for name in bench.PARTS)
    assert "time_over_first_stage_b1" in done.metrics and "onnx_images_per_s_b1" in done.metrics
    assert "proposals ms" in outcome.out and (workdir / "out" / "plots" / "parts.png").is_file()


def test_precision_and_batch_size_of_the_training_are_not_those_of_its_export_and_bench(here, run_folder):
    shown = here("detect", "bench", run_folder, "--dry-run").out
    assert "1, 8" in shown and "bf16" not in shown
    shown = here("detect", "export", run_folder, "--dry-run").out
    assert "fp32" in shown and "bf16" not in shown


def test_the_first_stage_alone_is_a_detector_of_one_stage():
    from effvl_cli.engines.detect.bench import first_stage, part_passes

    module, images = _detector().module, road_images(2, SIZE, 0)
    module.expose = True
    with torch.no_grad():
        wanted = [result["stages"][0] for result in module(images)]
        module.expose = False
        found = first_stage(module)(images)
        whole = part_passes(module, images)["choice"]()
    assert module.roi_heads.num_stages == 3
    for a, b in zip(wanted, found, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("boxes", "scores", "labels"))
    with torch.no_grad():
        for a, b in zip(module(images), whole, strict=True):
            assert torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["scores"], b["scores"])
