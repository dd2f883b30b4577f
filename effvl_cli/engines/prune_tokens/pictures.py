"""Pictures of a run: kept patches, accuracy against keep rate, latency beside multiply-adds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from effvl_cli.core import distributed
from effvl_cli.core.plots import Point, curves, image_grid, paired_bars
from effvl_cli.engines.prune_tokens.evaluation import prune
from effvl_cli.engines.prune_tokens.setup import Images, Setup
from effvl_cli.techniques.prune_tokens.tower import Selector

FADE = 0.8  # how far a dropped patch goes towards white


def spread(count: int, shown: int) -> torch.Tensor:
    """Positions spread evenly over `count` images, which in many data sets are sorted by class."""
    return torch.linspace(0, count - 1, min(shown, count)).long().unique()


def kept_patches(setup: Setup, images: Images, selectors: Mapping[str, Selector], keeps: Sequence[float]) -> None:
    """`plots/patches.png`: some images, and below them what each selector keeps."""
    if not distributed.is_main():
        return
    pixels = images.pixels.permute(0, 2, 3, 1).numpy()
    rows, labels = [pixels], ["image"]
    for keep in keeps:
        for name, selector in selectors.items():
            vision = prune(setup, selector, keep)
            x = setup.network.preprocess.normalise(images.pixels.to(setup.run.device))
            with torch.inference_mode():
                _, kept = vision(x, images.keys.to(setup.run.device), return_keep=True)
            rows.append(
                np.stack([_faded(p, k, setup.tower.grid) for p, k in zip(pixels, kept.cpu().numpy(), strict=True)])
            )
            labels.append(f"{name}\nkeep {keep:g}" if len(keeps) > 1 else name)
    names = [setup.classes[int(label)] for label in images.labels]
    title = f"{setup.network.name}, pruned before block {setup.layer}"
    if len(keeps) == 1:
        title += f", keep {keeps[0]:g}"
    path = setup.run.folder / "plots" / "patches.png"
    image_grid(path, np.stack(rows), title=title, row_labels=labels, column_labels=names)


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


def accuracy_curve(setup: Setup, rows: Sequence[Mapping[str, Any]], dense: float, note: str) -> None:
    """`plots/accuracy.png`: top-1 against the kept share, a line a selector."""
    if not distributed.is_main():
        return
    series: dict[str, list[Point]] = {}
    for row in rows:
        series.setdefault(row["selector"], []).append((row["keep"], 100 * row["top1"], 100 * row["se"]))
    curves(
        setup.run.folder / "plots" / "accuracy.png",
        series,
        title=f"Zero-shot accuracy of {setup.network.name} ({note})",
        xlabel="share of the patch tokens that is kept",
        ylabel="top-1 %  (bars: paired SE to dense)",
        reference=("dense", 100 * dense),
    )


def latency_bars(setup: Setup, rows: Sequence[Mapping[str, Any]]) -> None:
    """`plots/latency.png`: measured speed-up beside what the multiply-adds say."""
    if not rows or not distributed.is_main():
        return
    measured = [row["speedup"] for row in rows]
    spread = [(row["speedup"] - row["speedup_ci95"][0], row["speedup_ci95"][1] - row["speedup"]) for row in rows]
    paired_bars(
        setup.run.folder / "plots" / "latency.png",
        [f"batch {row['batch']}" for row in rows],
        {"measured": measured, "by multiply-adds": [1 / row["mac_ratio"] for row in rows]},
        title=f"Speed-up of the pruned tower on {setup.run.device.type} (threads: {rows[0]['threads']})",
        ylabel="dense time / pruned time",
        errors={"measured": [(max(0.0, low), max(0.0, high)) for low, high in spread]},
        level=1.0,
    )
