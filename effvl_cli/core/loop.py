"""One training loop for every objective: accumulate, clip, autocast, evaluate, checkpoint, stop on request."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from effvl_cli.core import distributed, seeds
from effvl_cli.core.checkpoint import STEPS, Step, StepFolders
from effvl_cli.core.errors import NumericalError
from effvl_cli.core.modes import Buffers, as_found
from effvl_cli.core.optim import Optimizers
from effvl_cli.core.run import Run
from effvl_cli.core.stopping import Rule

PATIENCE = 3  # non-finite steps in a row before the run fails
NAMED = 8  # images that a failure names
CHECKPOINT_SHARE = 0.02  # largest share of the time spent on checkpoints where no period is given
FIRST_CHECKPOINT = 2.0  # seconds
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EVALUATION_LINES = 10.0  # seconds at least between two logged evaluations; all are in metrics.jsonl


@dataclass(frozen=True)
class StepOutput:
    """What one backward pass needs, and what is logged with it."""

    loss: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


class Task:
    """One training objective; a task overrides what it needs."""

    module: Any
    """The nn.Module that holds the trainable parameters; its state dict is the checkpoint."""

    def train_step(self, batch: Any, step: int) -> StepOutput:
        """Loss of this process's share of a batch; `step` is the optimizer step."""
        raise NotImplementedError

    def after_backward(self, step: int) -> None:
        """Called between the backward passes of a step and its update."""

    def after_step(self, step: int, *, counted: bool) -> None:
        """Called at the end of a step; `counted` is False where its gradient was not finite and nothing was updated."""

    def watch(self, step: int, figures: Mapping[str, float]) -> None:
        """Called with the figures of each record."""

    def evaluate(self) -> dict[str, float]:
        """Validation figures, the same on every process."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State besides the module's, in plain containers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""


@dataclass(frozen=True)
class Plan:
    """How long and how to train."""

    steps: int
    rate: Callable[[int], float]
    """Share of the peak learning rate at a step."""
    rates: tuple[Callable[[int], float], ...] = ()
    """One for each optimizer, where they differ; `rate` is then what is logged."""
    phase: str = "train"
    accumulate: int = 1
    clip_grad: float = 0.0
    clip_mode: Literal["global", "per-param"] = "global"
    decay: Callable[[int], float] | None = None
    """Weight decay at a step, as a factor of the optimizers' own; None: constant."""
    precision: str = "fp32"
    eval_every: int = 0
    eval_at: frozenset[int] = frozenset()
    """Additional steps after which to evaluate."""
    save_every: int = 0
    milestones: frozenset[int] = frozenset()
    """Steps whose checkpoints are written and kept; 0 is the state before the first step."""
    work: Callable[[int], float] = float
    """Work done before a step, so that progress is even where steps cost differently."""
    log_every: int = 20
    hint: str = ", or use --precision fp32"
    """End of the error's hint: what else may help where gradients are not finite."""
    best: str | None = None
    """Validation figure, higher is better, whose best state is the result; None: the last state is the result."""
    stop: Rule | None = None
    """Rule that ends the training early, given the figures of all evaluations so far."""
    goes_on: bool = False
    """Whether this attempt has trained this phase before, to fewer steps: going on from there is no resume."""
    broadcast_buffers: bool = True
    """Whether the first process's buffers are copied to all before each forward pass; False: each has its own."""


@dataclass(frozen=True)
class FitResult:
    """What `fit` did."""

    steps: int
    resumed_at: int
    best_step: int | None
    figures: dict[str, float]
    seconds: float
    stopped: bool = False
    """Whether `Plan.stop` ended the training."""


