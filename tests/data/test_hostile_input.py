"""What people's files hold: damaged bytes, odd encodings, links, names that clash, few descriptors."""

import io
import os
import random
import resource
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.registry import Registry, Row
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.fewshot import few_shot
from effvl_cli.data.files import _as_rgb, read_image
from effvl_cli.data.loader import loader_workers, train_batches
from effvl_cli.data.prompts import choose_templates
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.transforms import Preprocess, augment

PLAIN = Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def test_listing_data_sets_imports_neither_torch_nor_numpy():
    code = "import sys, effvl_cli.data; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_bytes_give_a_picture_or_a_data_error_and_nothing_else(tmp_path, kind):
    draw, stream, exif = random.Random(0), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
    refused = 0
    for _ in range(150):
        data = bytearray(stream.getvalue())
        for _ in range(draw.choice((1, 4, 20))):
            data[draw.randrange(min(len(data), draw.choice((80, 10**6))))] = draw.randrange(256)
        (tmp_path / "x.img").write_bytes(data[: draw.choice((len(data), draw.randrange(len(data))))])
        try:
            assert read_image(tmp_path / "x.img").mode == "RGB"
        except DataError as error:
            assert "x.img" in error.message
            refused += 1
    assert 0 < refused < 150


def test_exif_that_cannot_be_read_is_a_data_error(tmp_path, monkeypatch):
    def broken(image):
        raise struct.error("required argument is not an integer")

    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(ImageOps, "exif_transpose", broken)
    with pytest.raises(DataError, match=r"a\.jpg cannot be decoded"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(("value", "expected"), [(200, 0), (40_000, 155), (65_535, 255)])
def test_sixteen_bits_are_scaled_alike_in_dark_and_bright_pictures(tmp_path, value, expected):
    Image.fromarray(np.full((6, 6), value, np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((2, 2)) == (expected,) * 3


def _classes(root, *names, count=2):
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").touch()
    return root.parent


def test_a_link_into_its_own_folder_lists_each_image_once(tmp_path):
    folder = _classes(tmp_path / "d" / "train", "a", "b")
    (folder / "train" / "a" / "again").symlink_to(folder / "train" / "a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.PNG").touch()
    (folder / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "val" / "a").mkdir(parents=True)  # so that nothing of train is held out
    expected = ["train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png", "train/linked/far.PNG"]
    assert load(f"folder:{folder}", "train").ids == expected


def test_classes_that_read_the_same_are_refused(tmp_path):
    folder = _classes(tmp_path / "d" / "train", "red_box", "red box")
    with pytest.raises(DataError, match=r"'red box' and 'red_box'.* read the same"):
        load(f"folder:{folder}", "train")
    (tmp_path / "t.csv").write_text("path,label,split\na.jpg,red_box,train\nb.jpg,red box,train\n")
    with pytest.raises(DataError, match="read the same"):
        load(f"csv:{tmp_path / 't.csv'}", "train")


def test_numbers_that_are_no_decimals_are_only_text(tmp_path):
    folder = _classes(tmp_path / "d" / "train", "10²", "²", "9", count=30)
    assert load(f"folder:{folder}", "train").classes == ("9", "10²", "²")


def test_a_split_that_too_few_files_leave_empty_says_so(tmp_path):
    folder = _classes(tmp_path / "d" / "train", "a", count=1)
    with pytest.raises(DataError, match="for split val") as caught:
        load(f"folder:{folder}", "val")
    assert "Too few" in caught.value.hint


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    folder = _classes(tmp_path / "birds" / "train", "a", count=40)
    monkeypatch.chdir(folder)
    assert load("folder:.", "train").name == "folder:birds"


def test_a_class_of_test_alone_is_refused(tmp_path):
    folder = _classes(tmp_path / "d" / "train", "a")
    _classes(tmp_path / "d" / "test", "a", "q")
    with pytest.raises(DataError, match="class 'q'"):
        load(f"folder:{folder}", "test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\na.jpg,café\n".encode("latin-1"), "not UTF-8 text"),
        ("path,label\na.jpg,x\n".encode("utf-16"), "not UTF-8 text"),
        (b"path,label\na.jpg," + b"x" * 200_000 + b"\n", "not a table"),
        (b"", "line 1 has columns none"),
    ],
)
def test_a_table_that_is_no_text_is_a_data_error(tmp_path, text, expected):
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(DataError, match=expected):
        load(f"csv:{tmp_path / 't.csv'}", "train")


def test_labels_of_a_table_are_sorted_as_people_count(tmp_path):
    rows = "".join(f"{k}.jpg,{k},train\n" for k in range(12))
    (tmp_path / "t.csv").write_text("path,label,split\n" + rows)
    source = load(f"csv:{tmp_path / 't.csv'}", "train")
    assert source.classes == tuple(str(k) for k in range(12))
    assert source.labels.tolist() == list(range(12))


def test_few_images_of_each_class_needs_classes(tmp_path):
    (tmp_path / "t.csv").write_text("path,caption,split\na.jpg,hello,train\n")
    source = load(f"csv:{tmp_path / 't.csv'}", "train")
    assert source.classes == () and list(source.captions) == ["hello"]
    with pytest.raises(DataError, match="no classes"):
        few_shot(source, 2, 0)


def test_templates_that_would_break_formatting_are_refused(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "t.png")
    for wrong in ("a {} }", "a {}}", "{ {}", "x" * 5000, str(tmp_path / "t.png")):
        with pytest.raises(UsageError, match="--templates"):
            choose_templates(wrong, ())


class _Made:
    """Pictures in memory, as a plug-in would bring them; number 3 is unreadable."""

    name, split, classes, templates, captions, endless = "made", "train", ("a",), ("a {}",), None, False

    def __init__(self, count: int = 300) -> None:
        self.labels, self.ids = np.zeros(count, np.int64), [str(k) for k in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index):
        if index == 3:
            raise DataError("made/3 is damaged")
        return Image.new("RGB", (8, 8), (index % 256, 0, 0))

    def fingerprint(self) -> str:
        return "0"


@pytest.fixture
def few_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.timeout(120)
def test_loader_processes_need_few_file_descriptors(few_descriptors):
    """Four batches wait at once: 512 samples, twice the descriptors that there are."""
    source, sampler = _Made(), EpochSampler(300, 128, 0)
    stream = train_batches(source, augment("none", PLAIN), sampler, seed=0, start_step=0, workers=2, on_bad="skip")
    batches = [next(stream) for _ in range(4)]
    for batch in batches:
        assert torch.equal(batch.images[:, 0, 0, 0], (batch.indices % 256).to(torch.uint8))
        assert 3 not in batch.indices


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_out_the_unreadable_and_keeps_the_order(workers):
    images = Decoded.read(_Made(), PLAIN, np.arange(200), workers=workers, on_bad="skip")
    assert images.indices.tolist() == [k for k in range(200) if k != 3]
    assert images.pixels[:, 0, 0, 0].tolist() == images.indices.tolist()
    images = Decoded.read(_Made(), PLAIN, np.array([3]), workers=workers, on_bad="skip")
    assert images.pixels.shape == (0, 3, 8, 8) and images.indices.tolist() == [] and images.bad_files == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_loader_process_arrives_as_itself(workers):
    with pytest.raises(DataError, match="made/3 is damaged") as caught:
        Decoded.read(_Made(), PLAIN, np.arange(8), workers=workers)
    assert caught.value.exit_code == 3 and "--on-bad skip" in caught.value.hint


def test_more_than_one_percent_unreadable_ends_the_run(monkeypatch):
    monkeypatch.setattr(_Made, "image", lambda self, index: (_ for _ in ()).throw(DataError(f"made/{index}")))
    with pytest.raises(DataError, match="more than 1%"):
        Decoded.read(_Made(), PLAIN, on_bad="skip")


def test_loader_processes_by_default():
    assert loader_workers(None, "cpu") == 0
    assert 1 <= loader_workers(None, "cuda") <= 8


def test_a_source_of_ones_own_is_loaded_by_its_row(monkeypatch, tmp_path):
    seen = {}

    def build(argument, split, *, root, seed):
        seen.update(argument=argument, split=split, root=root, seed=seed)
        return _Made()

    module = types.ModuleType("someones_data")
    module.build = build
    monkeypatch.setitem(sys.modules, "someones_data", module)
    rows = Registry("data set", "effvl.none", [Row("made:", "someones_data:build", "pictures in memory")])
    monkeypatch.setattr("effvl_cli.data.DATASETS", rows)
    assert load("made:a:b", "val", root=str(tmp_path), seed=4).name == "made"
    assert seen == {"argument": "a:b", "split": "val", "root": tmp_path, "seed": 4}


# --- what lies in folders besides images ------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path):
    """36 training images of two classes and 8 test images, a link from one class to the data set and others besides."""
    root = _classes(tmp_path / "d" / "train", "cat", "dog", count=18)
    _classes(tmp_path / "d" / "test", "cat", "dog", count=4)
    return root


@pytest.mark.parametrize("target", ["", "train", "train/dog", "test", "test/dog", ".."])
def test_a_link_to_a_parent_folder_mixes_neither_classes_nor_splits(linked, target):
    _classes(linked / "val", "cat", "dog", count=2)
    (linked / "train" / "cat" / "loop").symlink_to((linked / target).resolve())
    train = load(f"folder:{linked}", "train")
    assert len(train) == 36 and np.bincount(train.labels).tolist() == [18, 18]
    assert "train/cat/loop" in train.remark and not load(f"folder:{linked}", "test").remark


def test_a_class_that_is_a_link_to_another_class_is_passed_over_and_one_to_a_pool_is_not(linked):
    _classes(linked / "val", "cat", "dog", count=2)
    _classes(linked / "pool", "bird", count=3)
    (linked / "train" / "bird").symlink_to(linked / "pool" / "bird")
    (linked / "train" / "kitten").symlink_to(linked / "train" / "cat")
    train = load(f"folder:{linked}", "train")
    assert train.classes == ("bird", "cat", "dog", "kitten")
    assert np.bincount(train.labels, minlength=4).tolist() == [3, 18, 18, 0]
    assert train.remark.endswith("train/kitten")


@pytest.mark.timeout(20)
def test_pipes_and_sockets_are_no_images_and_nobody_waits_for_them(linked):
    _classes(linked / "val", "cat", "dog", count=2)
    os.mkfifo(linked / "train" / "cat" / "pipe.jpg")
    (linked / "train" / "dog" / "pipe.png").symlink_to(linked / "train" / "cat" / "pipe.jpg")
    (linked / "train" / "dog" / "gone.png").symlink_to(linked / "nowhere.png")
    train = load(f"folder:{linked}", "train")
    assert len(train) == 37 and "pipe.jpg" in train.remark and "pipe.png" in train.remark
    with pytest.raises(DataError, match=r"no image at .*gone\.png"):  # a broken link is not silently less data
        train.image(train.ids.index("train/dog/gone.png"))
    for name in ("cat/pipe.jpg", "dog/pipe.png"):
        with pytest.raises(DataError, match=r"pipe.* is not a regular file"):
            read_image(linked / "train" / name)
    (linked / "t.csv").write_text("path,label,split\ntrain/cat/pipe.jpg,cat,train\n")
    with pytest.raises(DataError, match="not a regular file"):
        load(f"csv:{linked / 't.csv'}", "train").image(0)


# --- modes that are not 8-bit -----------------------------------------------------------------------------------------


def test_a_float_picture_from_0_to_1_is_scaled_and_another_range_is_refused(tmp_path):
    def saved(*values):
        Image.fromarray(np.array([values], np.float32)).save(tmp_path / "f.tif")
        return [read_image(tmp_path / "f.tif").getpixel((x, 0)) for x in range(len(values))]

    assert saved(0.0, 100 / 255, 0.5, 1.0) == [(v,) * 3 for v in (0, 100, 128, 255)]
    for values in ((0.0, 255.0), (-0.5, 0.5), (float("nan"), 0.5)):
        with pytest.raises(DataError, match=r"f\.tif holds floats \(mode F\)"):
            saved(*values)


def test_integers_are_scaled_by_the_range_of_their_kind_or_refused(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1000\n" + np.array([0, 500, 1000], ">u2").tobytes())
    assert [read_image(tmp_path / "a.pgm").getpixel((x, 0))[0] for x in range(3)] == [0, 127, 255]
    for name, value in (("small.tif", 200), ("large.tif", 70_000)):  # once taken for 8 bits, and for white
        Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name} holds 32-bit"):
            read_image(tmp_path / name)


def test_sixteen_bits_whose_zero_is_white_are_turned_round(tmp_path):
    image = Image.fromarray(np.array([[0, 257 * 100, 65_535]], np.uint16))
    image.save(tmp_path / "w.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "w.tif") as file:
        assert file.tag_v2[262] == 0 and file.mode == "I;16"
    assert [read_image(tmp_path / "w.tif").getpixel((x, 0))[0] for x in range(3)] == [255, 155, 0]


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "YCbCr", "HSV", "RGBX"])
def test_less_common_modes_become_rgb_too(mode):
    image = Image.new("RGBA", (2, 2), (200, 40, 90, 255))
    image = image.convert("RGB").convert(mode) if mode in ("YCbCr", "HSV", "RGBX") else _through(image, mode)
    found = np.asarray(_as_rgb(image))[0, 0].astype(int)
    expected = (94, 94, 94) if mode == "La" else (200, 40, 90)
    assert np.abs(found - expected).max() <= {"PA": 30, "HSV": 3}.get(
        mode, 2
    )  # the nearest of the palette; hue in 8 bits


