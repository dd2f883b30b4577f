"""The lists that data sets were published with: one function each, from a `Place` to `Splits`.

Names, labels and their order are those of CoOp (KaiyangZhou/CoOp, arXiv 2109.01134, `datasets/`), so that classes agree
with its split files.
"""

import re

from effvl_cli.core.errors import DataError
from effvl_cli.data import SPLITS
from effvl_cli.data.folders import images_below, passed_over_remark
from effvl_cli.data.listings import (
    Item,
    Place,
    Splits,
    divided,
    held_out,
    number_of,
    read_json,
    read_lines,
    read_mat,
)

CALTECH_NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}
FLOWER_SPELLING = {"barbeton daisy": "barberton daisy", "pink-yellow dahlia?": "pink-yellow dahlia"}


def class_folders(place: Place) -> Splits:
    """One folder a class, divided here."""
    return _in_folders(place, {})


def caltech101(place: Place) -> Splits:
    """101_ObjectCategories without the background and the second set of faces, divided here."""
    return _in_folders(place, CALTECH_NAMES, left_out=("BACKGROUND_Google", "Faces_easy"))


def eurosat(place: Place) -> Splits:
    """2750/CLASS, divided here."""
    return _in_folders(place, EUROSAT_NAMES)


def _in_folders(place: Place, names: dict[str, str], left_out: tuple[str, ...] = ()) -> Splits:
    folders = (entry.name for entry in place.images.iterdir() if entry.is_dir() and entry.name[0] != ".")
    passed_over: list[str] = []
    items = [
        (image, label, names.get(folder, folder))
        for label, folder in enumerate(sorted(set(folders) - set(left_out)))
        for image in sorted(images_below(place.images / folder, place.images, place.images, passed_over))
    ]
    if passed_over:
        raise DataError(f"{place.images}: {passed_over_remark(passed_over)}", "Remove them, or extract it again")
    return divided(items)


def dtd(place: Place) -> Splits:
    """labels/{train,val,test}1.txt: the first of ten published divisions, a third each."""
    listed = {split: read_lines(place.folder / "labels" / f"{split}1.txt", str) for split in SPLITS}
    classes = sorted({line.partition("/")[0] for lines in listed.values() for line in lines})
    numbers = {name: label for label, name in enumerate(classes)}
    return {
        split: [(line, numbers[line.partition("/")[0]], line.partition("/")[0]) for line in lines]
        for split, lines in listed.items()
    }


def food101(place: Place) -> Splits:
    """meta/{train,test}.json: {class: ["class/number", ...]}; 750 and 250 images a class."""

    def items(name: str) -> list[Item]:
        path = place.folder / "meta" / f"{name}.json"
        listed = read_json(path)
        if not isinstance(listed, dict) or not all(isinstance(images, list) for images in listed.values()):
            raise DataError(f"{path} does not list images by class", "Extract the file again")
        return [(f"{image}.jpg", label, food) for label, food in enumerate(sorted(listed)) for image in listed[food]]

    return held_out(items("train"), items("test"))


def oxford_pets(place: Place) -> Splits:
    """annotations/{trainval,test}.txt: "Abyssinian_100 1 1 1", that is image, breed, species and breed within it."""

    def item(line: str) -> Item:
        image, label, _, _ = line.split()
        return f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower()

    trainval, test = (read_lines(place.folder / "annotations" / f"{name}.txt", item) for name in ("trainval", "test"))
    return held_out(trainval, test)


def stanford_cars(place: Place) -> Splits:
    """devkit/*.mat and cars_test_annos_withlabels.mat; the year of a name goes in front."""
    (names,) = read_mat(place.folder / "devkit" / "cars_meta.mat", "class_names")

    def items(file: str, images: str) -> list[Item]:
        path = place.folder / file
        (rows,) = read_mat(path, "annotations")
        if not {"fname", "class"} <= set(rows.dtype.names or ()):
            raise DataError(f"{path} has no labels", "Fetch cars_test_annos_withlabels.mat, not cars_test_annos.mat")
        found = []
        for image, number in zip(rows["fname"], rows["class"], strict=True):
            if not 1 <= int(number) <= len(names):
                raise DataError(f"{path}: {image} has class {number} of {len(names)}", "Fetch it again")
            model, _, year = str(names[int(number) - 1]).rpartition(" ")
            found.append((f"{images}/{image}", int(number) - 1, f"{year} {model}"))
        return found

    test = items("cars_test_annos_withlabels.mat", "cars_test")
    return held_out(items("devkit/cars_train_annos.mat", "cars_train"), test)