class _StepModule(nn.Module):
    """Makes the whole train step the forward that DDP sees, whatever parts of the network a task calls."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.module = task.module
        self._step = task.train_step

    def forward(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        output = self._step(batch, step)
        return output.loss, dict(output.logs)


def fit(
    task: Task,
    optimizers: Optimizers,
    batches: Callable[[int], Iterator[Any]],
    run: Run,
    plan: Plan,
) -> FitResult:
    """Train to `plan.steps`, from the newest checkpoint of this phase if there is one.

    Parameters and buffers change only in steps that count; each part of the module keeps the mode that it had.

    Args:
        task: the objective.
        optimizers: over `task.module`'s parameters.
        batches: `batches(k)` gives the stream from micro-batch k on; one step takes `plan.accumulate` of them.
        run: folder, records, device and stop requests.
        plan: lengths and periods.

    Raises:
        Preempted: asked to stop; the state is saved.
        NumericalError: the loss stayed non-finite.
    """
    with as_found(task.module, buffers=False):
        return _Loop(task, optimizers, run, plan).run_from(batches)


class _Loop:
    def __init__(self, task: Task, optimizers: Optimizers, run: Run, plan: Plan) -> None:
        self.task, self.optimizers, self.run, self.plan = task, optimizers, run, plan
        self.folders = StepFolders(run.path(STEPS) / plan.phase, milestones=plan.milestones)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=plan.precision == "fp16")
        self.step = self.resumed_at = self.bad_steps = 0
        self.best: tuple[float, int] | None = None
        self.figures: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.step_module: nn.Module = _StepModule(task)
        self.buffers = Buffers([task.module])
        self.saved_at, self.save_cost = time.monotonic(), 0.0
        self.told_at = 0.0
        self.seen: list[Any] = []
        self.began, self.data_wait = time.monotonic(), 0.0

    def run_from(self, batches: Callable[[int], Iterator[Any]]) -> FitResult:
        started = time.monotonic()
        saved = self.folders.latest(self.run.warn)
        if saved is not None:
            self._restore(saved)
        if not self.plan.goes_on:
            self.run.resumed(self.plan.phase, self.resumed_at)
        if distributed.world().size > 1 and not self._over:
            with warnings.catch_warnings():  # torch 2.13 renames the argument, which 2.12 has under this name alone
                warnings.simplefilter("ignore", FutureWarning)
                self.step_module = nn.parallel.DistributedDataParallel(
                    self.step_module, broadcast_buffers=self.plan.broadcast_buffers
                )
        if self.step == 0 and 0 in self.plan.milestones:
            self._save()
        if not self._over:
            self._train(batches(self.step * self.plan.accumulate))
        if self.plan.best and self.best and self.best[1] != self.step:
            self.task.module.load_state_dict(self.folders.load(self.best[1]).model)
        best_step = self.best[1] if self.best else None
        stopped = self.step < self.plan.steps
        return FitResult(self.step, self.resumed_at, best_step, self.figures, time.monotonic() - started, stopped)

    @property
    def _over(self) -> bool:
        """Whether the last step is done, or the rule has stopped the training."""
        stop = self.plan.stop
        return self.step >= self.plan.steps or bool(stop and self.history and stop(self.history))

    def _train(self, stream: Iterator[Any]) -> None:
        work = self.plan.work
        total, done = math.ceil(work(self.plan.steps)), int(work(self.step))
        with self.run.progress(self.plan.phase, total, completed=done) as progress:
            while not self._over:
                losses, norm = self._one_step(stream)
                self.step += 1
                self._record(losses, norm, progress)
                improved = self._maybe_evaluate()
                self._maybe_save(improved)

    def _one_step(self, stream: Iterator[Any]) -> tuple[dict[str, Tensor], Tensor]:
        plan = self.plan
        self.task.module.train()
        self.optimizers.set_rates([rate(self.step) for rate in plan.rates or (plan.rate,)])
        if plan.decay:
            self.optimizers.set_decay(plan.decay(self.step))
        self.buffers.keep()
        totals: dict[str, Tensor] = {}
        self.seen = []
        for part in range(plan.accumulate):
            waiting = time.monotonic()
            batch = next(stream)
            self.seen.append(_identity(batch))
            self.data_wait += time.monotonic() - waiting
            with self._sync(last=part == plan.accumulate - 1):
                with self._stream(part), autocast(self.run.device, plan.precision):
                    loss, logs = self.step_module(batch, self.step)
                self.scaler.scale(loss / plan.accumulate).backward()
            for name, value in {"loss": loss, **logs}.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / plan.accumulate
        return totals, self._update()

    def _stream(self, part: int) -> contextlib.AbstractContextManager[None]:
        """The global generators, which dropout and its like draw from, set for a micro-batch of this step."""
        names = ("step", self.plan.phase, self.step, part, distributed.world().rank)
        if self.run.device.type == "cuda":
            torch.cuda.manual_seed(seeds.derive(self.run.report.seed, *names))
        return seeds.global_stream(self.run.report.seed, *names)

    def _sync(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.step_module, nn.parallel.DistributedDataParallel) and not last:
            return self.step_module.no_sync()
        return contextlib.nullcontext()

    def _update(self) -> Tensor:
        """Step the optimizers unless the gradient is not finite; its norm is the same on every process."""
        for part in self.optimizers.parts:
            self.scaler.unscale_(part) if self.scaler.is_enabled() else None
        self.task.after_backward(self.step)
        parameters = [p for group in self.optimizers.groups() for p in group["params"] if p.grad is not None]
        norm = _clip(parameters, self.plan)
        counted = bool(torch.isfinite(norm))
        if self.scaler.is_enabled():
            for part in self.optimizers.parts:
                self.scaler.step(part)
            self.scaler.update()
        elif counted:
            self.optimizers.step()
        if not counted:
            self.buffers.put_back()
        self.optimizers.zero_grad()
        self.task.after_step(self.step, counted=counted)
        self._guard(counted=counted)
        return norm

    def _guard(self, *, counted: bool) -> None:
        self.bad_steps = 0 if counted else self.bad_steps + 1
        if self.bad_steps == 1 and not self.scaler.is_enabled():
            self.run.warn(f"step {self.step} of {self.plan.phase}: gradient not finite, step skipped")
        if self.bad_steps >= PATIENCE and not (self.scaler.is_enabled() and self.scaler.get_scale() > 1.0):
            seen = _images(self.seen)
            cause = "Use --precision fp32 or bf16" if self.plan.precision == "fp16" else "Lower the learning rate"
            raise NumericalError(
                f"the gradient of {self.plan.phase} is not finite at {PATIENCE} steps in a row "
                f"(step {self.step}{', ' if seen else ''}{seen})",
                f"{cause}{self.plan.hint}",
            )

    def _record(self, losses: Mapping[str, Tensor], norm: Tensor, progress: Any) -> None:
        done, at = self.step == self.plan.steps, int(self.plan.work(self.step))
        if self.step % self.plan.log_every == 0 or done:
            figures = {name: float(value) for name, value in losses.items()}
            rate = self.plan.rate(self.step - 1)
            record = {**figures, "lr_factor": rate, "grad_norm": float(norm)}
            self.run.record("train", phase=self.plan.phase, step=self.step, **record)
            self.task.watch(self.step, record)
            waiting = self.data_wait / (time.monotonic() - self.began)
            progress.update(at, loss=figures["loss"], lr_factor=rate, data_wait=f"{waiting:.0%}")
        else:
            progress.update(at)

    def _maybe_evaluate(self) -> bool:
        """Validate when it is due; True when the figure is the best so far."""
        plan = self.plan
        periodic = plan.eval_every and self.step % plan.eval_every == 0
        due = self.step == plan.steps or periodic or self.step in plan.eval_at
        if not due:
            return False
        # A task may synchronise its buffers over the processes here: they stay as it leaves them.
        with as_found(self.task.module, training=False, buffers=False), torch.no_grad():
            self.figures = self.task.evaluate()
        if plan.stop:
            self.history.append(self.figures)
            if self._over and self.step < plan.steps:
                self.run.log(f"{plan.phase}: no further gain, stopped at step {self.step} of {plan.steps}")
        self.run.record("eval", phase=plan.phase, step=self.step, **self.figures)
        if self.figures and (self.step == plan.steps or time.monotonic() - self.told_at > EVALUATION_LINES):
            self.told_at = time.monotonic()
            text = "  ".join(f"{name} {value:.4f}" for name, value in self.figures.items())
            self.run.log(f"{plan.phase} step {self.step}/{plan.steps}: {text}")
        if plan.best and (self.best is None or self.figures[plan.best] > self.best[0]):
            self.best = (self.figures[plan.best], self.step)
            return True
        return False

    def _maybe_save(self, improved: bool) -> None:
        """Save when the period, the best figure, the end or a stop request asks for it, on all processes alike."""
        plan = self.plan
        stop = self.run.stop_signal()
        wait = max(FIRST_CHECKPOINT, self.save_cost / CHECKPOINT_SHARE)
        timed = not plan.save_every and time.monotonic() - self.saved_at >= wait
        periodic = bool(plan.save_every) and self.step % plan.save_every == 0
        wanted = improved or self._over or timed or periodic or self.step in plan.milestones
        wish = distributed.all_reduce_max(2 + stop if stop else int(wanted))
        if wish:
            self._save()
        if wish >= 2:
            self.run.stop(wish - 2)

    def _save(self) -> None:
        if distributed.is_main():
            began = time.monotonic()
            state = {
                "optimizer": self.optimizers.state_dict(),
                "scaler": self.scaler.state_dict(),
                "task": self.task.state_dict(),
                "best": list(self.best) if self.best else [],
                "figures": self.figures,
                "history": self.history,
                "bad_steps": self.bad_steps,
                "records": self.run.record_offset(),
            }
            best = self.best[1] if self.best else None
            self.folders.save(self.step, self.task.module.state_dict(), state, best=best)
            self.saved_at = time.monotonic()
            self.save_cost = self.saved_at - began

    def _restore(self, saved: Step) -> None:
        self.task.module.load_state_dict(saved.model)
        self.optimizers.load_state_dict(saved.state["optimizer"])
        self.scaler.load_state_dict(saved.state["scaler"])
        self.task.load_state_dict(saved.state["task"])
        best = saved.state["best"]
        self.best = (best[0], int(best[1])) if best else None
        self.figures, self.bad_steps = saved.state["figures"], saved.state["bad_steps"]
        self.history = saved.state.get("history", [])  # checkpoints of older versions have none
        self.step = self.resumed_at = saved.step
        if not self._over:
            self.run.rewind_records(saved.state["records"])
        else:  # records of later phases may follow
            self.run.settle_records(saved.state["records"])
        if distributed.is_main():  # an attempt that was killed may not have come to it
            self.folders.tidy(self.step, best=self.best[1] if self.best else None)
        if not self.plan.goes_on:
            self.run.log(f"{self.plan.phase}: continuing from step {saved.step} of {self.plan.steps}")


def _identity(batch: Any) -> Any:
    """What tells the images of a batch: their files where it names them, else their places in the split; or None."""
    files = getattr(batch, "files", None)
    return getattr(batch, "indices", None) if files is None else files


def _images(own: Sequence[Any]) -> str:
    """The images of a step over all processes and micro-batches, each once; "" where batches do not name them."""
    mine = [name for part in own if part is not None for name in (part.tolist() if isinstance(part, Tensor) else part)]
    each = [distributed.broadcast_json(mine, rank) for rank in range(distributed.world().size)]
    names = list(dict.fromkeys(str(name) for part in each for name in part))
    if not names:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"images {', '.join(names[:NAMED])}{more}"


def _clip(parameters: list[Tensor], plan: Plan) -> Tensor:
    """Clip the gradients as planned.

    Returns:
        The norm of all gradients before clipping.
    """
    if plan.clip_mode == "global" or not plan.clip_grad:
        return nn.utils.clip_grad_norm_(parameters, plan.clip_grad or float("inf"))
    norms = [nn.utils.clip_grad_norm_([parameter], plan.clip_grad) for parameter in parameters]
    found: Tensor = torch.stack(norms).norm()
    return found


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to `precision`; nothing for fp32."""
    kind = PRECISIONS[precision]
    return contextlib.nullcontext() if kind is None else torch.autocast(device.type, kind)
