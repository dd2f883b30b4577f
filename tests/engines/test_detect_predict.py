"""`effvl detect predict`: which files, in which order, and what is written of them."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from effvl_cli.core import checkpoint
from effvl_cli.core.errors import DataError
from effvl_cli.data.box_batches import Shrink
from effvl_cli.data.inputs import input_files
from effvl_cli.data.video import all_frames
from effvl_cli.engines.detect import predict, trained_detector
from effvl_cli.engines.detect.found_files import Shown
from effvl_cli.engines.detect.predict import batched
from effvl_cli.engines.detect.trained_detector import Finder
from effvl_cli.models import network as networks
from tests.data.video_files import greys, write_sound, write_video
from tests.engines.coco_files import scene

CLASSES = ("car", "person")


def save(path: str, pixels: np.ndarray, **more) -> Path:
    found = Path(path)
    found.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(found, **more)
    return found


# --- which files -----------------------------------------------------------------------------------------------------


def test_files_folders_patterns_and_lists(workdir, monkeypatch):
    for name in ("a/2.png", "a/10.png", "a/b/1.png", "a/.hidden.png", "c/x_1.png", "c/x_2.png", "c/y.jpg"):
        save(name, scene(0))
    write_video(Path("a/3.mkv"), greys(3))
    Path("a/notes.txt").write_text("no picture")

    def names(*given):
        return [(file.path.as_posix(), file.name) for file in input_files(given)]

    assert names("a") == [("a/2.png", "2.png"), ("a/3.mkv", "3.mkv"), ("a/10.png", "10.png"), ("a/b/1.png", "b/1.png")]
    assert names("c/x_*.png", "a/2.png") == [(f"c/x_{k}.png", f"x_{k}.png") for k in (1, 2)] + [("a/2.png", "2.png")]
    assert names(str(workdir / "c" / "y*"))[0][1] == "y.jpg"
    assert names("c/y.jpg", "c/y.jpg", "c") == [
        ("c/y.jpg", "y.jpg"),
        ("c/x_1.png", "x_1.png"),
        ("c/x_2.png", "x_2.png"),
    ]
    assert [file.video for file in input_files(["a"])] == [False, True, False, False]
    monkeypatch.setattr("sys.stdin", io.StringIO("c/y.jpg\n\na/2.png\n"))
    assert names("-") == [("c/y.jpg", "y.jpg"), ("a/2.png", "2.png")]


def test_files_of_one_name_get_names_of_their_own(workdir):
    for name in ("a/1.png", "b/1.jpg", "c/1-2.png"):
        save(name, scene(0))
    assert [file.name for file in input_files(["a/1.png", "b/1.jpg", "c/1-2.png"])] == ["1.png", "1-2.jpg", "1-2-2.png"]


@pytest.mark.parametrize(
    ("word", "part"), [("nowhere", "names nothing"), ("x*.png", "names nothing"), ("e", "holds no image")]
)
def test_words_that_name_nothing(workdir, word, part):
    Path("e").mkdir()
    with pytest.raises(DataError, match=part):
        input_files([word])


# --- the stream ------------------------------------------------------------------------------------------------------


class Recorder:
    """A detector that finds one box whose corner is the grey level of the image, and notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []

    def __call__(self, images, night):
        self.batches.append([tuple(image.shape) for image in images])
        assert len({tuple(image.shape) for image in images}) == 1
        return [
            {
                "boxes": torch.tensor([[0.0, 0, image.shape[2], image.shape[1]], [0, 0, 1, 1]]),
                "scores": torch.tensor([float(image[0, 0, 0]) / 255, 0.01]),
                "labels": torch.tensor([1, 2]),
                "conditions": torch.tensor([0, 1]),
            }
            for image in images
        ]


@pytest.mark.parametrize("size", [1, 3, 64])
def test_the_order_of_the_outputs_is_that_of_the_inputs(size):
    recorder = Recorder()
    finder = Finder(CLASSES, recorder, 0.05, Shrink(20, 40))
    shapes = [(40, 60), (20, 20), (40, 60), (30, 90), (80, 120), (20, 20), (15, 15)] * 5
    images = [Image.new("RGB", shape[::-1], (50 + k, 0, 0)) for k, shape in enumerate(shapes)]
    stream = [Shown(None, image) for image in images]  # type: ignore[arg-type]
    found = list(batched(stream, finder, size))
    assert [shown.image for shown, _ in found] == images
    for k, (shown, one) in enumerate(found):
        assert one["scores"].tolist() == pytest.approx([(50 + k) / 255])
        assert one["boxes"].tolist() == [[0, 0, shown.image.width, shown.image.height]]
    assert sum(map(len, recorder.batches)) == len(shapes)
    assert max(map(len, recorder.batches)) <= size
    if size == 3:  # 40 x 60 and 80 x 120 are seen at the same size
        assert sorted(map(len, recorder.batches))[-5:] == [3] * 5