def flowers102(place: Place) -> Splits:
    """setid.mat: 10 training and 10 validation images a class, the rest for test."""
    items = _flowers(place)
    path = place.folder / "setid.mat"
    chosen = dict(zip(SPLITS, read_mat(path, "trnid", "valid", "tstid"), strict=True))
    for numbers in chosen.values():
        if numbers.min() < 1 or numbers.max() > len(items):
            raise DataError(f"{path} names images beyond the {len(items)} of imagelabels.mat", "Fetch both again")
    return {split: [items[number - 1] for number in numbers] for split, numbers in chosen.items()}


def flowers102_divided(place: Place) -> Splits:
    """imagelabels.mat alone, divided here."""
    return divided(_flowers(place))


def _flowers(place: Place) -> list[Item]:
    """All images by number; names from cat_to_name.json, or as torchvision has them."""
    path = place.folder / "imagelabels.mat"
    (labels,) = read_mat(path, "labels")
    names = _flower_names(place)
    nameless = [int(label) for label in labels if str(int(label)) not in names]
    if nameless:
        raise DataError(f"{path} has label {nameless[0]}, but {len(names)} names without it", "Fetch it again")
    return [(f"image_{k:05d}.jpg", int(label) - 1, names[str(int(label))]) for k, label in enumerate(labels, 1)]


def _flower_names(place: Place) -> dict[str, str]:
    path = place.folder / "cat_to_name.json"
    if path.is_file():
        found = read_json(path)
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
            raise DataError(f"{path} does not name flowers by number", "Fetch it again")
        return found
    from torchvision.datasets import Flowers102

    return {str(k): FLOWER_SPELLING.get(name, name) for k, name in enumerate(Flowers102.classes, 1)}


def fgvc_aircraft(place: Place) -> Splits:
    """images_variant_{train,val,test}.txt: "0481847 Boeing 737-700", classes in the order of variants.txt."""
    numbers = {name: label for label, name in enumerate(read_lines(place.folder / "variants.txt", str))}

    def item(line: str) -> Item:
        image, _, variant = line.partition(" ")
        return f"{image}.jpg", number_of(variant, numbers, "variants.txt"), variant

    return {split: read_lines(place.folder / f"images_variant_{split}.txt", item) for split in SPLITS}


def sun397(place: Place) -> Splits:
    """Training_01.txt and Testing_01.txt: "/a/yard/outdoor/sun_x.jpg" is of class "outdoor yard"."""
    scenes = read_lines(place.folder / "ClassName.txt", lambda line: line.removeprefix("/"))
    numbers = {scene: label for label, scene in enumerate(scenes)}

    def item(line: str) -> Item:
        image = line.removeprefix("/")
        scene = image.rpartition("/")[0]
        words = scene.split("/")[1:]
        return image, number_of(scene, numbers, "ClassName.txt"), " ".join(reversed(words))

    trainval, test = (read_lines(place.folder / f"{name}_01.txt", item) for name in ("Training", "Testing"))
    return held_out(trainval, test)


def ucf101(place: Place) -> Splits:
    """ucfTrainTestlist: "ApplyEyeMakeup/v_x.avi [1]"; the middle frame is Apply_Eye_Makeup/v_x.jpg."""
    lists = place.folder / "ucfTrainTestlist"

    def numbered(line: str) -> tuple[str, int]:
        number, action = line.split()
        return action, int(number) - 1

    numbers = dict(read_lines(lists / "classInd.txt", numbered))

    def item(line: str) -> Item:
        action, video = line.split()[0].split("/")
        words = "_".join(re.findall("[A-Z][^A-Z]*", action))
        return f"{words}/{video.removesuffix('.avi')}.jpg", number_of(action, numbers, "classInd.txt"), words

    trainval, test = (read_lines(lists / f"{name}list01.txt", item) for name in ("train", "test"))
    return held_out(trainval, test)
