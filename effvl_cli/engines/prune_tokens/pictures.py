"""Pictures of a run: kept patches, accuracy against keep rate, latency beside multiply-adds."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from effvl_cli.core.patch_views import dropped, enlarged, merged
from effvl_cli.core.plots import Point, curves, heat_maps, image_grid
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.inference import over_batches
from effvl_cli.engines.prune_tokens.context import AnyContext
from effvl_cli.techniques.prune_tokens.arm_result import ArmResult
from effvl_cli.techniques.prune_tokens.selector_table import Arm, spec_of
from effvl_cli.techniques.prune_tokens.tome import MergedVision
from effvl_cli.techniques.prune_tokens.tower import WrappedTower

BATCH = 128


def patches(context: AnyContext, images: Decoded, arms: Sequence[Arm]) -> None:
    """`plots/patches.png`: some images, and below them what each pruned tower keeps or merges."""
    pixels = images.pixels.permute(0, 2, 3, 1).numpy()
    rows, labels = [np.stack([enlarged(picture) for picture in pixels])], ["image"]
    several = len({arm.keep for arm in arms}) > 1
    for arm in arms:
        rows.append(np.stack(_seen(arm.vision, context, images, pixels)))
        name = arm.selector + ("\n(oracle)" if spec_of(arm.selector).oracle else "")
        labels.append(f"{name}\nkeep {arm.keep:.2g}" if several else name)
    names = [context.classes[int(label)] for label in images.labels]
    title = f"{context.network.name}, pruned before block {context.layer}"
    if not several:
        title += f", keep {arms[0].keep:g}"
    context.run.plot("patches", image_grid, np.stack(rows), title=title, row_labels=labels, column_labels=names)


def _seen(
    vision: WrappedTower, context: AnyContext, images: Decoded, pixels: NDArray[np.uint8]
) -> list[NDArray[np.uint8]]:
    """The kept part of each picture."""
    grid = context.tower.grid
    if isinstance(vision, MergedVision):
        groups = over_batches(lambda x, keys: vision.groups(x), images, context.run.device, BATCH).numpy()
        return [merged(picture, own, grid) for picture, own in zip(pixels, groups, strict=True)]
    kept = _kept(vision, context, images).numpy()
    return [dropped(picture, own, grid) for picture, own in zip(pixels, kept, strict=True)]


def accuracy_curve(context: AnyContext, rows: Sequence[ArmResult], dense: float, note: str) -> None:
    """`plots/accuracy.png`: top-1 against the kept share, a line for each selector."""
    context.run.plot(
        "accuracy",
        curves,
        _series(rows, lambda row: row.keep),
        title=f"Zero-shot accuracy of {context.network.name} ({note})",
        xlabel="share of the patch tokens that is kept",
        ylabel="top-1 %  (bars: paired SE to dense)",
        reference=("dense", 100 * dense),
    )


def cost_curve(context: AnyContext, rows: Sequence[ArmResult], dense: float, note: str) -> None:
    """`plots/cost.png`: top-1 against multiply-adds, the selector's own included.

    Arms that cannot save anything are left out: the oracle, whose search is not counted, and `taylor`.
    """
    shown = [row for row in rows if not _is_reference(row)]
    if not shown:
        return
    context.run.plot(
        "cost",
        curves,
        _series(shown, lambda row: row.macs / context.shape.dense()),
        title=f"Accuracy against cost of {context.network.name} ({note})",
        xlabel="multiply-adds of an image, share of the dense tower's",
        ylabel="top-1 %  (bars: paired SE to dense)",
        reference=("dense", 100 * dense),
    )


def _series(rows: Sequence[ArmResult], place: Callable[[ArmResult], float]) -> dict[str, list[Point]]:
    """Top-1 in percent at each row's place, a line for each selector; references last, for the same colours without."""
    series: dict[str, list[Point]] = {}
    for row in sorted(rows, key=_is_reference):
        name = row.selector + (" (oracle)" if row.oracle else "")
        series.setdefault(name, []).append((place(row), 100 * row.top1, 100 * row.se))
    return series


def _is_reference(row: ArmResult) -> bool:
    return row.oracle or spec_of(row.selector).offline


def keep_maps(context: AnyContext, images: Decoded, arms: Sequence[Arm]) -> None:
    """`plots/keep.png`: how often each place of the patch grid is kept, by each tower that drops patches."""
    if not arms:
        return
    maps, several = {}, len({arm.keep for arm in arms}) > 1
    for arm in arms:
        total = _kept(arm.vision, context, images).flatten().bincount(minlength=context.shape.num_patches)
        label = f"{arm.selector}, keep {arm.keep:g}" if several else arm.selector
        maps[label] = (total / len(images)).view(context.tower.grid).numpy()
    title = f"How often {context.network.name} keeps a patch, pruned before block {context.layer}"
    columns = len({arm.selector for arm in arms})
    context.run.plot("keep", heat_maps, maps, title=f"{title} ({len(images)} images)", columns=columns)


def _kept(vision: WrappedTower, context: AnyContext, images: Decoded) -> torch.Tensor:
    """(M, K) ids of the patches that are kept, on the CPU."""
    return over_batches(lambda x, keys: vision(x, keys, return_keep=True)[1], images, context.run.device, BATCH)
