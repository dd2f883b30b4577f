"""`effvl detect convert`: annotations checked, and written in another format with links to their images."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effvl_cli.config.detect_convert import ConvertConfig
from effvl_cli.core.errors import DataError
from effvl_cli.core.files import disk_errors, write_json, write_text
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Cell, Table
from effvl_cli.data.annotations import check_unique
from effvl_cli.data.box_writers import coco_json, yolo_lines
from effvl_cli.data.boxes import BoxSource
from effvl_cli.data.files import some
from effvl_cli.data.loader import SampleLoader, loader_workers
from effvl_cli.engines.detect.box_data import splits_of
from effvl_cli.engines.detect.class_columns import ClassColumns

FOLDER, IMAGES, LABELS, PAGE = "data", "images", "labels", "data.yaml"
CHUNK = 16  # images between looks at requests to stop


def run(config: ConvertConfig, run: Run) -> None:
    """Read the splits, and write what was read."""
    rows, written, problems = [], [], {}
    faults: list[str] = []
    for source in splits_of(config, config.split, run, seed=config.seed):
        damaged = _damaged(source, config, run) if config.check_only else []
        faults += damaged
        run.report.data(source, bad_files=len(damaged))
        rows += _rows(source)
        for text in damaged:
            source.problems.add("damaged", text)
        problems[source.split] = source.problems.to_dict()
        if not config.check_only:
            names = _names(source)
            (_write_coco if config.to == "coco" else _write_yolo)(source, names, run)
            _place_images(source, names, config, run)
            written.append(source)
    if faults and config.on_bad != "skip":
        raise DataError(
            f"{len(faults)} of {sum(row['n_images'] for row in rows)} images cannot be decoded: {some(faults)}",
            "Mend or remove them; --on-bad skip counts them",
        )
    if written and config.to == "yolo":
        _write_page(written, run)
    run.report.technique.update(splits=rows, problems=problems)
    run.report.metric("images", float(sum(row["n_images"] for row in rows)), unit="images")
    run.report.metric("boxes", float(sum(row["n_boxes"] for row in rows)), unit="boxes")
    if written:
        run.log(f"read it again by --data {config.to}:{run.path(FOLDER)}")


def _damaged(source: BoxSource, config: ConvertConfig, run: Run) -> list[str]:
    """What is wrong with the images of a split that cannot be decoded; of the others headers alone have been read."""

    def fault(index: int) -> str:
        try:
            source.image(index)
        except DataError as error:
            return error.message
        return ""

    loader: SampleLoader[str, list[str]] = SampleLoader(
        lambda step: lambda index, epoch: fault(index),
        list,
        len(source),
        workers=loader_workers(config.workers, "cpu"),
    )
    found: list[str] = []
    with run.progress(f"decoding {source.split} images", len(source)) as progress:
        for texts, indices in loader.once(np.arange(len(source)), chunk=CHUNK):
            found += filter(None, texts or [])
            progress.update(int(indices[-1]) + 1)
            run.check_stop()
    return found


def _rows(source: BoxSource) -> list[dict[str, Any]]:
    return [{**about, "split": source.split} for about in source.summary()]


def _names(source: BoxSource) -> list[str]:
    """Where each image lies below images/SPLIT; folders of the source's own names stay."""
    names = []
    for name, record in zip(source.ids, source.records, strict=True):
        path = Path(name)
        plain = path.name if path.is_absolute() or ".." in path.parts else name
        names.append(plain if record.path else f"{plain}.png")
    check_unique(
        [str(Path(name).with_suffix("")) for name in names], "names of images without suffix", Path(source.name)
    )
    return names


def _write_coco(source: BoxSource, names: Sequence[str], run: Run) -> None:
    target = f"{FOLDER}/{source.split}.json"
    run.write(target, write_json, coco_json(source, [f"{source.split}/{name}" for name in names]))


def _write_yolo(source: BoxSource, names: Sequence[str], run: Run) -> None:
    lost = 0
    for record, name in zip(source.records, names, strict=True):
        text, ignored = yolo_lines(record)
        lost += ignored
        run.check_stop()
        write_text(run.path(f"{FOLDER}/{LABELS}/{source.split}/{name}").with_suffix(".txt"), text)
    if lost:
        run.warn(
            f"{source.name}, split {source.split}: {lost} ignore boxes are left out, which YOLO's files cannot say"
        )


def _write_page(sources: Sequence[BoxSource], run: Run) -> None:
    if len({source.classes for source in sources}) > 1:
        raise DataError(f"the splits of {sources[0].name} have different classes", "Give --map")
    lines = [f"{source.split}: {IMAGES}/{source.split}" for source in sources]
    names = [f"  {number}: {name}" for number, name in enumerate(sources[0].classes)]
    run.write(f"{FOLDER}/{PAGE}", write_text, "\n".join(["path: .", *lines, "names:", *names]) + "\n")


def _place_images(source: BoxSource, names: Sequence[str], config: ConvertConfig, run: Run) -> None:
    """Links, copies or drawn pictures; those of an earlier attempt are replaced."""
    if config.images == "none":
        return
    folder = run.path(f"{FOLDER}/{IMAGES}/{source.split}")
    with disk_errors(folder):
        for index, (record, name) in enumerate(zip(source.records, names, strict=True)):
            run.check_stop()
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            if record.path is None:
                source.image(index).save(target)
            elif config.images == "copy":
                shutil.copyfile(record.path, target)
            else:
                target.symlink_to(record.path.resolve())


def preview(config: ConvertConfig) -> list[Table]:
    """What is there; nothing is written."""
    sources = list(splits_of(config, config.split, unopened("detect convert", config), seed=config.seed))
    rows = [row for source in sources for row in _rows(source)]
    return [_table("what is converted", rows, {source.split: source.problems.to_dict() for source in sources})]


def table(report: Report) -> Table:
    """A row for each split and source: images, and boxes by class; below, what was noted while reading."""
    return _table(report.command, report.technique["splits"], report.technique["problems"])


def _table(title: str, rows: Sequence[dict[str, Any]], problems: Mapping[str, Any]) -> Table:
    totals: Counter[str] = Counter()
    for row in rows:
        totals.update(row["per_class"])
    classes = ClassColumns.of(totals)
    columns = ("split", "source", "images", "boxes", *classes.titles, "ignore", "day", "night", "untagged")
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        counts = classes.cells(row["per_class"])
        ends = (row["n_ignore"], row["n_day"], row["n_night"], row["n_untagged"])
        cells.append((row["split"], row["name"], row["n_images"], row["n_boxes"], *counts, *ends))
    notes = [
        f"{split}: {about['count']} {kind}, e.g. {about['first'][0]}"
        for split, found in problems.items()
        for kind, about in found.items()
    ]
    return Table(title, columns, tuple(cells), tuple(notes))
