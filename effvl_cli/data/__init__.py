"""Data sets by name: the registry, and one file per source."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.registry import Registry, Row

if TYPE_CHECKING:
    from effvl_cli.data.source import ImageSource, Source

SPLITS = ("train", "val", "test")

IMAGES, CLIPS, BOXES = "images", "clips", "boxes"  # kinds of samples

_KINDS = {".csv": "csv:", ".yml": "boxes:", ".yaml": "boxes:", ".json": "coco:"}  # of files by their suffix
DATASETS = Registry(
    "data set",
    "effvl.datasets",
    [
        Row(
            "shape-captions",
            "effvl_cli.data.shape_captions:build",
            "procedural 64 px scenes, one coloured shape each; shape-captions:sketch is a shifted style",
            IMAGES,
        ),
        Row("digits", "effvl_cli.data.digits:build", "1,797 real handwritten digits, 8 px (scikit-learn)", IMAGES),
        Row("caltech101", "effvl_cli.data.coop:caltech101", "100 kinds of objects", IMAGES),
        Row("oxford_pets", "effvl_cli.data.coop:oxford_pets", "37 breeds of cats and dogs", IMAGES),
        Row("stanford_cars", "effvl_cli.data.coop:stanford_cars", "196 models of cars", IMAGES),
        Row("flowers102", "effvl_cli.data.coop:flowers102", "102 kinds of flowers", IMAGES),
        Row("food101", "effvl_cli.data.coop:food101", "101 dishes", IMAGES),
        Row("fgvc_aircraft", "effvl_cli.data.coop:fgvc_aircraft", "100 variants of aircraft", IMAGES),
        Row("sun397", "effvl_cli.data.coop:sun397", "397 kinds of scenes", IMAGES),
        Row("dtd", "effvl_cli.data.coop:dtd", "47 describable textures", IMAGES),
        Row("eurosat", "effvl_cli.data.coop:eurosat", "10 kinds of land cover, from satellites", IMAGES),
        Row("ucf101", "effvl_cli.data.coop:ucf101", "101 actions, the middle frames of videos", IMAGES),
        Row("imagenet", "effvl_cli.data.imagenet:build", "ILSVRC 2012 in class folders", IMAGES),
        Row("cifar10", "effvl_cli.data.cifar:cifar10", "10 classes, 32 px; the binary version", IMAGES),
        Row("cifar100", "effvl_cli.data.cifar:cifar100", "100 classes, 32 px; the binary version", IMAGES),
        Row("folder:", "effvl_cli.data.folders:build", "folder:PATH holding [train|val|test/][CLASS/]*.jpg", IMAGES),
        Row("images:", "effvl_cli.data.folders:build_unlabelled", "images:PATH, all below it, without labels", IMAGES),
        Row(
            "csv:",
            "effvl_cli.data.tables:build",
            "csv:FILE with columns path and label and/or caption [, split]",
            IMAGES,
        ),
        Row("moving-shapes", "effvl_cli.data.moving_shapes:build", "procedural 24 px videos, 8 kinds of motion", CLIPS),
        Row(
            "video:",
            "effvl_cli.data.video_sets:build",
            "video:ucf101[:1|2|3], video:hmdb51[:1|2|3], video:kinetics400, video:FILE.csv or video:FOLDER",
            CLIPS,
        ),
        Row(
            "road-scenes",
            "effvl_cli.data.road_scenes:build",
            "procedural roads by day and night, 160x256 px, 4 classes; road-scenes:style=outside,scenes=100,frames=8",
            BOXES,
        ),
        Row(
            "coco:",
            "effvl_cli.data.coco:build",
            "coco:FILE.json, or coco:FOLDER with train.json, test.json or annotations/instances_train2017.json ...",
            BOXES,
        ),
        Row(
            "voc:",
            "effvl_cli.data.voc:build",
            "voc:FOLDER with Annotations, JPEGImages, ImageSets/Main; voc:FOLDER,train=trainval names other lists",
            BOXES,
        ),
        Row(
            "yolo:",
            "effvl_cli.data.yolo:build",
            "yolo:data.yaml with train, val, names, or a folder with images, labels and classes.txt",
            BOXES,
        ),
        Row(
            "bdd:",
            "effvl_cli.data.bdd:build",
            "BDD100K: bdd:FILE.json of frames, or bdd:FOLDER with labels/det_20/det_train.json or labels/100k/train/",
            BOXES,
        ),
        Row(
            "boxes:",
            "effvl_cli.data.box_sets:build",
            "boxes:PATH in one of these formats, by what it holds, or a YAML file of several sources",
            BOXES,
        ),
    ],
)


def load(
    spec: str, split: str, *, root: str | Path | None = None, seed: int = 0, option: str = "--data"
) -> "ImageSource":
    """One split of a data set of images.

    Args:
        spec: "NAME" or "NAME:ARGUMENT".
        split: "train", "val" or "test".
        root: folder that a relative path in `spec` starts from.
        seed: for sources with random content; the built-in ones do not depend on it.
        option: that gave `spec`, for errors.

    Raises:
        UsageError: unknown name, or samples of another kind.
        DataError: missing, empty or unreadable.
    """
    return cast("ImageSource", open_source(spec, split, kind=IMAGES, root=root, seed=seed, option=option))


def any_split(spec: str, *, root: str | Path | None = None) -> "ImageSource":
    """The training images, or where there are none the test images, which have the same classes.

    Raises:
        UsageError: unknown name, or samples of another kind.
        DataError: neither.
    """
    try:
        return load(spec, "train", root=root)
    except DataError:
        with suppress(DataError):
            return load(spec, "test", root=root)
        raise


def open_source(
    spec: str,
    split: str,
    *,
    kind: str | None,
    root: str | Path | None = None,
    seed: int = 0,
    option: str = "--data",
    **more: Any,
) -> "Source":
    """One split of a data set of the kind that a command works on; None: whatever it is.

    `more` is passed to the builder: what data sets of that kind can be told besides. Builders of boxes get
    `reading: data.boxes.Reading`.

    Raises:
        UsageError: unknown name, or samples of another kind.
        DataError: missing, empty or unreadable.
    """
    row, argument = find_row(spec, option)
    _refuse_kind(f"{option} {spec}", row.kind or kind, kind)
    source: Source = DATASETS.builder(row)(argument, split, root=Path(root) if root else None, seed=seed, **more)
    _refuse_kind(f"{option} {spec}", getattr(source, "kind", IMAGES), kind)
    with suppress(AttributeError):  # a plug-in's class may not accept the attribute
        if not hasattr(source, "opened"):  # a builder may have opened another row
            source.opened = (spec, str(root) if root else None)  # type: ignore[attr-defined]
    return source


def find_row(spec: str, option: str = "--data") -> tuple[Row, str]:
    """The row of a data set and its argument; `option` gave it.

    Raises:
        UsageError: unknown name; of a path the message says how to write it.
    """
    path = Path(spec)
    try:
        return DATASETS.find(spec)
    except UsageError:
        if not path.exists():
            raise
        kind = "folder:" if path.is_dir() else _KINDS.get(path.suffix.lower())
        hint = f"Write {kind}{spec}" if kind else "Put what it is before it; `effvl list datasets` shows how"
        raise UsageError(f"{option} {spec} is a path, and what it holds is not said", hint) from None


def _refuse_kind(given: str, found: str | None, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise UsageError(
            f"{given} is a data set of {found}, and this command works on {wanted}",
            "`effvl list datasets` says what kind each is",
        )


def fingerprints(spec: str, root: str | Path | None = None) -> dict[str, str]:
    """Fingerprint of each split's content, to tell whether it has changed; missing splits are left out.

    Raises:
        UsageError: unknown name.
    """
    found, more = {}, dict[str, Any]()
    if find_row(spec)[0].kind == BOXES:
        from effvl_cli.data.boxes import Reading

        more = {"reading": Reading(content_only=True)}
    for split in SPLITS:
        with suppress(DataError):
            found[split] = open_source(spec, split, kind=None, root=root, **more).fingerprint()
    return found
