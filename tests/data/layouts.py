"""Tiny copies of public data sets, in the folders and files that the real ones have."""

import json
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

_shades = count()


def pictures(folder: Path, names) -> None:
    """Small images, no two alike."""
    for name in names:
        shade = next(_shades)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (shade % 251, shade // 251 % 251, 90)).save(path, "PNG")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def coop_split(path: Path, items) -> None:
    """A split_zhou file over (path, label, name): of every ten items five train, two val and three test."""
    parts = {
        "train": items[0::2],
        "val": items[1::10] + items[3::10],
        "test": items[5::10] + items[7::10] + items[9::10],
    }
    write(path, json.dumps(parts))


def class_folders(images: Path, classes, per_class=10) -> list[str]:
    names = [f"{name}/image_{k:04d}.jpg" for name in classes for k in range(1, per_class + 1)]
    pictures(images, names)
    return names


def caltech101(folder: Path) -> None:
    class_folders(
        folder / "101_ObjectCategories",
        ("BACKGROUND_Google", "Faces", "Faces_easy", "accordion", "airplanes", "dollar_bill"),
    )


def eurosat(folder: Path) -> None:
    classes = ("AnnualCrop", "Forest", "SeaLake")
    pictures(folder / "2750", [f"{name}/{name}_{k}.jpg" for name in classes for k in range(1, 11)])


def dtd(folder: Path) -> None:
    classes = ("banded", "blotchy", "polka-dotted")
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{name}/{name}_{k:04d}.jpg" for name in classes for k in range(number * 4, number * 4 + 4)]
        pictures(folder / "images", names)
        write(folder / "labels" / f"{split}1.txt", "".join(f"{name}\n" for name in names))
        write(folder / "labels" / f"{split}2.txt", "another of the ten divisions\n")


def food101(folder: Path) -> None:
    for file, numbers in (("train", range(15)), ("test", range(15, 20))):
        listed = {name: [f"{name}/{10_000 + k}" for k in numbers] for name in ("waffles", "apple_pie")}
        write(folder / "meta" / f"{file}.json", json.dumps(listed))
        pictures(folder / "images", [f"{image}.jpg" for images in listed.values() for image in images])


def oxford_pets(folder: Path) -> None:
    breeds = (("Abyssinian", 1), ("american_bulldog", 2), ("Egyptian_Mau", 1))
    for file, numbers in (("trainval", range(1, 11)), ("test", range(201, 206))):
        rows = [
            (f"{breed}_{k}", label, species, 1) for label, (breed, species) in enumerate(breeds, 1) for k in numbers
        ]
        write(folder / "annotations" / f"{file}.txt", "".join("{} {} {} {}\n".format(*row) for row in rows))
        pictures(folder / "images", [f"{row[0]}.jpg" for row in rows])


def stanford_cars(folder: Path) -> None:
    names = ("AM General Hummer SUV 2000", "Audi TTS Coupe 2012", "Ram C/V Cargo Van Minivan 2012")
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    for path, images, per_class in (
        ("devkit/cars_train_annos.mat", "cars_train", 10),
        ("cars_test_annos_withlabels.mat", "cars_test", 4),
    ):
        kinds = [label for label in (1, 2, 3) for _ in range(per_class)]
        fields = [(f"bbox_{edge}", object) for edge in ("x1", "y1", "x2", "y2")] + [
            ("class", object),
            ("fname", object),
        ]
        rows = np.array([(1, 2, 5, 3, kind, f"{k:05d}.jpg") for k, kind in enumerate(kinds, 1)], dtype=fields)
        savemat(folder / path, {"annotations": rows[None]})
        pictures(folder / images, rows["fname"])


def flowers102(folder: Path, *, official: bool) -> None:
    labels = np.repeat(np.array([1, 2, 3], np.uint8), 10)
    pictures(folder / "jpg", [f"image_{k:05d}.jpg" for k in range(1, 31)])
    savemat(folder / "imagelabels.mat", {"labels": labels[None]})
    if official:
        ids = np.arange(1, 31, dtype=np.uint16)
        savemat(folder / "setid.mat", {"trnid": ids[None, 0::3], "valid": ids[None, 1::3], "tstid": ids[None, 2::3]})


def fgvc_aircraft(folder: Path) -> None:
    variants = ("707-320", "Boeing 737-700", "F-16A/B")
    write(folder / "variants.txt", "".join(f"{name}\n" for name in variants))
    for number, split in enumerate(("train", "val", "test")):
        rows = [
            (f"{1_000_000 * (number + 1) + 100 * k + n}", name) for k in range(2) for n, name in enumerate(variants)
        ]
        write(folder / f"images_variant_{split}.txt", "".join(f"{image} {name}\n" for image, name in rows))
        pictures(folder / "images", [f"{image}.jpg" for image, _ in rows])


SCENES = ("/a/abbey", "/a/apartment_building/outdoor", "/y/youth_hostel")


def sun397(folder: Path, images: Path) -> None:
    write(folder / "ClassName.txt", "".join(f"{scene}\n" for scene in SCENES))
    for file, numbers in (("Training", range(10)), ("Testing", range(10, 14))):
        names = [f"{scene}/sun_a{k}.jpg" for scene in SCENES for k in numbers]
        write(folder / f"{file}_01.txt", "".join(f"{name}\n" for name in names))
        pictures(images, [name[1:] for name in names])


def ucf101(folder: Path) -> None:
    actions = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
    lists = folder / "ucfTrainTestlist"
    write(lists / "classInd.txt", "".join(f"{label} {name}\n" for label, name in enumerate(actions, 1)))
    clips = {name: [f"v_{name}_g{k:02d}_c01" for k in range(1, 16)] for name in actions}
    train = [f"{name}/{clip}.avi {label}" for label, name in enumerate(actions, 1) for clip in clips[name][5:]]
    test = [f"{name}/{clip}.avi" for name in actions for clip in clips[name][:5]]
    write(lists / "trainlist01.txt", "\n".join(train) + "\n")
    write(lists / "testlist01.txt", "\n".join(test) + "\n")
    words = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "HandstandPushups": "Handstand_Pushups", "YoYo": "Yo_Yo"}
    for name in actions:
        pictures(folder / "UCF-101-midframes" / words[name], [f"{clip}.jpg" for clip in clips[name]])


def imagenet(folder: Path, wnids=("n01440764", "n01443537", "n02119789")) -> None:
    for wnid in wnids:
        pictures(folder / "train" / wnid, [f"{wnid}_{k}.JPEG" for k in range(40)])
        pictures(folder / "val" / wnid, [f"ILSVRC2012_val_{int(wnid[1:]) % 1000 * 10 + k:08d}.JPEG" for k in range(5)])


def cifar(folder: Path, files: dict[str, int], names: str, classes, num_labels: int) -> None:
    """Records of random pixels; labels count up, coarse ones (if any) are 7."""
    draw = np.random.default_rng(0)
    write(folder / names, "".join(f"{name}\n" for name in classes) + "\n")
    for file, rows in files.items():
        records = draw.integers(0, 256, (rows, num_labels + 3072), dtype=np.uint8)
        records[:, 0] = 7
        records[:, num_labels - 1] = np.arange(rows) % len(classes)
        (folder / file).write_bytes(records.tobytes())
