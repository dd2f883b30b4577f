"""ImageNet's class folders and the binary CIFARs."""

import numpy as np
import pytest

from effvl_cli.core.errors import DataError
from effvl_cli.data import SPLITS, load
from tests.data import layouts

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.parametrize("folder", ["imagenet/images", "imagenet"])
def test_imagenet_is_named_and_a_tenth_of_train_is_held_out(tmp_path, folder):
    layouts.imagenet(tmp_path / folder)
    train, val, test = (load("imagenet", split, root=tmp_path) for split in SPLITS)
    assert train.classes == val.classes == test.classes == ("tench", "goldfish", "kit fox")
    assert len(train) + len(val) == 120 and 3 <= len(val) <= 30 and not set(train.ids) & set(val.ids)
    assert len(test) == 15 and all(name.startswith("val/n0") for name in test.ids)
    assert test.image(14).size == (6, 4) and "3 of 1,000" in test.remark
    assert [train.ids[k].split("/")[1] for k in (0, -1)] == ["n01440764", "n02119789"]


def test_names_of_the_file_go_before_those_of_open_clip(tmp_path):
    layouts.imagenet(tmp_path / "imagenet" / "images")
    names = tmp_path / "imagenet" / "classnames.txt"
    names.write_text("n02119789 kit_fox\nn01440764 tench fish\nn01443537 goldfish\n")
    assert load("imagenet", "test", root=tmp_path).classes == ("tench fish", "goldfish", "kit fox")
    names.write_text("n02119789 kit_fox\nn01440764 tench fish\n")
    with pytest.raises(DataError, match=r"class folder n01443537 .* has no name"):
        load("imagenet", "test", root=tmp_path)
    names.write_text("n02119789\n")
    with pytest.raises(DataError, match=r"classnames.txt line 1"):
        load("imagenet", "test", root=tmp_path)


def test_val_alone_will_do_for_test(tmp_path):
    layouts.imagenet(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "train").rename(tmp_path / "elsewhere")
    assert len(load("imagenet", "test", root=tmp_path)) == 15
    with pytest.raises(DataError, match=r"imagenet/images/train is missing"):
        load("imagenet", "train", root=tmp_path)


def test_imagenet_that_is_not_sorted_into_classes_is_refused(tmp_path):
    layouts.imagenet(tmp_path / "imagenet")
    place = tmp_path / "imagenet" / "val"
    place.rename(tmp_path / "sorted")
    layouts.pictures(place, ["ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(DataError, match="val holds no class folders"):
        load("imagenet", "test", root=tmp_path)
    (place / "n01440764").mkdir()
    with pytest.raises(DataError, match="class n01443537 is in one of train and val"):
        load("imagenet", "test", root=tmp_path)


def _cifar10(root, rows=40):
    files = {f"data_batch_{k}.bin": rows for k in range(1, 6)} | {"test_batch.bin": 30}
    layouts.cifar(root / "cifar-10-batches-bin", files, "batches.meta.txt", CIFAR10, 1)


def test_cifar10_reads_records(tmp_path):
    _cifar10(tmp_path)
    train, val, test = (load("cifar10", split, root=tmp_path) for split in SPLITS)
    assert test.classes == CIFAR10 and test.templates == ("a photo of a {}.",)
    assert len(test) == 30 and test.labels.tolist() == [*range(10)] * 3
    assert len(train) + len(val) == 200 and 5 <= len(val) <= 40 and not set(train.ids) & set(val.ids)
    raw = (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").read_bytes()
    pixels = np.asarray(test.image(7))
    assert pixels.shape == (32, 32, 3)
    for y, x, colour in ((0, 0, 0), (5, 31, 1), (31, 2, 2)):
        assert pixels[y, x, colour] == raw[7 * 3073 + 1 + colour * 1024 + y * 32 + x]
    name, row = val.ids[3].split("/")
    raw = (tmp_path / "cifar-10-batches-bin" / name).read_bytes()
    assert np.asarray(val.image(3))[0, 0, 0] == raw[int(row) * 3073 + 1]
    assert val.labels[3] == raw[int(row) * 3073]


def test_cifar100_takes_the_fine_labels(tmp_path):
    classes = [f"fine_{k}" for k in range(100)]
    layouts.cifar(
        tmp_path / "cifar-100-binary", {"train.bin": 120, "test.bin": 100}, "fine_label_names.txt", classes, 2
    )
    test = load("cifar100", "test", root=tmp_path)
    assert test.labels.tolist() == [*range(100)] and test.classes[12] == "fine 12"
    raw = (tmp_path / "cifar-100-binary" / "test.bin").read_bytes()
    assert np.asarray(test.image(99))[31, 31, 2] == raw[100 * 3074 - 1]
    assert len(load("cifar100", "train", root=tmp_path)) + len(load("cifar100", "val", root=tmp_path)) == 120


def test_the_pickled_version_is_refused_with_the_fix(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"cifar-10-batches-bin/batches.meta.txt is missing") as raised:
        load("cifar10", "train", root=tmp_path)
    assert "cifar-10-batches-py is the pickled version" in raised.value.hint
    assert "cifar-10-binary.tar.gz" in raised.value.hint


def test_a_cut_file_and_a_label_without_a_name_are_refused(tmp_path):
    _cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.bin holds 122919 bytes"):
        load("cifar10", "train", root=tmp_path)
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(DataError, match=r"data_batch_3.bin has label 10 of 10 classes"):
        load("cifar10", "train", root=tmp_path)
    source = load("cifar10", "test", root=tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(whole[:3073])
    with pytest.raises(DataError, match=r"test_batch.bin cannot be read at image 00005"):
        source.image(5)
