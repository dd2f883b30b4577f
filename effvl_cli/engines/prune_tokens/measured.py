"""The accuracy of an arm, measured once: a resumed run takes it from an earlier attempt."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effvl_cli.core.phases import Phases
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.prune_tokens.context import Judged
from effvl_cli.engines.prune_tokens.evaluation import embed, result
from effvl_cli.engines.prune_tokens.texts import with_prompts
from effvl_cli.techniques.prune_tokens.arm_result import ArmResult
from effvl_cli.techniques.prune_tokens.prompts import Prompts
from effvl_cli.techniques.prune_tokens.tower import WrappedTower


@dataclass(frozen=True)
class Measured:
    """A row of the results, and which images are classified correctly."""

    row: ArmResult
    correct: Tensor
    """(M,) float 0/1."""


def measure(
    context: Judged,
    name: str,
    keep: float,
    images: Decoded,
    dense: Tensor,
    tower: Callable[[], WrappedTower],
    prompts: Prompts | None = None,
) -> Measured:
    """Run images through a pruned tower, unless an earlier attempt has.

    Args:
        context: of the run.
        name: of the arm.
        keep: share of the patches that is kept.
        images: of one split.
        dense: (M, E) unit embeddings of the dense tower.
        tower: makes the pruned tower.
        prompts: those in the pruned tower.
    """

    def make() -> dict[str, Any]:
        embedding = embed(context, images, tower())
        correct = with_prompts(context, prompts).accuracy(embedding, images.labels)
        row = result(context, name, keep, images, embedding, dense, prompts)
        return {"row": row.to_dict(), "correct": np.packbits(correct.bool().numpy()).tobytes().hex()}

    found = Phases.of(context.run).once(f"{name} at keep {keep:g} on {images.source.split}", make)
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(found["correct"]), np.uint8), count=len(images))
    return Measured(ArmResult(**found["row"]), torch.from_numpy(bits).float())
