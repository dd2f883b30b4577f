"""What a run has learned, on disk: class weights of every method, and the tokens that they came from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from effvl_cli.config.prompt_tune import LEARNERS
from effvl_cli.core import checkpoint
from effvl_cli.core.errors import ModelError
from effvl_cli.engines.prompt_tune.arms import Comparing, Fitted
from effvl_cli.engines.prompt_tune.context import AnyContext
from effvl_cli.engines.prompt_tune.label_sets import LabelSet
from effvl_cli.models.network import CHECKPOINT
from effvl_cli.models.tuned_prompts import KIND, prompts_edit
from effvl_cli.techniques.prompt_tune.class_head import ClassHead

PROMPTED = tuple(method for method in LEARNERS if method != "tenc-ft")


@dataclass(frozen=True)
class SavedArm:
    """A trained method of an earlier run.

    Attributes:
        key: in metrics, e.g. "prompt_gce_clean".
        head: class weights.
        learned: tensors of the text side, by name.
        about: its row of the manifest.
    """

    key: str
    head: ClassHead
    learned: dict[str, Tensor]
    about: dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """All of an earlier run."""

    arms: tuple[SavedArm, ...]
    manifest: dict[str, Any]

    def named(self, key: str) -> SavedArm | None:
        """The method of that key."""
        return next((arm for arm in self.arms if arm.key == key), None)


def save(context: Comparing, fitted: list[tuple[LabelSet, Fitted]]) -> None:
    """Write `checkpoint.safetensors` and its manifest: every method that ends as class weights."""
    state: dict[str, Tensor] = {}
    rows = []
    for labels, found in fitted:
        if found.head is None:
            continue
        key = f"{found.arm.name}{labels.suffix}"
        head = found.head
        state[f"{key}.weight"] = head.weight
        if head.bias is not None:
            state[f"{key}.bias"] = head.bias
        state |= {f"{key}.learned.{name}": value for name, value in found.learned.items()}
        rows.append(
            {
                "key": key,
                "method": found.arm.method,
                "loss": found.arm.loss or None,
                "rate": labels.rate,
                "suffix": labels.suffix,
                "normalize": head.normalize,
                "scale": head.scale,
                "bias": head.bias is not None,
                "learned": sorted(found.learned),
                "edit": _edit(context, found),
            }
        )
    context.run.save_model(state, {**describe(context), "arms": rows})


def _edit(context: Comparing, found: Fitted) -> dict[str, Any] | None:
    """The edit that the tuned prompts of a method are; None for other methods."""
    if found.arm.method not in PROMPTED:
        return None
    return prompts_edit(context.pieces, found.learned, context.config.class_position)


def describe(context: AnyContext) -> dict[str, Any]:
    """What the class weights belong to."""
    config = context.config
    return {
        "kind": KIND,
        "model": context.network.name,
        "weights": config.weights,
        "weights_key": config.weights_key,
        "seed": config.seed,
        "weights_sha256": context.network.weights_sha256,
        "classes": list(context.classes),
        "templates": list(context.templates),
        "preprocess": context.network.preprocess.to_dict(),
        "logit_scale": context.scale,
    }


def load(folder: Path) -> Saved:
    """Read what a run has learned.

    Raises:
        ModelError: missing, damaged, of another technique, or without class weights.
    """
    state, manifest = checkpoint.load_model(folder / CHECKPOINT)
    if manifest.get("kind") != KIND:
        raise ModelError(f"{folder} holds {manifest.get('kind')!r}, not a run of {KIND}", f"Give one of `effvl {KIND}`")
    try:
        saved = Saved(tuple(_arm(row, state) for row in manifest["arms"]), manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the manifest of {folder} is damaged: {error!r}"[:200], "Repeat the run") from error
    if not saved.arms:
        raise ModelError(
            f"{folder} holds no class weights: tip-adapter and rn50-ft have none", "Give a run with other methods too"
        )
    return saved


def _arm(row: dict[str, Any], state: dict[str, Tensor]) -> SavedArm:
    key = str(row["key"])
    head = ClassHead(
        state[f"{key}.weight"],
        state[f"{key}.bias"] if row["bias"] else None,
        scale=float(row["scale"]),
        normalize=bool(row["normalize"]),
    )
    learned = {name: state[f"{key}.learned.{name}"] for name in row["learned"]}
    return SavedArm(key, head, learned, row)


def refuse_other(folder: Path, saved: Saved, context: AnyContext) -> None:
    """Compare the model of a run with the one that is loaded.

    Raises:
        ModelError: they differ.
    """
    ours = describe(context)
    differing = [name for name in ("model", "weights_sha256", "preprocess") if saved.manifest.get(name) != ours[name]]
    if differing:
        raise ModelError(
            f"{folder} was made with another {' and '.join(differing)} than {context.network.name} has here",
            "Leave --model and --weights out, or repeat the run",
        )
