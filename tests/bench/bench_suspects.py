"""Our ranking of suspect labels beside cleanlab's from the same probabilities: `make bench-suspects [ARGS=OPTIONS]`.

`effvl prompt-tune OPTIONS` (none: its embedded default) with a fifth of the labels wrong, three seeds; the logits of
its folds go through cleanlab's three scores too. AUROC by scikit-learn; precision among as many images as are wrong.
Exits 1 if our AUROC is more than 0.005 below the best of cleanlab's, or is not scikit-learn's. A minute on one core.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor

from effvl_cli.cli.app import main as effvl
from effvl_cli.techniques.prompt_tune.suspects import auroc, precision_at, suspects

RATE = 0.2
SEEDS = (1, 2, 3)
SCORES = ("normalized_margin", "self_confidence", "confidence_weighted_entropy")
ALLOWED = 0.005
Numbers = NDArray[np.float64]


def judged(seed: int, folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, K) of the folds, given labels (N,), and which of them are wrong (N,)."""
    options = f"--method zero-shot --noise symmetric --noise-rate {RATE} --seed {seed} --quiet".split()
    if effvl(["prompt-tune", *options, *sys.argv[1:], "--out", str(folder)]):
        raise SystemExit("prompt-tune failed")
    (kept,) = folder.glob("checkpoints/suspects-*.safetensors")
    records = json.loads((folder / "noise.json").read_bytes())["sets"][-1]["records"]
    given, flipped = (torch.tensor([row[key] for row in records]) for key in ("given_label", "flipped"))
    return load_file(kept)["logits"], given, flipped.bool()


def compare(logits: Tensor, given: Tensor, flipped: Tensor) -> bool:
    """Print a line for each score; whether ours keeps up."""
    ours = suspects(logits, given)
    probabilities = logits.double().softmax(1).numpy()
    count, wrong = int(flipped.sum()), flipped.numpy()
    area = auroc(ours.suspicion, flipped)
    assert area is not None
    good = abs(area - roc_auc_score(wrong, ours.suspicion.numpy())) < 1e-9
    first = precision_at(ours.order, flipped, count)
    print(f"{'ours':28} AUROC {area:.4f}  precision {first:.4f}")
    for score in SCORES:
        quality: Numbers = get_label_quality_scores(given.numpy(), probabilities, method=score)
        theirs = roc_auc_score(wrong, -quality)
        first = wrong[np.argsort(quality, kind="stable")[:count]].mean()
        print(f"cleanlab {score:19} AUROC {theirs:.4f}  precision {first:.4f}")
        good &= area >= theirs - ALLOWED
    print("PASS" if good else "FAIL", flush=True)
    return good


def main() -> int:
    """Run everything."""
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            logits, given, flipped = judged(seed, Path(folder) / str(seed))
            print(f"seed {seed}: {int(flipped.sum())} of {len(flipped)} labels are wrong")
            good &= compare(logits, given, flipped)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
