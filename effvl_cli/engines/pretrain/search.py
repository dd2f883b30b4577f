"""Measures the gradient error of compressions along a training, and writes the schedule that it implies."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from effvl_cli.config.pretrain import SearchConfig
from effvl_cli.config.recipe_file import dump_yaml
from effvl_cli.core import distributed, plots
from effvl_cli.core.checkpoint import STEPS, Step
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.files import write_json, write_text
from effvl_cli.core.phases import Phases
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table, percent, times
from effvl_cli.engines.common.cost_table import cost_table
from effvl_cli.engines.pretrain.arm_training import ArmTrainer, save_backbone, train
from effvl_cli.engines.pretrain.closed_loop import accelerate
from effvl_cli.engines.pretrain.compressions import candidates_of, gradient_units, with_batches
from effvl_cli.engines.pretrain.costs import DEFAULT_BUDGET
from effvl_cli.engines.pretrain.gradients import measure
from effvl_cli.engines.pretrain.images import TrainImages
from effvl_cli.engines.pretrain.methods import build_network, check_batch
from effvl_cli.engines.pretrain.preview import Trainee, search_parts
from effvl_cli.engines.pretrain.schedules import pilot_schedule
from effvl_cli.engines.pretrain.training_states import TrainingStates
from effvl_cli.engines.pretrain.trials import LookAhead
from effvl_cli.techniques.pretrain.compression_search import (
    Estimates,
    Search,
    bias_growth,
    compressed_share,
    conclude,
    error_curves,
    error_rows,
    figures,
    images_gained,
)
from effvl_cli.techniques.pretrain.gradient_error import Estimate
from effvl_cli.techniques.pretrain.schedule import Clock, Compression, schedule_to
from effvl_cli.techniques.pretrain.stage_choice import free
from effvl_cli.techniques.pretrain.vit import ViTShape

SCHEDULE, ERRORS = "schedule.yaml", "gradient_error.json"


def run(config: SearchConfig, run: Run) -> None:
    """Measure along RUN, a new pilot or the accelerated training itself, choose, and write the schedule."""
    check_batch(config)
    if distributed.world().size > 1:
        raise UsageError("`pretrain search` runs on one process", "Run it without torchrun or srun")
    costs = Trainee(config, 1).costs
    candidates = candidates_of(config, costs)  # what cannot be is refused before images are read
    budget = config.units or _budget_of_run(config) or DEFAULT_BUDGET
    if config.num_grad_batches is None:
        config = with_batches(config, costs, candidates, budget)
        _warn_of_cost(
            config, run, config.pilot_share + config.batches * gradient_units(config, costs, candidates) / budget
        )
    images = TrainImages.open(config, run, build_network(config).preprocess)
    run.report.data(images.source, num_samples=len(images))
    trainer = ArmTrainer.build(config, run, images)
    look = LookAhead(trainer, candidates, budget) if config.lookahead else None
    measuring = _Measuring(config, trainer, candidates)
    trained, units = None, 0.0
    if config.closed_loop:
        search, trained = accelerate(trainer, candidates, budget, measuring.at, look)
        save_backbone(trainer, budget)
    else:
        states, units = _states(config, trainer, budget, candidates)
        search = _chosen(config, trainer, candidates, states, measuring, look)
    run.report.model(trainer.network.name, trainer.network.source, trainer.network.module)
    _write(config, run, search, trainer.costs.shape, measuring.snr)
    units += measuring.units + (look.units if look else 0.0)
    _report(config, run, trainer, search, units=units, budget=budget)
    run.report.technique["lookahead"] = {str(t): rounds for t, rounds in look.rounds.items()} if look else {}
    if trained:
        _report_training(run, trainer, trained)


def _warn_of_cost(config: SearchConfig, run: Run, share: float) -> None:
    if share > config.search_share:
        run.warn(
            f"--search-share is {config.search_share:g}, and the fewest batches cost up to {share:.2g} of the budget. "
            "Fewer --candidate-patches, --candidate-keeps or --measure-at cost less"
        )


# --- what is measured ------------------------------------------------------------------------------------------------


class _Measuring:
    """Gradient errors, share by share.

    Attributes:
        units: cost so far.
        snr: signal-to-noise ratio of the uncompressed gradient, by share.
    """

    def __init__(self, config: SearchConfig, trainer: ArmTrainer, candidates: Mapping[str, Compression]) -> None:
        self.config, self.trainer, self.candidates = config, trainer, candidates
        self.units = 0.0
        self.snr: dict[float, float] = {}

    def at(self, t: float, states: Callable[[], Sequence[Step]]) -> Estimates:
        """Errors of all candidates; `states` reads what is measured, and is not called where that has been done."""
        run = self.trainer.run

        def measured() -> dict[str, Any]:
            with run.progress(f"gradients at t = {t:g}", self.config.batches) as progress:
                return dataclasses.asdict(measure(self.trainer, self.candidates, states(), progress.update))

        known = Phases.of(run).once(f"gradient errors at t = {t:g}", measured)
        self.snr[t] = known["snr"]
        self.units += known["units"]
        return {name: Estimate(**error) for name, error in known["errors"].items()}


def _chosen(
    config: SearchConfig,
    trainer: ArmTrainer,
    candidates: Mapping[str, Compression],
    states: TrainingStates,
    measuring: _Measuring,
    look: LookAhead | None,
) -> Search:
    """Measure at all shares, then choose."""
    first: dict[int, float] = {}
    for t in sorted(config.measure_at):
        first.setdefault(states.first(t), t)  # the pilot's steps may be longer than that
    stages = {t: measuring.at(t, partial(states.at, t, config.average)) for t in first.values()}

    def ahead(t: float, names: Sequence[str]) -> str:
        assert look is not None
        return look.pick(t, lambda: states.at(t, 1)[0], names)

    return conclude(
        stages,
        candidates,
        trainer.costs.shape.patch,
        config.final_full,
        criterion=config.criterion,
        order=config.order,
        ties=config.ties,
        look=ahead if look else None,
    )


def _budget_of_run(config: SearchConfig) -> float | None:
    """Budget that RUN was trained with."""
    if config.run is None:
        return None
    report = Path(config.run) / "report.json"
    if not report.is_file():
        return None
    arms = json.loads(report.read_text())["technique"].get("arms") or {}
    planned: list[float] = [arm["budget"]["units_planned"] for arm in arms.values()]
    return planned[0] if planned else None


def _states(
    config: SearchConfig, trainer: ArmTrainer, budget: float, candidates: Mapping[str, Compression]
) -> tuple[TrainingStates, float]:
    """Training states of RUN or of a pilot, and the cost of the pilot.

    Raises:
        DataError: RUN has kept none.
    """
    share, units = config.pilot_share, 0.0
    if not share:
        folder = Path(str(config.run)) / STEPS
        phase = next((folder / name for name in ("baseline", "train", "pilot") if (folder / name).is_dir()), folder)
    else:
        schedule = pilot_schedule(config, trainer.costs, candidates, share * budget)
        phase = trainer.run.path(STEPS) / "pilot"
        units = train(trainer, schedule, share * budget, phase=phase.name, probe=None).clock.units
    states = TrainingStates(phase)
    if len(states.shares) < 2:
        raise DataError(f"{config.run} keeps no training checkpoints", "Give a completed run, or --pilot-budget 0.1")
    return states, units


# --- what is written -------------------------------------------------------------------------------------------------


def _write(config: SearchConfig, run: Run, search: Search, shape: ViTShape, snr: Mapping[float, float]) -> None:
    rows = error_rows(search.stages, search.chosen)
    batch_size = config.grad_batch_size or config.batch_size
    about = {
        "batch_size": batch_size,
        "num_batches": config.batches,
        "scope": config.grad_scope,
        "metric": config.metric,
        "averaged": config.average,
    }
    strategies = {name: dataclasses.asdict(c) for name, c in search.candidates.items()}
    run.write(
        ERRORS,
        write_json,
        {**about, "strategies": strategies, "snr": {str(t): value for t, value in snr.items()}, "errors": rows},
    )
    base = {"image_size": shape.image_size, "patch": shape.patch}
    text = schedule_to(search.schedule, base) | {"method": config.method}
    text |= {"provenance": {"source": "search", "report": ERRORS}}
    run.write(SCHEDULE, write_text, dump_yaml(text))
    run.plot(
        "gradient_error",
        plots.panels,
        error_curves(search.stages),
        title="Gradient error, over the variance of the uncompressed gradient",
        xlabel="t, share of the training",
    )


def _report(
    config: SearchConfig, run: Run, trainer: ArmTrainer, search: Search, *, units: float, budget: float
) -> None:
    stages, chosen = search.stages, search.chosen
    for t in search.overridden:
        [wanted] = free([stages[t]], config.criterion)
        rules = "--order and --lookahead" if config.lookahead else "--order and --ties"
        run.warn(f"at t = {t:g} {wanted} is best by {config.criterion}; {rules} took {chosen[t]}")
    if config.grad_batch_size and config.grad_batch_size != config.batch_size:
        run.warn(
            f"measured with batches of {config.grad_batch_size}, trained with {config.batch_size}: bias depends on it"
        )
    clock = images_gained(search.schedule, trainer.costs, budget)
    metrics = run.report.metric
    metrics("compressed_stages", compressed_share(stages), n=len(stages))
    metrics("speedup", clock, unit="ratio")
    metrics("speedup_with_search", clock * budget / (budget + units), unit="ratio")
    metrics("search_units", units, unit="units", higher_is_better=False)
    for patch, (growth, error) in bias_growth(stages, search.candidates, trainer.costs.shape.patch).items():
        about = {"unit": "V(g)", "higher_is_better": False, "n": config.batches, "se": error}
        metrics(f"bias2_growth_patch{patch}", growth, **about)
    run.report.technique.update(
        method=config.method,
        batch_size=config.grad_batch_size or config.batch_size,
        num_batches=config.batches,
        averaged=config.average,
        budget={"units_planned": budget, "search_units": units},
        chosen={str(t): name for t, name in chosen.items()},
        overridden=search.overridden,
        schedule=schedule_to(search.schedule)["stages"],
        estimates={str(t): {name: figures(e) for name, e in estimates.items()} for t, estimates in stages.items()},
        gradient_error=ERRORS,
    )


def _report_training(run: Run, trainer: ArmTrainer, clock: Clock) -> None:
    """What the training along which was measured spent; its backbone is the run's model."""
    batch_size = trainer.config.batch_size
    budget = {"units_planned": clock.budget, "units_spent": clock.units}
    run.report.technique["arms"] = {
        "train": {"steps": clock.steps, "samples": clock.steps * batch_size, "budget": budget}
    }
    run.report.metric("units", clock.units, unit="units", higher_is_better=False)


