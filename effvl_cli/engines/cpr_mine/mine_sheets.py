"""Contact sheets of mined items, where their images or videos can be opened again."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core import distributed
from effvl_cli.core.errors import EffvlError
from effvl_cli.core.run import Run
from effvl_cli.data import CLIPS, IMAGES, open_source
from effvl_cli.data.clips import ClipSource
from effvl_cli.data.source import ImageSource
from effvl_cli.engines.cpr_mine.contact_sheet import Picture, draw_sheets, middle_frames
from effvl_cli.engines.cpr_mine.embeddings import Items
from effvl_cli.techniques.cpr_mine.forbid import Forbid
from effvl_cli.techniques.cpr_mine.stages import Stage

MOST = 100_000  # items: the cascade is run again for some queries, one at a time


def draw_item_sheets(run: Run, items: Items, stages: Sequence[Stage], forbid: Forbid, seed: int) -> None:
    """Draw `plots/positives-N.png`; without the data that the embeddings were made from, nothing.

    Args:
        run: whose folder.
        items: that were mined among one another.
        stages: with sizes expanded.
        forbid: as it was mined with.
        seed: which queries.
    """
    if len(items) > MOST or not distributed.is_main():
        return
    try:
        picture = _picture_of(items)
        if picture is not None:
            labels = None if items.labels is None else items.labels.numpy()
            draw_sheets(
                run, picture, items.views, stages, forbid=forbid, labels=labels, classes=items.classes, seed=seed
            )
    except (EffvlError, OSError) as error:
        run.log(f"no contact sheets: {error}")


def _picture_of(items: Items) -> Picture | None:
    """From a row to its image, or a frame of its video; None where nothing says what the rows are of."""
    about = items.about
    if items.ids is None or not {"data", "split"} <= set(about):
        return None
    source: Any = open_source(str(about["data"]), str(about["split"]), kind=None, root=about.get("data_root"))
    if source.endless:
        return None
    kind = getattr(source, "kind", IMAGES)
    known = {name: index for index, name in enumerate(source.ids)}
    names = [_plain(name, known) for name in items.ids]
    if kind not in (IMAGES, CLIPS) or any(name not in known for name in names):
        return None
    draw = middle_frames(cast("ClipSource", source)) if kind == CLIPS else _images(source)
    return lambda row: draw(known[names[row]])


def _plain(name: str, known: dict[str, int]) -> str:
    """The video of a window "ID#START"."""
    return name if name in known else name.rpartition("#")[0]


def _images(source: ImageSource) -> Picture:
    def picture(index: int) -> NDArray[np.uint8]:
        return np.asarray(source.image(index).convert("RGB"), dtype=np.uint8)

    return picture