def _through(image, mode):
    return image.convert({"La": "LA", "PA": "P"}.get(mode, "RGBA")).convert(mode)


def _table(tmp_path, text):
    for name in "abcd":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text(text)
    return f"csv:{tmp_path / 't.csv'}"


@pytest.mark.parametrize("end", ["", "\n", "\nc.jpg,a green ring\n", '\nc.jpg,"a green ring"\nd.jpg,x'])
def test_a_quote_that_is_not_closed_is_named_where_it_opens(tmp_path, end):
    """In the last column it would take in the rows that follow without a word."""
    (tmp_path / "t.csv").write_text('path,caption\na.jpg,"a red\nring"\nb.jpg,"a blue ring' + end)
    with pytest.raises(DataError, match="line 4 opens a quote that is not closed"):
        load(f"csv:{tmp_path}/t.csv", "train")


def test_a_text_of_several_lines_is_whole(tmp_path):
    (tmp_path / "t.csv").write_text('path,caption,split\na.jpg,"a red\nring",train\nb.jpg,"a blue ring",train')
    assert list(load(f"csv:{tmp_path}/t.csv", "train").captions) == ["a red\nring", "a blue ring"]
    (tmp_path / "t.csv").write_text('path,caption\na.jpg,"a red\nring"\nb.jpg,\n')
    with pytest.raises(DataError, match="line 4 has no caption"):
        load(f"csv:{tmp_path}/t.csv", "train")


