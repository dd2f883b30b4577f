"""Public data sets in tiny copies of their true layouts."""

import json
import shutil
import sys

import numpy as np
import pytest
import torchvision.datasets as peers
from torchvision.datasets import flowers102 as peer_flowers

from effvl_cli.core.errors import DataError, MissingPackageError, UsageError
from effvl_cli.data import DATASETS, IMAGES, SPLITS, load
from effvl_cli.data.fewshot import few_shot
from effvl_cli.data.listings import held_out, portions
from tests.data import layouts

# name, how it is laid out, classes, per-class sizes of train, val and test, and which splits are CoOp's own
LAYOUTS = {
    "caltech101": (
        lambda root: layouts.caltech101(root / "caltech-101"),
        ("face", "accordion", "airplane", "dollar bill"),
        (5, 2, 3),
        (),
        "a photo of a {}.",
    ),
    "caltech101 of torchvision": (
        lambda root: layouts.caltech101(root / "caltech101"),
        ("face", "accordion", "airplane", "dollar bill"),
        (5, 2, 3),
        (),
        "a photo of a {}.",
    ),
    "oxford_pets": (
        lambda root: layouts.oxford_pets(root / "oxford_pets"),
        ("abyssinian", "american bulldog", "egyptian mau"),
        (8, 2, 5),
        ("test",),
        "a photo of a {}, a type of pet.",
    ),
    "stanford_cars": (
        lambda root: layouts.stanford_cars(root / "stanford_cars"),
        ("2000 AM General Hummer SUV", "2012 Audi TTS Coupe", "2012 Ram C/V Cargo Van Minivan"),
        (8, 2, 4),
        ("test",),
        "a photo of a {}.",
    ),
    "flowers102": (
        lambda root: layouts.flowers102(root / "oxford_flowers", official=False),
        ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
        (5, 2, 3),
        (),
        "a photo of a {}, a type of flower.",
    ),
    "food101": (
        lambda root: layouts.food101(root / "food-101"),
        ("apple pie", "waffles"),
        (12, 3, 5),
        (),
        "a photo of {}, a type of food.",
    ),
    "fgvc_aircraft": (
        lambda root: layouts.fgvc_aircraft(root / "fgvc_aircraft"),
        ("707-320", "Boeing 737-700", "F-16A/B"),
        (2, 2, 2),
        SPLITS,
        "a photo of a {}, a type of aircraft.",
    ),
    "sun397": (
        lambda root: layouts.sun397(root / "sun397", root / "sun397" / "SUN397"),
        ("abbey", "outdoor apartment building", "youth hostel"),
        (8, 2, 4),
        ("test",),
        "a photo of a {}.",
    ),
    "dtd": (
        lambda root: layouts.dtd(root / "dtd"),
        ("banded", "blotchy", "polka-dotted"),
        (4, 4, 4),
        (),
        "{} texture.",
    ),
    "eurosat": (
        lambda root: layouts.eurosat(root / "eurosat"),
        ("Annual Crop Land", "Forest", "Sea or Lake"),
        (5, 2, 3),
        (),
        "a centered satellite photo of {}.",
    ),
    "ucf101": (
        lambda root: layouts.ucf101(root / "ucf101"),
        ("Apply Eye Makeup", "Handstand Pushups", "Yo Yo"),
        (8, 2, 5),
        ("test",),
        "a photo of a person doing {}.",
    ),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_without_a_split_file(tmp_path, case):
    lay, classes, sizes, same, template = LAYOUTS[case]
    lay(tmp_path)
    name = case.split()[0]
    sources = {split: load(name, split, root=tmp_path) for split in SPLITS}
    ids = [image for source in sources.values() for image in source.ids]
    assert len(ids) == len(set(ids))
    for (split, source), size in zip(sources.items(), sizes, strict=True):
        assert (source.name, source.split, source.classes, source.templates) == (name, split, classes, (template,))
        assert np.bincount(source.labels).tolist() == [size] * len(classes)
        assert source.remark.startswith("not CoOp's division") == (split not in same)
        if split in same:  # the right list, of few images
            assert source.remark == f"{len(source)} of {source.expected} images: not comparable with published figures"
        assert source.image(len(source) - 1).size == (6, 4)
    assert len(few_shot(sources["train"], 2, seed=1)) == 2 * len(classes)


SPLIT_FILES = {  # where CoOp's lie, and what their paths start from
    "caltech101": ("caltech-101/split_zhou_Caltech101.json", "caltech-101/101_ObjectCategories"),
    "oxford_pets": ("oxford_pets/split_zhou_OxfordPets.json", "oxford_pets/images"),
    "stanford_cars": ("stanford_cars/split_zhou_StanfordCars.json", "stanford_cars"),
    "flowers102": ("oxford_flowers/split_zhou_OxfordFlowers.json", "oxford_flowers/jpg"),
    "food101": ("food-101/split_zhou_Food101.json", "food-101/images"),
    "sun397": ("sun397/split_zhou_SUN397.json", "sun397/SUN397"),
    "dtd": ("dtd/split_zhou_DescribableTextures.json", "dtd/images"),
    "eurosat": ("eurosat/split_zhou_EuroSAT.json", "eurosat/2750"),
    "ucf101": ("ucf101/split_zhou_UCF101.json", "ucf101/UCF-101-midframes"),
}


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_a_split_file_comes_before_the_official_lists(tmp_path, name):
    LAYOUTS[name][0](tmp_path)
    file, images = SPLIT_FILES[name]
    paths = ["s/second_2.jpg", "f/first.jpg", "s/second_1.jpg", "f/other.jpg"]
    layouts.pictures(tmp_path / images, paths)
    listed = {
        "train": [[paths[0], 1, "second_class"], [paths[1], 0, "First class"]],
        "val": [[paths[2], 1, "second_class"]],
        "test": [[paths[3], 0, "First class"]],
    }
    (tmp_path / file).write_text(json.dumps(listed))
    train, val, test = (load(name, split, root=tmp_path) for split in SPLITS)
    assert train.ids == paths[:2] and train.labels.tolist() == [1, 0]  # in the file's order
    assert val.ids == paths[2:3] and test.labels.tolist() == [0]
    assert train.classes == test.classes == ("First class", "second class")
    assert all("images: not comparable" in source.remark for source in (train, val, test))
    assert file.rpartition("/")[2] in train.layout


def _same_as_peer(source, peer):
    """Pixels and labels, image by image."""
    assert len(source) == len(peer) > 0
    for index, label in enumerate(source.labels):
        image, expected = peer[index]
        assert label == expected and source.image(index).tobytes() == image.convert("RGB").tobytes()


def test_test_splits_equal_those_of_torchvision(tmp_path):
    layouts.oxford_pets(tmp_path / "oxford-iiit-pet")
    layouts.stanford_cars(tmp_path / "stanford_cars")
    layouts.dtd(tmp_path / "dtd" / "dtd")
    layouts.fgvc_aircraft(tmp_path / "fgvc-aircraft-2013b" / "data")
    for name, peer in (
        ("oxford_pets", peers.OxfordIIITPet),
        ("stanford_cars", peers.StanfordCars),
        ("dtd", peers.DTD),
        ("fgvc_aircraft", peers.FGVCAircraft),
    ):
        _same_as_peer(load(name, "test", root=tmp_path), peer(tmp_path, split="test"))


def test_flowers_with_the_official_division_equal_those_of_torchvision(tmp_path, monkeypatch):
    layouts.flowers102(tmp_path / "flowers-102", official=True)
    monkeypatch.setattr(peer_flowers, "check_integrity", lambda path, md5: True)  # a tiny copy has other checksums
    for split in SPLITS:
        source = load("flowers102", split, root=tmp_path)
        _same_as_peer(source, peers.Flowers102(tmp_path, split=split))
        assert source.remark
    assert source.classes == tuple(peers.Flowers102.classes[:3])


def test_food_and_satellite_labels_are_those_of_torchvision(tmp_path):
    layouts.food101(tmp_path / "food-101")
    layouts.eurosat(tmp_path / "eurosat")
    ours = load("food101", "test", root=tmp_path)
    peer = peers.Food101(tmp_path, split="test")
    colours = {image.getpixel((0, 0)): label for image, label in peer}
    assert [colours[ours.image(k).getpixel((0, 0))] for k in range(len(ours))] == ours.labels.tolist()
    everything = {image.getpixel((0, 0)): label for image, label in peers.EuroSAT(tmp_path)}
    for split in SPLITS:
        ours = load("eurosat", split, root=tmp_path)
        assert [everything[ours.image(k).getpixel((0, 0))] for k in range(len(ours))] == ours.labels.tolist()


def test_sun_lies_bare_as_torchvision_leaves_it(tmp_path):
    layouts.sun397(tmp_path / "SUN397", tmp_path / "SUN397")
    source = load("sun397", "test", root=tmp_path)
    assert source.ids[4] == "a/apartment_building/outdoor/sun_a10.jpg" and source.labels[4] == 1


def test_flower_names_come_from_the_file_beside_them(tmp_path):
    layouts.flowers102(tmp_path / "oxford_flowers", official=False)
    path = tmp_path / "oxford_flowers" / "cat_to_name.json"
    path.write_text('{"2": "orchid", "1": "primrose", "3": "bells"}')
    assert load("flowers102", "train", root=tmp_path).classes == ("primrose", "orchid", "bells")
    path.write_text('{"2": "orchid", "1": "primrose"}')
    with pytest.raises(DataError, match=r"imagelabels.mat has label 3"):
        load("flowers102", "train", root=tmp_path)


def test_a_division_depends_on_the_paths_alone():
    items = [(f"{label}/{k}.jpg", label, "x") for label in (0, 1) for k in range(25)]
    train, val = portions(items, 0.2)
    assert len(val) == 10 and sorted(train + val) == sorted(items)
    again = held_out(items[::-1], [])
    assert sorted(again["val"]) == sorted(val) and again["train"] == train[::-1]
    assert len({path.split("/")[1] for path, _, _ in val}) > 5  # no two classes are cut alike


def test_listed_images_that_are_absent_are_counted_and_named(tmp_path):
    layouts.dtd(tmp_path / "dtd")
    for number in (4, 5, 6, 7):
        (tmp_path / "dtd" / "images" / "banded" / f"banded_{number:04d}.jpg").unlink()
    with pytest.raises(DataError) as raised:
        load("dtd", "val", root=tmp_path)
    assert "4 of 12 images are not in" in str(raised.value)
    assert "banded/banded_0004.jpg, banded/banded_0005.jpg, banded/banded_0006.jpg and 1 more" in str(raised.value)
    assert len(load("dtd", "train", root=tmp_path)) == 12


BROKEN = {
    "<html>": "is not a JSON file",
    "[]": "has no list 'train'",
    '{"train": [], "val": []}': "has no list 'test'",
    '{"train": [["a.jpg", "0", "x"]], "val": [], "test": []}': r"train\[0\] is \['a.jpg', '0', 'x'\]",
    '{"train": [], "val": [["a.jpg", 0]], "test": []}': r"val\[0\] is",
    '{"train": [["a.jpg", -1, "x"]], "val": [], "test": []}': "a.jpg has label -1",
    '{"train": [["a.jpg", 5, "x"]], "val": [], "test": []}': "labels run to 5, but none is 0",
    '{"train": [["a.jpg", 0, "x"]], "val": [["b.jpg", 0, "y"]], "test": []}': "class 0 is called 'x' and 'y'",
    '{"train": [], "val": [], "test": []}': "no train image",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_split_file_is_named_and_not_passed_over(tmp_path, text):
    layouts.dtd(tmp_path / "dtd")
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text(text)
    with pytest.raises(DataError, match=BROKEN[text]) as raised:
        load("dtd", "train", root=tmp_path)
    assert "dtd" in raised.value.message and "\n" not in str(raised.value)


WRONG_LISTS = {
    "fgvc_aircraft": ("fgvc_aircraft/images_variant_train.txt", "1000000 A380\n", "line 1 .*'A380' is not in variants"),
    "oxford_pets": ("oxford_pets/annotations/trainval.txt", "Abyssinian_1 one 1 1\n", "trainval.txt line 1"),
    "sun397": ("sun397/Testing_01.txt", "\n/z/zoo/sun_a.jpg\n", "line 2 .*'z/zoo' is not in ClassName.txt"),
    "ucf101": (
        "ucf101/ucfTrainTestlist/testlist01.txt",
        "Typing/v_Typing_g01.avi\n",
        "'Typing' is not in classInd.txt",
    ),
    "food101": ("food-101/meta/test.json", "[1]", "does not list images by class"),
    "stanford_cars": ("stanford_cars/devkit/cars_meta.mat", "text", "cars_meta.mat is not a MATLAB file"),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_wrong_lists_are_named(tmp_path, name):
    LAYOUTS[name][0](tmp_path)
    file, text, expected = WRONG_LISTS[name]
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=expected) as raised:
        load(name, "test", root=tmp_path)
    assert file.rpartition("/")[2] in raised.value.message


def test_cars_without_test_labels_are_refused(tmp_path):
    from scipy.io import savemat

    layouts.stanford_cars(tmp_path / "stanford_cars")
    rows = np.array([("1.jpg",), ("2.jpg",)], dtype=[("fname", object)])
    savemat(tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat", {"annotations": rows[None]})
    with pytest.raises(DataError, match="has no labels"):
        load("stanford_cars", "test", root=tmp_path)
    rows = np.array([("1.jpg", 4), ("2.jpg", 1)], dtype=[("fname", object), ("class", object)])
    savemat(tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat", {"annotations": rows[None]})
    with pytest.raises(DataError, match=r"1.jpg has class 4 of 3"):
        load("stanford_cars", "test", root=tmp_path)


def test_what_is_missing_is_said_with_the_layout(tmp_path):
    with pytest.raises(DataError) as raised:
        load("oxford_pets", "train", root=tmp_path)
    assert f"{tmp_path}/oxford_pets is missing" in str(raised.value)
    for text in ("oxford_pets/images or oxford-iiit-pet/images", "split_zhou_OxfordPets.json", "annotations/test.txt"):
        assert text in raised.value.hint
    layouts.oxford_pets(tmp_path / "oxford_pets")
    (tmp_path / "oxford_pets" / "annotations" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"oxford_pets/split_zhou_OxfordPets.json is missing"):
        load("oxford_pets", "train", root=tmp_path)


def test_textures_without_lists_are_divided(tmp_path):
    layouts.dtd(tmp_path / "dtd")
    (tmp_path / "dtd" / "labels").rename(tmp_path / "labels")
    source = load("dtd", "train", root=tmp_path)
    assert np.bincount(source.labels).tolist() == [6, 6, 6] and "its class folders" in source.remark


def _videos_alone(root):
    """Videos of 7 frames for the first class; frame k is grey 30 k."""
    av = pytest.importorskip("av")
    layouts.ucf101(root / "ucf101")
    shutil.rmtree(root / "ucf101" / "UCF-101-midframes")
    for line in (root / "ucf101" / "ucfTrainTestlist" / "trainlist01.txt").read_text().splitlines():
        path = root / "ucf101" / "UCF-101" / line.split()[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
            for k in range(7):
                grey = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 30 * k, np.uint8), format="rgb24")
                container.mux(stream.encode(grey))
            container.mux(stream.encode())
    return root / "ucf101" / "UCF-101"


def test_middle_frames_of_videos_are_taken_once(tmp_path, monkeypatch):
    videos = _videos_alone(tmp_path)
    source = load("ucf101", "train", root=tmp_path)
    before = source.fingerprint()
    assert source.classes[0] == "Apply Eye Makeup" and "frames taken from the videos here" in source.remark
    image = source.image(0)
    assert image.size == (32, 16) and abs(np.asarray(image).mean() - 90) < 4  # frame 3 of 7
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "av", None)
        assert source.image(0).tobytes() == image.tobytes() and source.fingerprint() == before
        with pytest.raises(MissingPackageError, match=r"pip install 'effvl\[video\]'"):
            source.image(1)
    (videos / "ApplyEyeMakeup" / source.ids[0].rpartition("/")[2].replace("jpg", "avi")).write_bytes(b"no video")
    with pytest.raises(DataError, match="cannot be read"):
        source.image(0)
    (videos / "YoYo").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"8 of 24 images are not in .*UCF-101: YoYo/v_YoYo_g06_c01.avi"):
        load("ucf101", "train", root=tmp_path)


def test_videos_are_named_where_there_is_nothing(tmp_path):
    with pytest.raises(DataError, match=r"ucf101/UCF-101-midframes \(or videos in ucf101/UCF-101\)"):
        load("ucf101", "train", root=tmp_path)


def test_they_take_no_argument(tmp_path):
    for row in DATASETS.rows():
        if ":" not in row.name and row.name != "shape-captions" and row.kind == IMAGES:
            with pytest.raises(UsageError, match="takes no argument"):
                load(f"{row.name}:x", "train", root=tmp_path)