def test_few_images_wait(monkeypatch):
    monkeypatch.setattr(predict, "WINDOW", 2)
    seen = 0

    def stream():
        nonlocal seen
        for k in range(20):
            seen += 1
            yield Shown(None, Image.new("RGB", (40, 40 + (k == 0)), (90, 0, 0)))  # type: ignore[arg-type]

    first = next(iter(batched(stream(), Finder(CLASSES, Recorder(), 0.05, Shrink(80, 80)), 4)))
    assert first[0].image.height == 41
    assert seen <= 9


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(
        predict, "finder_of", lambda config, run: Finder(CLASSES, recorder, config.score, Shrink(20, 40))
    )
    monkeypatch.setattr("effvl_cli.cli.app.earlier_run", lambda *rest: None)
    return recorder


def images_of(folder: str) -> list[dict]:
    return json.loads(Path(folder, "images.json").read_text())["images"]


def test_what_is_written(fake, here, report, workdir):
    save("in/2.png", scene(0))
    save("in/sub/1.png", scene(1, size=(60, 40)))
    write_video(Path("in/3.mkv"), greys(7, height=31, width=40) + 120)
    line = ("detect", "predict", "--input", "in", "--save", "images,video,coco,yolo", "--every", "3")
    outcome = here(*line, "--out", "r")
    assert "all 3 files" in outcome.out
    done = report("r")
    assert (done.technique["images"], done.technique["per_class"]) == (5, {"car": 5, "person": 0})
    assert done.technique["conditions"] == {"day": 5}
    assert [row["file_name"] for row in images_of("r")] == [
        *("2.png", "3_000000.jpg", "3_000003.jpg", "3_000006.jpg", "sub/1.png"),
    ]
    assert images_of("r")[1] == {
        "id": 2,
        "file_name": "3_000000.jpg",
        "width": 40,
        "height": 31,
        "video": "3.mkv",
        "frame": 0,
    }
    rows = json.loads(Path("r/detections.json").read_text())
    assert [row["image_id"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[4] == {**rows[4], "category_id": 1, "bbox": [0, 0, 40, 60], "condition": "day"}
    assert Path("r/labels/sub/1.txt").read_text() == f"0 0.500000 0.500000 1.000000 1.000000 {rows[4]['score']:.5f}\n"
    assert Path("r/labels/classes.txt").read_text() == "car\nperson\n"
    assert sorted(path.name for path in Path("r/labels").iterdir() if path.name[0] == "3") == [
        f"3_00000{k}.txt" for k in (0, 3, 6)
    ]
    assert sorted(str(path.relative_to("r/images")) for path in Path("r/images").rglob("*.jpg")) == [
        "2.jpg",
        "sub/1.jpg",
    ]
    frames = list(all_frames(Path("r/videos/3.mp4")))
    assert len(frames) == 3
    assert frames[0].shape == (30, 40, 3)  # H.264 wants even sides
    assert Path("r/plots/detections.png").is_file()
    save("in/2.png", scene(0, size=(20, 20)))
    here(*line, "--out", "r", "--fresh")
    assert images_of("r")[0]["height"] == 20


def test_images_as_they_are_shown(fake, here, workdir):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    save("rotated.jpg", scene(0), exif=exif)
    Image.fromarray(np.full((30, 50), 40000, dtype=np.uint16)).save("deep.png")
    Image.fromarray(scene(0)).convert("CMYK").save("printed.jpg")
    Image.fromarray(scene(0)).convert("LA").save("clear.png")
    here("detect", "predict", "--input", "rotated.jpg,deep.png,printed.jpg,clear.png", "--out", "r")
    assert [(row["width"], row["height"]) for row in images_of("r")] == [(50, 80), (50, 30), (80, 50), (80, 50)]
    deep = json.loads(Path("r/detections.json").read_text())[1]
    assert deep["score"] == pytest.approx(155 / 255, abs=0.01)


def test_the_numbers_of_an_annotation_file(fake, here, effvl, report, workdir):
    for k in range(3):
        save(f"in/{k}.png", scene(k))
    images = [{"id": 40 + k, "file_name": f"{k}.png"} for k in (2, 0)]
    Path("truth.json").write_text(
        json.dumps({"images": images, "categories": [{"id": 9, "name": "person"}, {"id": 0, "name": "car"}]})
    )
    line = ("detect", "predict", "--input", "in", "--save", "coco")
    here(*line, "--annotations", "truth.json", "--out", "r")
    rows = json.loads(Path("r/detections.json").read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(40, 0), (43, 0), (42, 0)]
    assert "1 images are not in --annotations" in report("r").warnings[0]
    Path("truth.json").write_text(json.dumps({"images": images, "categories": [{"id": 9, "name": "person"}]}))
    outcome = effvl(*line, "--annotations", "truth.json", "--out", "s")
    assert outcome.code == 3
    assert "lacks the classes car" in outcome.error


def test_unreadable_files(fake, effvl, here, report, workdir):
    save("in/1.png", scene(0))
    Path("in/2.png").write_bytes(b"no image")
    outcome = effvl("detect", "predict", "--input", "in", "--out", "r")
    assert outcome.code == 3
    assert "in/2.png" in outcome.error
    outcome = here("detect", "predict", "--input", "in", "--on-bad", "skip", "--out", "s")
    assert "1 files cannot be read and were left out" in outcome.out
    assert [row["file_name"] for row in images_of("s")] == ["1.png"]
    assert "in/2.png" in report("s").warnings[0]


def test_what_is_found_outlives_any_number_of_unreadable_files(fake, here, workdir):
    for k in range(3):
        save(f"in/{k}.png", scene(k))
        Path(f"in/bad{k}.png").write_bytes(b"no image")
    outcome = here("detect", "predict", "--input", "in", "--on-bad", "skip", "--out", "r")
    assert [row["file_name"] for row in images_of("r")] == ["0.png", "1.png", "2.png"]
    assert "3 files cannot be read" in outcome.out


def test_many_images_of_a_folder_are_one_row():
    def row(name, folder, *counts):
        return {"file": name, "images": 1 if folder else 50, "per_class": list(counts), "folder": folder}

    stills = [row(f"{k}.png", "in/many", k, 1) for k in range(9)]
    files = [*stills[:5], row("film.mp4", None, 7, 0), *stills[5:], row("a.png", "in/few", 2, 2)]
    per_class = {"car": 36 + 7 + 2, "person": 9 + 2}
    about = {"files": files, "classes": list(per_class), "per_class": per_class, "images": 60, "conditions": {}}
    table = predict.table(SimpleNamespace(command="detect predict", technique={**about, "unreadable": 0}))
    assert table.rows == (
        ("in/many/", 9, 45, 36, 9),
        ("film.mp4", 50, 7, 7, 0),
        ("a.png", 1, 4, 2, 2),
        ("all 11 files", 60, 56, 45, 11),
    )
    assert table.notes == ("images of a folder in one row; report.json has each",)


def test_an_image_of_nothing(fake, effvl, workdir):
    save("thin.png", scene(0, size=(3, 50)))
    outcome = effvl("detect", "predict", "--input", "thin.png", "--out", "r")
    assert outcome.code == 3
    assert "thin.png is 50x3 px" in outcome.error


def test_videos_without_frames(fake, effvl, workdir):
    write_sound(Path("sound.mkv"))
    Path("text.mp4").write_text("no video")
    for name, part in (("sound.mkv", "no video stream"), ("text.mp4", "cannot be read")):
        outcome = effvl("detect", "predict", "--input", name, "--out", "r", "--fresh")
        assert outcome.code == 3
        assert name in outcome.error
        assert part in outcome.error


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("", "--input is missing"),
        ("--input a.png --score 1", "--score is 1"),
        ("--input a.png --save film", "--save is film"),
        ("run --input a.png --onnx a.onnx", "Give one of them"),
    ],
)
def test_mistakes(fake, effvl, workdir, line, part):
    outcome = effvl("detect", "predict", *line.split())
    assert outcome.code == 2
    assert part in outcome.error


