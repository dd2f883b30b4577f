"""Pictures of a run: kept patches, accuracy against keep rate, latency beside multiply-adds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effvl_cli.core.plots import Point, curves, heat_maps, image_grid
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.prune_tokens.context import AnyContext
from effvl_cli.engines.prune_tokens.evaluation import OFFLINE, prune
from effvl_cli.techniques.prune_tokens.tower import PrunedVision, Selector

FADE = 0.8  # how far a dropped patch goes towards white
BATCH = 128


def spread(count: int, shown: int) -> torch.Tensor:
    """Positions spread evenly over `count` images, which in many data sets are sorted by class."""
    return torch.linspace(0, count - 1, min(shown, count)).long().unique()


def kept_patches(
    context: AnyContext, images: Decoded, selectors: Mapping[str, Selector], keeps: Sequence[float]
) -> None:
    """`plots/patches.png`: some images, and below them what each selector keeps."""
    pixels = images.pixels.permute(0, 2, 3, 1).numpy()
    rows, labels = [pixels], ["image"]
    for keep in keeps:
        for name, selector in selectors.items():
            kept = _kept(prune(context, selector, keep), context, images).numpy()
            rows.append(np.stack([_faded(p, k, context.tower.grid) for p, k in zip(pixels, kept, strict=True)]))
            labels.append(f"{name}\nkeep {keep:g}" if len(keeps) > 1 else name)
    names = [context.classes[int(label)] for label in images.labels]
    title = f"{context.network.name}, pruned before block {context.layer}"
    if len(keeps) == 1:
        title += f", keep {keeps[0]:g}"
    context.run.plot("patches", image_grid, np.stack(rows), title=title, row_labels=labels, column_labels=names)


def _faded(pixels: NDArray[np.uint8], kept: NDArray[np.int64], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """Dropped patches blended towards white."""
    mask = np.zeros(grid[0] * grid[1], bool)
    mask[kept] = True
    size = (pixels.shape[0] // grid[0], pixels.shape[1] // grid[1])
    full = np.kron(mask.reshape(grid), np.ones(size, bool))[..., None]
    pale = pixels + FADE * (255.0 - pixels)
    out = pixels.copy()
    out[: full.shape[0], : full.shape[1]] = np.where(
        full, pixels[: full.shape[0], : full.shape[1]], pale[: full.shape[0], : full.shape[1]]
    ).astype(np.uint8)
    return out


def accuracy_curve(context: AnyContext, rows: Sequence[Mapping[str, Any]], dense: float, note: str) -> None:
    """`plots/accuracy.png`: top-1 against the kept share, a line a selector."""
    context.run.plot(
        "accuracy",
        curves,
        _series(rows, lambda row: row["keep"]),
        title=f"Zero-shot accuracy of {context.network.name} ({note})",
        xlabel="share of the patch tokens that is kept",
        ylabel="top-1 %  (bars: paired SE to dense)",
        reference=("dense", 100 * dense),
    )


def cost_curve(context: AnyContext, rows: Sequence[Mapping[str, Any]], dense: float, note: str) -> None:
    """`plots/cost.png`: top-1 against multiply-adds, the selector's own included.

    Without the arms that are no way to save anything: the oracle, whose search is not counted, and `taylor`.
    """
    shown = [row for row in rows if not _is_reference(row)]
    if not shown:
        return
    context.run.plot(
        "cost",
        curves,
        _series(shown, lambda row: row["macs"] / context.shape.dense()),
        title=f"Accuracy against cost of {context.network.name} ({note})",
        xlabel="multiply-adds of an image, share of the dense tower's",
        ylabel="top-1 %  (bars: paired SE to dense)",
        reference=("dense", 100 * dense),
    )


def _series(rows: Sequence[Mapping[str, Any]], place: Callable[[Mapping[str, Any]], float]) -> dict[str, list[Point]]:
    """Top-1 in percent at each row's place, a line a selector; references last, for the same colours without them."""
    series: dict[str, list[Point]] = {}
    for row in sorted(rows, key=_is_reference):
        name = row["selector"] + (" (oracle)" if row["oracle"] else "")
        series.setdefault(name, []).append((place(row), 100 * row["top1"], 100 * row["se"]))
    return series


def _is_reference(row: Mapping[str, Any]) -> bool:
    return row["oracle"] or row["selector"] in OFFLINE


def keep_maps(context: AnyContext, images: Decoded, selectors: Mapping[str, Selector], keeps: Sequence[float]) -> None:
    """`plots/keep.png`: how often each place of the patch grid is kept, a picture for each selector and keep rate."""
    maps = {}
    for keep in keeps:
        for name, selector in selectors.items():
            total = (
                _kept(prune(context, selector, keep), context, images)
                .flatten()
                .bincount(minlength=context.shape.num_patches)
            )
            label = f"{name}, keep {keep:g}" if len(keeps) > 1 else name
            maps[label] = (total / len(images)).view(context.tower.grid).numpy()
    title = (
        f"How often {context.network.name} keeps a patch, pruned before block {context.layer} ({len(images)} images)"
    )
    context.run.plot("keep", heat_maps, maps, title=title, columns=len(selectors))


def _kept(vision: PrunedVision, context: AnyContext, images: Decoded) -> torch.Tensor:
    """(M, K) ids of the patches that are kept, on the CPU."""
    device, parts = context.run.device, []
    for rows, pixels in images.batches(BATCH):
        keys, x = images.keys[rows.start : rows.stop], context.network.preprocess.normalise(pixels.to(device))
        with torch.inference_mode():
            parts.append(vision(x, keys.to(device), return_keep=True)[1].cpu())
    return torch.cat(parts)
