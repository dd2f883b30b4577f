"""Measures the gradient error of compressions along a training, and writes the schedule that it implies."""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from effvl_cli.config.pretrain import SearchConfig
from effvl_cli.config.recipe_file import dump_yaml, read_yaml
from effvl_cli.core import distributed, plots
from effvl_cli.core.checkpoint import Step, StepFolders
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.files import write_json, write_text
from effvl_cli.core.phases import Phases
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table, times
from effvl_cli.engines.common.cost_table import cost_table
from effvl_cli.engines.pretrain.arm_training import ArmTrainer, train
from effvl_cli.engines.pretrain.costs import DEFAULT_BUDGET, check_patches
from effvl_cli.engines.pretrain.gradients import measure
from effvl_cli.engines.pretrain.images import TrainImages
from effvl_cli.engines.pretrain.methods import build_network, check_batch
from effvl_cli.engines.pretrain.preview import Trainee, search_parts
from effvl_cli.engines.pretrain.schedules import key_keep, pilot_schedule, unsaid_key_keep
from effvl_cli.techniques.pretrain.compression_search import (
    Estimates,
    Search,
    bias_growth,
    compressed_share,
    conclude,
    error_curves,
    error_rows,
    figures,
    grid,
    images_gained,
    named,
    patch_sizes,
)
from effvl_cli.techniques.pretrain.gradient_error import Estimate
from effvl_cli.techniques.pretrain.schedule import Compression, Schedule, Stage, schedule_from, schedule_to
from effvl_cli.techniques.pretrain.stage_choice import free
from effvl_cli.techniques.pretrain.step_cost import Costs

SCHEDULE, ERRORS = "schedule.yaml", "gradient_error.json"
PILOT_SHARE = 0.1
ROUNDING = 1e-6  # of t


def run(config: SearchConfig, run: Run) -> None:
    """Measure at RUN's checkpoints or those of a new pilot, choose, and write the schedule."""
    check_batch(config)
    if distributed.world().size > 1:
        raise UsageError("`pretrain search` runs on one process", "Run it without torchrun or srun")
    candidates = _candidates(config, Trainee(config, 1).costs)  # what cannot be is refused before images are read
    images = TrainImages.open(config, run, build_network(config).preprocess)
    run.report.data(images.source, num_samples=len(images))
    trainer = ArmTrainer.build(config, run, images)
    budget = config.units or _budget_of_run(config) or DEFAULT_BUDGET
    folders, units = _checkpoints(config, trainer, budget, candidates)
    run.report.model(trainer.network.name, trainer.network.source, trainer.network.module)
    stages: dict[float, Estimates] = {}
    snr: dict[float, float] = {}
    with run.progress("search", len(folders) * config.num_grad_batches) as progress:
        for number, (t, step) in enumerate(folders.items()):
            done = number * config.num_grad_batches

            def measured(step: Step = step, done: int = done) -> dict[str, Any]:
                return dataclasses.asdict(measure(trainer, candidates, step, lambda b: progress.update(done + b)))

            known = Phases.of(run).once(f"gradient errors at t = {t:g}", measured)
            stages[t] = {name: Estimate(**error) for name, error in known["errors"].items()}
            snr[t] = known["snr"]
            units += known["units"]
    search = conclude(
        stages,
        candidates,
        trainer.costs.shape.patch,
        config.final_full,
        criterion=config.criterion,
        order=config.order,
        ties=config.ties,
    )
    _write(config, run, search, snr)
    _report(config, run, trainer, search, units=units, budget=budget)


# --- what is measured ------------------------------------------------------------------------------------------------


def _candidates(config: SearchConfig, costs: Costs) -> dict[str, Compression]:
    """Strategies by name; the uncompressed one is called `FULL`.

    Raises:
        UsageError: a file that cannot be read, or patches that do not fit.
    """
    base, sizes = costs.shape.patch, costs.sizes
    if config.candidates:
        found = _read_candidates(Path(config.candidates), config.method)
    else:
        patches = config.candidate_patches or patch_sizes(base, sizes)
        found = grid(patches, config.candidate_keeps, partial(key_keep, config.method))
    check_patches(sizes, Schedule(tuple(Stage(index + 1.0, c) for index, c in enumerate(found)), "steps"))
    return named(found, base, sizes)