def test_a_damaged_video_is_said(test_data):
    heard: list[str] = []
    assert len(list(all_frames(test_data / "videos" / "corrupted.mp4", 20, heard.append))) == 3
    (text,) = heard
    for part in ("corrupted.mp4 is damaged", "49 of 50 frames", "after frame 28"):
        assert part in text
    assert list(all_frames(test_data / "videos" / "video_90.mov", 4, heard.append))
    assert len(heard) == 1


def test_a_damaged_video_is_an_error_unless_it_is_to_be_skipped(fake, effvl, here, report, workdir, test_data):
    line = ("detect", "predict", "--input", test_data / "videos" / "corrupted.mp4", "--every", 20)
    outcome = effvl(*line, "--out", "r")
    assert outcome.code == 3
    for part in ("corrupted.mp4 is damaged", "49 of 50 frames", "after frame 28", "--on-bad skip"):
        assert part in outcome.error
    outcome = here(*line, "--on-bad", "skip", "--out", "s")
    assert len(images_of("s")) == 3
    assert (report("s").technique["damaged"], report("s").technique["unreadable"]) == (1, 0)
    assert "1 video cannot be decoded as a whole" in outcome.out
    assert "corrupted.mp4 is damaged" in report("s").warnings[0]


def test_a_video_that_is_stored_turned(test_data):
    frames = list(all_frames(test_data / "videos" / "video_90.mov", every=4))
    assert all(frame.shape == (568, 320, 3) for frame in frames)
    whole = list(all_frames(test_data / "videos" / "video_90.mov"))
    assert len(frames) == -(-len(whole) // 4)
    assert np.array_equal(frames[-1], whole[4 * (len(frames) - 1)])


# --- a real detector -------------------------------------------------------------------------------------------------


@pytest.fixture
def detector(workdir) -> Path:
    """A run folder with a detector of random weights."""
    network = networks.build("cascade-rcnn:tiny", seed=0, num_classes=2)
    manifest = {**network.describe(), "classes": list(CLASSES), "conditions": ["day", "night"]}
    checkpoint.save_model(Path("run") / checkpoint.CHECKPOINT, network.module.state_dict(), manifest)
    Path("run/config.yaml").write_text("effvl: 1\ncommand: detect train\nconfig: {}\n")
    return Path("run")


def test_a_batch_changes_nothing(detector, here, report, workdir):
    for k in range(5):
        save(f"in/{k}.png", scene(k, size=(160, 256) if k % 2 else (120, 100)))
    found = []
    for batch in (1, 4):
        line = (
            "detect",
            "predict",
            detector,
            "--input",
            "in",
            "--score",
            0.01,
            "--save",
            "coco",
            "--batch-size",
            batch,
        )
        here(*line, "--out", f"r{batch}")
        found.append(json.loads(Path(f"r{batch}/detections.json").read_text()))
    one, four = found
    assert len(one) == len(four) > 0
    for ours, theirs in zip(one, four, strict=True):
        assert ours["image_id"] == theirs["image_id"]
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.05)
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
    assert report("r1").model.params_total > 100_000


