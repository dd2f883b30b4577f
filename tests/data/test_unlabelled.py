"""Pictures without labels, data sets of other kinds, and of one class only."""

import sys
import types

import numpy as np
import pytest
from PIL import Image

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.registry import Row
from effvl_cli.data import DATASETS, fingerprints, load, open_source

TRAINING = ("--image-size", 16, "--model", "vit:nano/4@16,mean", "--batch-size", 8, "--budget", 40, "--no-baseline")


def _pictures(folder, count=30, size=(40, 24)):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1] + number % 5, size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg")
    return folder


def test_a_flat_folder_has_no_classes_and_is_divided_by_name(tmp_path):
    _pictures(tmp_path / "d", 60)
    parts = [load(f"folder:{tmp_path / 'd'}", split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 60 and all(part.classes == () and not part.labels.any() for part in parts)
    assert parts[0].image(0).mode == "RGB" and parts[0].ids[0].endswith(".jpg") and "/" not in parts[0].ids[0]


def test_all_that_lies_below_a_folder_without_labels(tmp_path):
    for name in ("2021/may", "2022"):
        _pictures(tmp_path / "d" / name, 20)
    assert load(f"folder:{tmp_path / 'd'}", "train").classes == ("2021", "2022")
    parts = [load(f"images:{tmp_path / 'd'}", split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 40 and all(part.classes == () for part in parts)
    with pytest.raises(DataError, match="no folder at"):
        load(f"images:{tmp_path / 'none'}", "train")


def test_images_beside_class_folders_are_spoken_of(image_folder):
    _pictures(image_folder / "train", 3)
    source = load(f"folder:{image_folder}", "train")
    assert len(source) == 24 and source.remark.startswith("3 images outside the class folders")


@pytest.mark.parametrize("where", ["batch", "worker"])
@pytest.mark.parametrize("spec", ["folder", "images"])
def test_unlabelled_pictures_of_any_shape_train(effvl, tmp_path, report, where, spec):
    _pictures(tmp_path / "d", 60)
    outcome = effvl("pretrain", "--data", f"{spec}:{tmp_path / 'd'}", *TRAINING, "--aug-device", where, "--out", "run")
    assert outcome.code == 0, outcome.err
    done = report("run")
    assert "knn20" not in done.metrics and done.metrics["units"].value > 0
    assert [text for text in done.warnings if "no classes: k-NN and probes are left out" in text]


def test_with_one_class_only_nothing_is_classified(tmp_path, effvl, report):
    _pictures(tmp_path / "d" / "cat", 60)
    outcome = effvl("pretrain", "--data", f"folder:{tmp_path / 'd'}", *TRAINING, "--out", "run")
    assert outcome.code == 0, outcome.err
    assert any("one class only, 'cat': k-NN and probes" in text for text in report("run").warnings)
    assert "knn20" not in report("run").metrics


class _Scenes:
    """A source whose samples are no images."""

    name, split, kind, endless = "scenes", "train", "boxes", False
    ids = ("a", "b")

    def __len__(self):
        return 2

    def fingerprint(self):
        return "1"


@pytest.mark.parametrize("row_kind", ["boxes", ""])  # a row that says it, and one whose builder alone knows
def test_a_command_that_gets_another_kind_says_so_in_one_line(monkeypatch, effvl, row_kind):
    module = types.ModuleType("some_scenes")
    module.build = lambda argument, split, *, root, seed, reading=None: _Scenes()  # as builders of boxes are called
    monkeypatch.setitem(sys.modules, "some_scenes", module)
    monkeypatch.setitem(DATASETS._rows, "scenes", Row("scenes", "some_scenes:build", "boxes in scenes", row_kind))
    with pytest.raises(UsageError, match="--data scenes is a data set of boxes, and this command works on images"):
        load("scenes", "train")
    for command in ("pretrain", "prune-tokens", "prune-blocks"):
        length = ("--budget", 40) if command == "pretrain" else ()
        outcome = effvl(command, "--data", "scenes", *length, "--out", command)
        assert outcome.code == 2 and "is a data set of boxes" in outcome.error
    assert len(open_source("scenes", "train", kind="boxes")) == 2
    assert fingerprints("scenes") == dict.fromkeys(("train", "val", "test"), "1")
    assert effvl("data", "check", "scenes").code == 0


def test_the_list_says_what_kind_each_data_set_is(effvl):
    shown = effvl("list", "datasets").out
    assert "kind" in shown and shown.count("images") >= 18
