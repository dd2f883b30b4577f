"""What the encoders of a run mine over all training clips, offline: each view alone, and cascades."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effvl_cli.config.cpr_mine_train import CprMineConfig
from effvl_cli.core.run import Run
from effvl_cli.engines.cpr_mine.cascades import Stages, keys_of, stages_of
from effvl_cli.techniques.cpr_mine.cascade import mine
from effvl_cli.techniques.cpr_mine.forbid import Forbid
from effvl_cli.techniques.cpr_mine.quality import StageTally, eligible, judge, judge_stages
from effvl_cli.techniques.cpr_mine.stages import described

FIGURES = ("precision", "recall", "true_recall", "hit", "coverage")


@dataclass(frozen=True)
class Bank:
    """Embeddings of M clips.

    Attributes:
        rows: (M, D) unit rows of each view; the view that is trained comes last.
        groups: (M,) videos that they were cut from.
        labels: (M,), -1 unknown.
        videos: (M,) their numbers in the split.
    """

    rows: Mapping[str, Tensor]
    groups: Tensor
    labels: Tensor
    videos: Tensor

    @property
    def forbid(self) -> Forbid:
        """No clip is its own positive, nor is one of the same video."""
        ids = torch.arange(len(self.labels))
        return Forbid(ids, ids, self.groups, self.groups)


def cascades_of(config: CprMineConfig, bank: Bank) -> dict[str, Stages]:
    """The stages whose figures are reported, by name: each view alone, and cascades with each view as the main one.

    "cascade" is the one of --report-stages that begins and ends in the first frozen view.
    """
    views, count, names = list(bank.rows), len(bank.labels), keys_of(list(bank.rows))

    def stages(main: str, number: int) -> Stages:
        return stages_of(config, views, count, config.top_k, main=main, num_stages=number)

    found = {names[view]: stages(view, 1) for view in views}
    found["cascade"] = stages(views[0], config.report_stages)
    for view in views[1:]:
        found[f"cascade_{names[view]}"] = stages(view, config.num_stages)
    return found


def record_mining(config: CprMineConfig, run: Run, bank: Bank, suffix: str = "") -> list[dict[str, Any]]:
    """Mine, put the figures into the report, and give a row for each way of mining.

    Args:
        config: options.
        run: with the report.
        bank: of all training clips.
        suffix: of the names of the metrics, e.g. "_pre".
    """
    candidates = eligible(bank.labels, bank.labels, bank.forbid)
    rows = []
    for name, stages in cascades_of(config, bank).items():
        tally = StageTally(bank.labels, bank.labels, len(stages))
        mined = mine(dict(bank.rows), dict(bank.rows), stages, forbid=bank.forbid, on_stage=tally.count)
        quality = judge(mined.indices, bank.labels, bank.labels, candidates)
        kept = judge_stages(tally.right, tally.known, candidates)
        for figure in ("precision", "recall"):
            value = quality.mean[figure]
            run.report.metric(f"mining_{figure}_{name}{suffix}", value, split="train", n=quality.queries)
        if name == "cascade":
            run.report.metric(f"class_mining_recall_median{suffix}", quality.median["recall"], split="train")
        rows.append(
            {
                "name": name,
                "stages": described(stages),
                "mean": quality.mean,
                "median": quality.median,
                "kept": [
                    {"view": s.view, "n": s.n, "kept": q.kept, "purity": q.purity}
                    for s, q in zip(stages, kept, strict=False)
                ],
                "per_class": {str(label): figures for label, figures in quality.per_class.items()},
            }
        )
    return rows
