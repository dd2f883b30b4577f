"""Folders, tables, digits and plug-ins."""

import os

import numpy as np
import pytest
from PIL import Image

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data import DATASETS, fingerprints, load
from effvl_cli.data.files import read_image
from effvl_cli.data.source import Subset


def test_folder_with_splits(image_folder):
    sources = {split: load(f"folder:{image_folder}", split) for split in ("train", "val", "test")}
    assert {split: len(source) for split, source in sources.items()} == {"train": 24, "val": 8, "test": 12}
    train = sources["train"]
    assert train.classes == ("blue thing", "red thing")
    assert train.ids[:3] == ["train/blue_thing/img0.jpg", "train/blue_thing/img1.jpg", "train/blue_thing/img10.jpg"]
    assert train.image(0).getpixel((0, 0))[2] > 200
    assert load("folder:pictures", "train", root=image_folder.parent).ids == train.ids


def _many(folder, count):
    for number in range(count):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").touch()


@pytest.mark.parametrize("reported", ["val", "test"])
def test_with_one_held_out_folder_that_one_is_reported_and_a_tenth_of_train_serves_choices(tmp_path, reported):
    _many(tmp_path / "d" / "train", 200)
    _many(tmp_path / "d" / reported, 20)
    train, val, test = (load(f"folder:{tmp_path / 'd'}", split) for split in ("train", "val", "test"))
    assert len(train) + len(val) == 200 and 8 <= len(val) <= 35
    assert not set(train.ids) & set(val.ids)
    assert len(test) == 20 and all(name.startswith(reported) for name in test.ids)