def _read_candidates(path: Path, method: str) -> list[Compression]:
    rows = read_yaml(path)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise UsageError(f"--candidates {path} is not a list", "Write e.g. - {patch: 8, keep_q: 0.5}, one per line")
    numbered = [{**row, "until": index + 1} for index, row in enumerate(rows)]
    try:
        found = schedule_from({"unit": "steps", "stages": numbered}, default_keep_k=unsaid_key_keep(method))
    except ValueError as error:
        raise UsageError(f"--candidates {path}: {str(error).replace('stage', 'row')}") from error
    return [stage.compression for stage in found.stages]


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


def _checkpoints(
    config: SearchConfig, trainer: ArmTrainer, budget: float, candidates: Mapping[str, Compression]
) -> tuple[dict[float, Step], float]:
    """Training states of RUN or of a pilot, by share of the training, and the cost of the pilot.

    Raises:
        DataError: RUN has kept none.
    """
    share = config.pilot_budget or (None if config.run else PILOT_SHARE)
    units = 0.0
    if share is None:
        folder = Path(str(config.run)) / "checkpoints"
        phase = next((folder / name for name in ("baseline", "train", "pilot") if (folder / name).is_dir()), folder)
        steps = StepFolders(phase)
    else:
        schedule = pilot_schedule(config, trainer.costs, candidates, share * budget)
        pilot = train(trainer, schedule, share * budget, phase="pilot", probe=None)
        steps, units = StepFolders(trainer.run.folder / "checkpoints" / "pilot"), pilot.clock.units
    kept = [steps.load(step) for step in steps.steps()]
    if len(kept) < 2:
        raise DataError(f"{config.run} keeps no training checkpoints", "Give a completed run, or --pilot-budget 0.1")
    found: dict[float, Step] = {}
    for t in sorted(config.measure_at):
        step = next((step for step in kept if step.state["task"]["t"] >= t - ROUNDING), kept[-1])
        if all(step is not other for other in found.values()):
            found[t] = step
    return found, units


# --- what is written -------------------------------------------------------------------------------------------------


def _write(config: SearchConfig, run: Run, search: Search, snr: Mapping[float, float]) -> None:
    rows = error_rows(search.stages, search.chosen)
    batch_size = config.grad_batch_size or config.batch_size
    about = {
        "batch_size": batch_size,
        "num_batches": config.num_grad_batches,
        "scope": config.grad_scope,
        "metric": config.metric,
    }
    strategies = {name: dataclasses.asdict(c) for name, c in search.candidates.items()}
    run.write(
        ERRORS,
        write_json,
        {**about, "strategies": strategies, "snr": {str(t): value for t, value in snr.items()}, "errors": rows},
    )
    text = schedule_to(search.schedule) | {"method": config.method}
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
        run.warn(f"at t = {t:g} {wanted} is best by {config.criterion}; --order and --ties took {chosen[t]}")
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
        about = {"unit": "V(g)", "higher_is_better": False, "n": config.num_grad_batches, "se": error}
        metrics(f"bias2_growth_patch{patch}", growth, **about)
    run.report.technique.update(
        method=config.method,
        batch_size=config.grad_batch_size or config.batch_size,
        num_batches=config.num_grad_batches,
        budget={"units_planned": budget, "search_units": units},
        chosen={str(t): name for t, name in chosen.items()},
        overridden=search.overridden,
        schedule=schedule_to(search.schedule)["stages"],
        estimates={str(t): {name: figures(e) for name, e in estimates.items()} for t, estimates in stages.items()},
        gradient_error=ERRORS,
    )


def preview(config: SearchConfig) -> list[Table]:
    """What `--dry-run` shows besides the options."""
    share = config.pilot_budget or (0.0 if config.run else PILOT_SHARE)
    trainee = Trainee(config, 1)
    parts = search_parts(trainee, config, _candidates(config, trainee.costs), len(config.measure_at), share)
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
    notes = (
        f"bias2 / CA-MSE ± SE over V(g); * chosen; B = {about['batch_size']}, M = {about['num_batches']}",
        f"schedule: {schedule}",
        f"{times(metrics['speedup'].value)} the images of an uncompressed run at the same budget, "
        f"{times(metrics['speedup_with_search'].value)} with the cost of the search included",
    )
    return Table(
        "gradient error of compressions", ("strategy", "cost", *(f"t = {t}" for t in stages)), tuple(rows), notes
    )