def test_an_unquoted_comma_does_not_cut_a_caption(tmp_path):
    spec = _table(tmp_path, "path,caption\na.png,a cat, on a mat\n")
    with pytest.raises(DataError, match=r"line 2 has 3 cells, and the header 2.*quotes"):
        load(spec, "train")
    blank = load(_table(tmp_path, "path,caption,split\na.png,a cat,train,,\n"), "train")  # as spreadsheets write
    assert list(blank.captions) == ["a cat"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="two columns label"):
        load(_table(tmp_path, "path,label,Label\na.png,x,y\n"), "train")


@pytest.mark.parametrize(
    ("rows", "remark"),
    [
        (["a.png,x,train", "b.png,y,train", "./a.png,x,test"], "1 of 2 files are in other splits too: a.png"),
        (["a.png,x,train", "b.png,y,train", "b.png,x,train"], "1 of 2 files have several labels: b.png"),
        (["a.png,x,train", "b.png,y,train", "b.png,y,train"], "1 of 2 files have several rows"),
        (["a.png,x,train", "b.png,y,train", "none.png,y,train"], "1 of 3 files are missing: none.png"),
        (["a.png,x,train", "b.png,y,test", "c.png,x,test"], "no image of y, 1 of 2 classes"),
        (["a.png,x,train", "b.png,y,train", "c.png,x,val", "d.png,y,test"], ""),
    ],
)
def test_a_table_says_what_makes_its_figures_doubtful(tmp_path, rows, remark):
    remarks = load(_table(tmp_path, "\n".join(["path,label,split", *rows])), "train").remark
    assert remark in remarks if remark else remarks == ""


def test_a_class_without_training_images_is_named(tmp_path):
    folder = _classes(tmp_path / "d" / "train", "a", "b")
    _classes(tmp_path / "d" / "test", "a", "b")
    _classes(tmp_path / "d" / "val", "a", "b")
    (folder / "train" / "empty_one").mkdir()
    assert "no image of empty one, 1 of 3 classes" in load(f"folder:{folder}", "train").remark


def test_a_table_without_validation_rows_draws_them_from_training(tmp_path):
    rows = [f"{k}.png,x,{'train' if k < 50 else 'test'}" for k in range(60)]
    spec = _table(tmp_path, "\n".join(["path,label,split", *rows]))
    train, val, test = (set(load(spec, split).ids) for split in ("train", "val", "test"))
    assert test == {f"{k}.png" for k in range(50, 60)}
    assert val and not val & train and val | train == {f"{k}.png" for k in range(50)}