def test_a_run_without_a_detector(effvl, detector, workdir):
    save("a.png", scene(0))
    Path("other").mkdir()
    Path("other/config.yaml").write_text("effvl: 1\ncommand: detect tag\nconfig: {}\n")
    outcome = effvl("detect", "predict", "other", "--input", "a.png")
    assert outcome.code == 4
    assert "holds no detector" in outcome.error
    Path("other/model.onnx").write_bytes(b"exported")
    for given in ("other", "other/model.onnx"):
        for line in (("predict", given, "--input", "a.png"), ("eval", given, "--data", "road-scenes:scenes=2")):
            outcome = effvl("detect", *line)
            assert outcome.code == 4 and "--onnx other/model.onnx" in outcome.error, outcome.error


def test_a_file_in_place_of_a_run(effvl, here, report, workdir, monkeypatch):
    """The runner's own numbers are held against the detector in the tests of `detect export`."""

    class Runner:
        classes, props = CLASSES, {"score_thresh": 0.5}

        def __init__(self, path) -> None:
            assert path == "a.onnx"

        def __call__(self, images):
            assert [tuple(image.shape) for image in images] == [(3, 300, 400)]  # it is not shrunk before
            return Recorder()(images, [False])

    save("a.png", np.full((300, 400, 3), 200, dtype=np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr(trained_detector, "OnnxDetector", Runner)
        here("detect", "predict", "--onnx", "a.onnx", "--input", "a.png", "--out", "r")
    [row] = json.loads(Path("r/detections.json").read_text())
    assert row["bbox"] == [0, 0, 400, 300]
    assert "finds nothing below 0.5" in report("r").warnings[0]
    outcome = effvl("detect", "predict", "--onnx", "nowhere.onnx", "--input", "a.png")
    assert outcome.code == 4
    assert "nowhere.onnx" in outcome.error