def test_train_alone_is_split_in_three(tmp_path):
    _many(tmp_path / "d" / "train", 300)
    parts = [set(load(f"folder:{tmp_path / 'd'}", split).ids) for split in ("train", "val", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 300 and min(map(len, parts)) > 10


def test_plain_folder_is_split_by_name_alone(tmp_path):
    for number in range(300):
        folder = tmp_path / "d" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").touch()
    before = {split: load(f"folder:{tmp_path / 'd'}", split).ids for split in ("train", "val", "test")}
    assert sum(len(ids) for ids in before.values()) == 300
    (tmp_path / "d" / "class0" / "new.png").touch()
    after = {split: load(f"folder:{tmp_path / 'd'}", split).ids for split in before}
    assert all(set(before[split]) <= set(after[split]) for split in before)  # no image changes its split


def test_folder_passes_over_what_is_no_image(image_folder):
    (image_folder / "train" / ".hidden").mkdir()
    for name in (".DS_Store", "._img1.jpg", "Thumbs.db", "notes.txt"):
        (image_folder / "train" / "red_thing" / name).write_text("x")
    assert len(load(f"folder:{image_folder}", "train")) == 24


def test_classes_are_sorted_as_people_count(tmp_path):
    for name in ("class10", "Class2", "class1"):
        (tmp_path / "d" / "train" / name).mkdir(parents=True)
        (tmp_path / "d" / "train" / name / "a.png").touch()
    assert load(f"folder:{tmp_path / 'd'}", "train").classes == ("class1", "Class2", "class10")


def test_fingerprint_follows_the_listing(image_folder):
    before = load(f"folder:{image_folder}", "train").fingerprint()
    assert load(f"folder:{image_folder}", "train").fingerprint() == before
    (image_folder / "train" / "red_thing" / "img0.jpg").rename(image_folder / "train" / "red_thing" / "z.jpg")
    assert load(f"folder:{image_folder}", "train").fingerprint() != before


def test_fingerprint_follows_the_content_too(image_folder):
    """Same names and labels, other pixels: of a folder, a table and what is read from either in part."""
    (image_folder / "t.csv").write_text("path,label,split\ntrain/red_thing/img0.jpg,red,train\n")
    specs = (f"folder:{image_folder}", f"csv:{image_folder / 't.csv'}")
    before = [load(spec, "train").fingerprint() for spec in specs]
    whole = fingerprints(specs[0])
    assert whole.keys() == {"train", "val", "test"} and fingerprints(specs[1]).keys() == {"train"}
    changed = image_folder / "train" / "red_thing" / "img0.jpg"
    Image.new("RGB", (50, 50), "green").save(changed)
    again = [load(spec, "train") for spec in specs]
    assert all(source.fingerprint() != old for source, old in zip(again, before, strict=True))
    assert Subset(again[0], np.arange(3)).fingerprint() != Subset(again[1], np.arange(1)).fingerprint()
    found = fingerprints(specs[0])
    assert found["train"] != whole["train"] and found["val"] == whole["val"] and found["test"] == whole["test"]
    changed.unlink()
    assert load(specs[1], "train").fingerprint() not in before  # missing is a state, not an error


def test_a_touched_cifar_file_changes_its_fingerprint(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij"))
    for name in [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]:
        (folder / name).write_bytes(bytes(3073) * 40)
    before = fingerprints("cifar10", root=tmp_path)
    os.utime(folder / "test_batch.bin", ns=(1, 1))
    after = fingerprints("cifar10", root=tmp_path)
    assert {split for split in before if before[split] != after[split]} == {"test"}


def test_fingerprints_of_what_is_made_stay():
    assert fingerprints("digits") == fingerprints("digits")
    assert (
        load("digits", "test").fingerprint() == "dae36af0713c8beb"
        and load("shape-captions", "val").fingerprint() == "a5947d44a1339f80"
    )


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "1", "I;16", "RGB"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((6, 6), 40_000, np.uint16))
    else:
        image = Image.new("RGB", (6, 6), (200, 200, 200)).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "LA") else "a.png")
    image.save(path)
    found = read_image(path)
    assert found.mode == "RGB"
    expected = {"1": 255, "I;16": 155, "P": 204}.get(mode, 200)  # 204: the nearest of the palette
    assert abs(found.getpixel((2, 2))[0] - expected) <= 1


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.new("RGB", (30, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (10, 30)


def test_damaged_images_are_named(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("hello")
    for name in ("cut.jpg", "text.jpg", "none.jpg"):
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"big.png"):
        read_image(tmp_path / "big.png")


@pytest.mark.parametrize("separator", [",", "\t"])
def test_table_with_labels_captions_and_splits(image_folder, separator):
    rows = [["path", "label", "caption", "split"]]
    for split, word in (("train", "train"), ("val", "valid"), ("test", "test")):
        rows += [[f"{split}/red_thing/img{k}.jpg", "red_thing", f"red number {k}", word] for k in range(3)]
        rows += [[f"{split}/blue_thing/img{k}.jpg", "blue_thing", f"blue, number {k}", word] for k in range(3)]
    lines = [separator.join(f'"{c}"' if "," in c else c for c in row) for row in rows]
    (image_folder / "t.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    source = load(f"csv:{image_folder / 't.csv'}", "val")
    assert source.classes == ("blue thing", "red thing")
    assert source.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert source.captions[5] == "blue, number 2"
    assert source.image(0).size == (40, 36)


def test_table_errors_name_line_and_column(tmp_path):
    cases = {
        "name,label\na,b\n": "line 1",
        "path,label\na.jpg,\n": "line 2 has no label",
        "path,label,split\na.jpg,x,train\nb.jpg,y,dev\n": "line 3: split is 'dev'",
    }
    for text, expected in cases.items():
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(DataError, match=expected):
            load(f"csv:{tmp_path / 't.csv'}", "train")


def test_digits_are_split_once_for_all():
    parts = [load("digits", split) for split in ("train", "val", "test")]
    assert sum(len(part) for part in parts) == 1797
    assert len({name for part in parts for name in part.ids}) == 1797
    assert all((np.bincount(part.labels, minlength=10) > 20).all() for part in parts)
    assert parts[0].image(0).size == (32, 32) and parts[0].image(0).mode == "RGB"
    with pytest.raises(UsageError, match="no argument"):
        load("digits:8", "train")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'shape-captions'"):
        DATASETS.find("shapes-caption")


def test_cifar10_folder(test_data, tmp_path):
    import tarfile

    with tarfile.open(test_data / "cifar10_jpeg.tar.gz") as archive:
        wanted = [m for m in archive if m.isfile() and m.name.endswith(("001.jpg", "0010.jpg"))][:400]
        archive.extractall(tmp_path, members=wanted, filter="data")
    source = load(f"folder:{tmp_path}", "test")
    assert source.classes[:3] == ("airplane", "automobile", "bird")
    assert source.image(0).size == (32, 32)


@pytest.mark.parametrize(
    ("name", "kind"), [("mix.yml", "boxes:"), ("list.CSV", "csv:"), ("boxes.json", "coco:"), ("photos", "folder:")]
)
def test_a_path_without_its_kind_is_told_how_to_be_written(tmp_path, name, kind):
    path = tmp_path / name
    path.mkdir() if kind == "folder:" else path.touch()
    with pytest.raises(UsageError) as caught:
        load(str(path), "train")
    assert caught.value.message == f"--data {path} is a path, and what it holds is not said"
    assert caught.value.hint == f"Write {kind}{path}"
