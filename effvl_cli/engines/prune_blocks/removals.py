"""Direct scoring of all candidates on the scoring images: distributed, saved on the way, with optional races.

N images, n candidates. Row 0 of every table is the network itself, row 1 + k the network without the k-th candidate.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from effvl_cli.core import distributed, seeds
from effvl_cli.core.errors import ModelError, NumericalError
from effvl_cli.core.files import write_bytes
from effvl_cli.core.loop import PRECISIONS
from effvl_cli.engines.prune_blocks.context import Scoring
from effvl_cli.techniques.prune_blocks.outcomes import Outcomes
from effvl_cli.techniques.prune_blocks.racing import Race
from effvl_cli.techniques.prune_blocks.recalibrate import recalibrated
from effvl_cli.techniques.prune_blocks.score import Scorer
from effvl_cli.techniques.prune_blocks.unit import Unit

SAVE_EVERY = 20  # batches


def scores_file(context: Scoring, step: int, size: int = 1) -> Path:
    """Where the scores of every image in a step are kept, without sets of `size` units."""
    name = f"step_{step}" + (f"_sets_of_{size}" if size > 1 else "")
    return context.run.path(f"scores/{name}.safetensors")


class _TooLargeError(Exception):
    """A batch does not fit in the device's memory."""


def score_removals(
    context: Scoring,
    module: nn.Module,
    units: Sequence[Unit],
    path: Path,
    sets: Sequence[Sequence[int]],
    *,
    picks: int = 1,
) -> Outcomes:
    """Leave out every set of units in turn; results that an earlier attempt saved at `path` are reused.

    Raises:
        NumericalError: the network itself gives NaN, or a single image does not fit in memory.
    """
    size = context.config.score_batch_size
    buffers = _statistics(context, module, units)
    while True:
        try:
            found = _Scoring(context, module, units, path, sets, size, buffers, picks).run()
        except _TooLargeError:
            if size == 1:
                raise NumericalError("out of memory with one image", "Use --device cpu, or smaller images") from None
            size = max(1, size // 2)
            context.run.warn(f"out of memory: scoring starts again with --score-batch-size {size}")
            path.unlink(missing_ok=True)
            continue
        if found.nan[0]:
            raise NumericalError(f"logits of {context.network.name} are not finite", "Check its weights")
        return found


def _statistics(context: Scoring, module: nn.Module, units: Sequence[Unit]) -> list[dict[str, Tensor]] | None:
    """Batch-norm statistics after each unit without it, if --score-bn asks for them; the same on every process.

    Raises:
        ModelError: the network has no batch norm.
    """
    if context.config.score_bn != "recal":
        return None
    context.run.log(f"batch-norm statistics without each of {len(units)} units")
    try:
        return recalibrated(module, units, context.recalibration)
    except ValueError as error:
        raise ModelError(f"--score-bn recal: {error}", "Give --score-bn keep") from error


class _Scoring:
    def __init__(
        self,
        context: Scoring,
        module: nn.Module,
        units: Sequence[Unit],
        path: Path,
        sets: Sequence[Sequence[int]],
        size: int,
        buffers: Sequence[Mapping[str, Tensor]] | None,
        picks: int,
    ) -> None:
        config = context.config
        self.here, self.path, self.size = context, path, size
        self.scorer = Scorer(
            module,
            units,
            config.sharing,
            sets,
            buffers=buffers,
            stack=config.score_stack,
            autocast=PRECISIONS[config.precision],
        )
        self.race = Race(
            config.race,
            config.metric,
            context.scoring.labels,
            candidates=len(sets),
            picks=picks,
            clip=config.loss_clip,
            generator=lambda: seeds.generator(config.seed, "race"),
        )
        self.outcomes = Outcomes.empty(self.race.order, 1 + len(sets))
        self.done = 0  # batches that are in `outcomes`
        self.began, self.scored = time.monotonic(), False

    def run(self) -> Outcomes:
        self._restore()
        batches = -(-len(self.here.scoring) // self.size)
        out_of_memory = False
        with self.here.run.progress("scoring", batches, self.done) as progress:
            for number in range(self.done, batches):
                if not out_of_memory and number % distributed.world().size == distributed.world().rank:
                    try:
                        self._batch(number)
                    except torch.OutOfMemoryError:
                        out_of_memory = True  # the others learn of it at the next exchange
                self._count(number)
                progress.update(number + 1)
                if self._meet(number, last=number + 1 == batches):
                    if distributed.all_reduce_max(int(out_of_memory)):
                        raise _TooLargeError
                    self._merge(number + 1)
                    self.here.run.check_stop()
        self._note_sharing()
        return self.outcomes

    def _note_sharing(self) -> None:
        """Record how this attempt shares, unless it has scored nothing and an earlier one has."""
        if self.scored or not self.outcomes.sharing:
            self.outcomes.sharing, self.outcomes.reason = self.scorer.sharing, self.scorer.reason

    def _columns(self, number: int) -> slice:
        return slice(number * self.size, min((number + 1) * self.size, len(self.here.scoring)))

    def _batch(self, number: int) -> None:
        columns = self._columns(number)
        places = self.outcomes.order[columns]
        device, split = self.here.run.device, self.here.scoring
        images = self.here.network.preprocess.normalise(split[places].to(device))
        found = self.scorer.batch(images, split.labels[places].to(device), self.race.active)
        self.scored = True
        rows = torch.tensor([0, *(1 + k for k in self.race.active)])
        self.outcomes.correct[rows, columns] = found.correct.cpu().to(torch.uint8)
        self.outcomes.loss[rows, columns] = found.loss.cpu()
        self.outcomes.nan[rows] |= found.nan.cpu().to(torch.uint8)

    def _count(self, number: int) -> None:
        rows = torch.tensor([0, *(1 + k for k in self.race.active)])
        self.outcomes.used[rows] = self._columns(number).stop

    def _meet(self, number: int, *, last: bool) -> bool:
        """Whether the processes merge their results after this batch."""
        return last or (number + 1) % SAVE_EVERY == 0 or self.race.is_due(self._columns(number).stop)

    def _merge(self, done: int) -> None:
        """Merge the processes' columns, save them, and let the race drop candidates."""
        ours, start = self.outcomes, self.done * self.size
        columns = slice(start, self._columns(done - 1).stop)
        ours.correct[:, columns] = distributed.all_reduce_sum(ours.correct[:, columns].to(torch.int32)).to(torch.uint8)
        ours.loss[:, columns] = distributed.all_reduce_sum(ours.loss[:, columns].contiguous())
        ours.nan = distributed.all_reduce_sum(ours.nan.to(torch.int32)).clamp(max=1).to(torch.uint8)
        self.done = done
        self.race.advance(ours.correct, ours.loss, columns.stop)
        if distributed.is_main():
            self._note_sharing()
            seconds = ours.seconds_before + time.monotonic() - self.began
            progress = {"done": torch.tensor([done]), "size": torch.tensor([self.size])}
            tensors = {**ours.tensors(), **progress, "active": torch.tensor(self.race.active)}
            about = {"sharing": ours.sharing, "reason": ours.reason, "seconds": str(seconds)}
            write_bytes(self.path, save(tensors, about))

    def _restore(self) -> None:
        """Restore results that were saved with this batch size."""
        known = load_file(self.path) if self.path.is_file() else {}
        distributed.barrier()
        if not known or int(known["size"]) != self.size:
            return
        for name in self.outcomes.tensors():
            setattr(self.outcomes, name, known[name])
        with safe_open(self.path, "pt") as file:
            about = file.metadata() or {}  # an older version wrote none
        self.outcomes.sharing, self.outcomes.reason = about.get("sharing", ""), about.get("reason", "")
        self.outcomes.seconds_before = float(about.get("seconds", 0))
        self.done = int(known["done"])
        self.race.resume(known["active"].tolist(), self._columns(self.done - 1).stop)
        self.here.run.resumed("scoring", self.done)