def preview(config: SearchConfig) -> list[Table]:
    """What `--dry-run` shows besides the options."""
    trainee = Trainee(config, 1)
    parts = search_parts(trainee, config, candidates_of(config, trainee.costs))
    memory = trainee.memory(Compression(trainee.costs.shape.patch))
    title = f"search for {config.method} on {trainee.network.name}"
    return [cost_table(title, parts, trainee.device, memory=memory, notes=())]


def table(report: Report) -> Table:
    """Candidates by stages: CA-MSE over V(g), the chosen ones marked."""
    about = report.technique
    stages = about["estimates"]
    names = list(next(iter(stages.values())))
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        cells = []
        for t, estimates in stages.items():
            mark = "*" if about["chosen"].get(t) == name else " "
            bias2, total, error = (estimates[name][key] for key in ("bias2", "ca_mse", "se"))
            cells.append(f"{bias2:.3f} / {total:.3f} ± {error:.3f}{mark}")
        rows.append((name, f"{next(iter(stages.values()))[name]['rel_cost']:.3f}", *cells))
    schedule = "; ".join(
        f"until {row['until']:g}: patch {row['patch']}, keep {row['keep_q']:g}/{row['keep_k']:g}"
        for row in about["schedule"]
    )
    metrics = report.metrics
    states = f", mean of {about['averaged']} states" if about["averaged"] > 1 else ""
    notes = (
        f"bias2 / CA-MSE ± SE over V(g); * chosen; B = {about['batch_size']}, M = {about['num_batches']}{states}",
        *_trials(about["lookahead"]),
        f"schedule: {schedule}",
        f"{times(metrics['speedup'].value)} the images of an uncompressed run at the same budget, "
        f"{times(metrics['speedup_with_search'].value)} with the cost of the search included",
    )
    return Table(
        "gradient error of compressions", ("strategy", "cost", *(f"t = {t}" for t in stages)), tuple(rows), notes
    )


def _trials(found: Mapping[str, list[dict[str, float]]]) -> list[str]:
    """A line for each share at which compressions were tried: accuracies of the last round."""
    lines = []
    for t, rounds in found.items():
        shown = ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in rounds[-1].items())
        lines.append(f"20-NN on validation pictures after a look-ahead from t = {t}, %: {shown}")
    return lines
