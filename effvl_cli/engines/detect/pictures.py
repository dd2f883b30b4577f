"""Pictures of the job, of `train` and of `eval`."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from effvl_cli.core import plots
from effvl_cli.core.files import write_bytes
from effvl_cli.core.run import Run
from effvl_cli.engines.detect.detecting import Detections
from effvl_cli.engines.detect.drawing import draw
from effvl_cli.engines.detect.judged import FIGURES, Judged

SHOWN = 0.3  # score from which a detection is drawn
COLUMNS = 2
SIDE = 640  # px, longer side of a picture of the sheet
GAP = 8  # px between them
MOST_CLASSES = 12  # curves of one picture
EVERY = 5  # percent of recall between two points of a curve
IOU50 = 0  # of the first axis of precision
TITLES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}


def draw_all(run: Run, judged: Mapping[str, Judged], count: int) -> None:
    """Draw what there is to see.

    Args:
        run: whose folder.
        judged: by arm; that of the last one is drawn in detail.
        count: images whose detections are drawn.
    """
    last = list(judged.values())[-1]
    draw_detections(run, last, count)
    draw_precision(run, last)
    draw_stages(run, judged)


def draw_detections(run: Run, judged: Judged, count: int) -> None:
    """`plots/detections.png`: solid boxes for day, dashed ones for night."""
    chosen = chosen_images(judged, count)
    if chosen:
        sheet = [_drawn(judged, place) for place in chosen]
        run.plot("detections", write_sheet, sheet)


def chosen_images(judged: Judged, count: int) -> list[int]:
    """Places of some images, spread evenly, as many by day as by night where there are both."""
    records = [judged.source.records[index] for index in judged.found.seen]
    groups = [[k for k, record in enumerate(records) if (record.time == "night") == night] for night in (False, True)]
    groups = [group for group in groups if group]
    found: list[int] = []
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        share = min(len(group), -(-(count - len(found)) // left))
        found += [group[k * len(group) // share] for k in range(share)]
    return found


def _drawn(judged: Judged, place: int) -> Image.Image:
    """An image at the size of the sheet with its surer detections."""
    image = judged.source.image(judged.found.seen[place])
    factor = SIDE / max(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    found: Detections = judged.found.detections[place]
    sure = found["scores"] >= SHOWN
    kept = {key: value[sure] for key, value in found.items()}
    kept["boxes"] = kept["boxes"] * factor
    night = judged.source.records[judged.found.seen[place]].time == "night"
    # without subclasses, it is the image that is of the day or of the night
    kept["conditions"] = torch.where(kept["conditions"] < 0, int(night), kept["conditions"])
    return draw(image.resize(size, Image.Resampling.BILINEAR), kept, judged.source.classes)


def write_sheet(path: Path, images: Sequence[Image.Image]) -> None:
    """Pictures side by side, in rows."""
    rows = [images[k : k + COLUMNS] for k in range(0, len(images), COLUMNS)]
    heights = [max(image.height for image in row) for row in rows]
    width = max(sum(image.width + GAP for image in row) for row in rows) - GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width + GAP
        top += height + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    write_bytes(path, buffer.getvalue())


def draw_precision(run: Run, judged: Judged) -> None:
    """`plots/precision-recall.png`: at IoU .5, of each class."""
    curves = judged.measured.evaluation.whole.precision[:, IOU50]
    series = {
        name: [(k / 100, float(curve[k]), 0.0) for k in range(0, 101, EVERY)]
        for name, curve in zip(judged.source.classes, curves, strict=True)
        if not np.isnan(curve).any()
    }
    if series:
        most = dict(list(series.items())[:MOST_CLASSES])
        run.plot(
            "precision-recall", plots.curves, most, title="Precision at IoU 0.5", xlabel="recall", ylabel="precision"
        )


def draw_stages(run: Run, judged: Mapping[str, Judged]) -> None:
    """`plots/ap-by-stage.png`: figures of what each stage of the last arm gives, beside the single stage's."""
    last = list(judged.values())[-1]
    series = {
        TITLES[name]: [
            (float(stage), value, 0.0) for stage, row in enumerate(last.stages, 1) if (value := row[name]) is not None
        ]
        for name in FIGURES
    }
    single = judged["single"].figures["ap75"] if len(judged) > 1 and "single" in judged else None
    if any(series.values()):
        run.plot(
            "ap-by-stage",
            plots.curves,
            series,
            title="Detections after each stage",
            xlabel="stage",
            ylabel="AP",
            reference=None if single is None else ("AP75 of one stage, trained alone", single),
        )
