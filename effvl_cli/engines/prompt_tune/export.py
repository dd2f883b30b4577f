"""`effvl prompt-tune export`: RUN's methods as class weights, for open_clip without effvl."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load as parse
from safetensors.torch import save
from torch import Tensor

from effvl_cli.config.prompt_tune import ExportConfig
from effvl_cli.core.errors import CheckError, UsageError
from effvl_cli.core.files import write_bytes, write_json
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.prompt_tune.saved_arms import Saved, SavedArm, load

WEIGHTS, CARD = "class_weights.safetensors", "class_weights.json"
NUM_FEATURES, NEAR = 64, 1e-4
FORMULA = (
    "f = model.encode_image(images), of length 1 where normalize is true (F.normalize(f, dim=-1)); "
    "logits = logit_scale * f @ weight.T, plus bias where bias is true"
)
FROM_BASE = ("model", "weights", "weights_sha256", "preprocess", "classes", "templates")


def run(config: ExportConfig, run: Run) -> None:
    """Write the weights, read back and compared, and the card that says how they are applied."""
    saved = load(Path(str(config.run)))
    arms = _chosen(saved, config.arms)
    gaps = run.write(WEIGHTS, _write_weights, arms)
    run.write(CARD, write_json, card_of(saved, arms))
    size = run.path(WEIGHTS).stat().st_size if gaps else 0
    run.report.technique["export"] = {
        "file": WEIGHTS,
        "bytes": size,
        "arms": [{**_about(arm), "key": arm.key, "difference": (gaps or {}).get(arm.key)} for arm in arms],
    }


def _chosen(saved: Saved, names: tuple[str, ...]) -> list[SavedArm]:
    """The methods of those names, or all.

    Raises:
        UsageError: one that the run has no class weights of.
    """
    known = [arm.key for arm in saved.arms]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--arms names {name!r}, of which the run has no class weights", f"It has {', '.join(known)}"
            )
    return [arm for arm in saved.arms if not names or arm.key in names]


def card_of(saved: Saved, arms: list[SavedArm]) -> dict[str, Any]:
    """What whoever applies the weights has to know."""
    return {
        **{name: saved.manifest[name] for name in FROM_BASE},
        "formula": FORMULA,
        "arms": {arm.key: _about(arm) for arm in arms},
    }


def _about(arm: SavedArm) -> dict[str, Any]:
    head = arm.head
    return {
        **{name: arm.about[name] for name in ("method", "loss", "rate")},
        "normalize": head.normalize,
        "bias": head.bias is not None,
        "logit_scale": head.scale,
        "classes": head.weight.shape[0],
        "width": head.weight.shape[1],
    }


def _write_weights(path: Path, arms: list[SavedArm]) -> dict[str, float]:
    """Write `KEY.weight` (K, D) and `KEY.bias` (K,), float32.

    Returns:
        The largest difference of logits after reading back, relative to the largest logit, by key.

    Raises:
        CheckError: they give other logits; an existing file stays.
    """
    state: dict[str, Tensor] = {}
    for arm in arms:
        state[f"{arm.key}.weight"] = arm.head.weight.float().contiguous().clone()  # two methods may share one tensor
        if arm.head.bias is not None:
            state[f"{arm.key}.bias"] = arm.head.bias.float().contiguous().clone()
    content = save(state)
    found = parse(content)
    gaps = {arm.key: _gap(arm, found) for arm in arms}
    worst = max(gaps, key=lambda key: gaps[key])
    if not gaps[worst] <= NEAR:
        raise CheckError(f"{path.name} gives other logits of {worst} than the run: {gaps[worst]:.2g}", "Repeat the run")
    write_bytes(path, content)
    return gaps


def _gap(arm: SavedArm, found: dict[str, Tensor]) -> float:
    """By the formula of the card, on random features, against the run's head."""
    head, weight = arm.head, found[f"{arm.key}.weight"]
    generator = torch.Generator().manual_seed(0)
    features = 3 * torch.randn(NUM_FEATURES, weight.shape[1], generator=generator)
    rows = F.normalize(features, dim=-1) if head.normalize else features
    logits = head.scale * rows @ weight.T
    if head.bias is not None:
        logits = logits + found[f"{arm.key}.bias"]
    expected = head(features)
    return float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def table(report: Report) -> Table:
    """A row for each method."""
    found = report.technique["export"]
    rows = tuple(
        (
            row["key"],
            f"{row['classes']} x {row['width']}",
            "yes" if row["normalize"] else "no",
            "yes" if row["bias"] else "no",
            f"{row['logit_scale']:g}",
        )
        for row in found["arms"]
    )
    columns = ("method", "weights", "unit features", "bias", "logit scale")
    return Table(report.command, columns, rows, (f"in {WEIGHTS}, {found['bytes'] / 1e3:.0f} kB; {CARD} says how",))
