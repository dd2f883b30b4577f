"""Accelerated augmentation-invariance pretraining (arXiv 2410.22364): one arm, or two at the same budget."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from effvl_cli.config.pretrain import PretrainConfig
from effvl_cli.core import distributed
from effvl_cli.core.metrics import paired_difference, standard_error
from effvl_cli.core.phases import Phases
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table, percent, points, times
from effvl_cli.engines.pretrain import pictures
from effvl_cli.engines.pretrain.arm_training import ArmTrainer, Trained, save_backbone, stage_rows, train
from effvl_cli.engines.pretrain.costs import budget_of, check_patches, sizes_of
from effvl_cli.engines.pretrain.images import TrainImages, open_split
from effvl_cli.engines.pretrain.methods import build_network, check_batch
from effvl_cli.engines.pretrain.probes import Judged, Probe, decode
from effvl_cli.engines.pretrain.schedules import build_schedule
from effvl_cli.techniques.pretrain.schedule import Compression, Schedule

BOTH = ("baseline", "accelerated")


def run(config: PretrainConfig, run: Run) -> None:
    """Train the arms, evaluate their features once on the test split, save the backbone."""
    check_batch(config)
    schedules, source = _arms(config)
    images = TrainImages.open(config, run, build_network(config).preprocess)
    run.report.data(images.source, num_samples=len(images))
    bank, validation = _validation(config, run, images)
    trained: dict[str, tuple[ArmTrainer, Trained]] = {}
    for arm, schedule in schedules.items():
        trainer = ArmTrainer.build(config, run, images)
        budget = budget_of(config, trainer.costs, len(images))
        if len(schedules) > 1:
            run.log(f"{arm}: {budget:,.0f} units")
        trained[arm] = (trainer, train(trainer, schedule, budget, phase=arm, probe=validation))
    judged = _judge(config, run, trained, bank)
    _figures(run, judged)
    _report(config, run, trained, source)
    save_backbone(trainer, budget)
    if distributed.is_main():
        pictures.draw(run, {arm: t.clock for arm, (_, t) in trained.items()}, *trained[list(schedules)[-1]])


def _arms(config: PretrainConfig) -> tuple[dict[str, Schedule], str]:
    """The schedules to train by name, ending with the one for users, and the origin of that one."""
    shape = build_network(config).module.shape
    schedule, source = build_schedule(config, shape)
    check_patches(sizes_of(config, shape), schedule)
    if not config.compares:
        return {"train": schedule}, source
    return {BOTH[0]: Schedule.constant(Compression(shape.patch)), BOTH[1]: schedule}, source


def _validation(config: PretrainConfig, run: Run, images: TrainImages) -> tuple[Any, Probe | None]:
    """The labelled bank, and the probe on validation pictures; none without labels."""
    preprocess = build_network(config).preprocess
    classes = images.source.classes
    if len(classes) < 2:
        found = f"one class only, {classes[0]!r}" if classes else "no classes"
        run.warn(f"{config.data} has {found}: k-NN and probes are left out; pretrain eval can use other --data")
        return None, None
    bank = decode(config, run, images.source, preprocess, config.num_bank)
    probe = Probe.open(config, run, preprocess, "val", bank=bank)
    return bank, probe if len(probe.asked.labels) else None


# --- evaluation ------------------------------------------------------------------------------------------------------


def _judge(
    config: PretrainConfig, run: Run, trained: dict[str, tuple[ArmTrainer, Trained]], bank: Any
) -> dict[str, Judged]:
    """Test figures of the arms and of the two controls; the test split is decoded here for the first time."""
    if bank is None:
        return {}
    fresh = build_network(config)
    probe = Probe.open(config, run, fresh.preprocess, "test", bank=bank)
    run.report.data(open_split(config, "test"), num_samples=len(probe.asked.labels))
    judges: dict[str, Callable[[], Judged]] = {
        arm: partial(probe.judge, t.task.method.result.eval()) for arm, (_, t) in trained.items()
    }
    judges["random_init"] = partial(probe.judge, fresh.module.to(run.device).eval())
    judges["raw_pixels"] = probe.judge_pixels
    phases = Phases.of(run)
    return {arm: Judged(phases.tensors(f"{arm} judged", partial(_correct, judge))) for arm, judge in judges.items()}


def _correct(judge: Callable[[], Judged]) -> dict[str, Tensor]:
    return judge().correct


def _figures(run: Run, judged: dict[str, Judged]) -> None:
    for arm, found in judged.items():
        suffix = "" if arm == "train" else f"_{arm}"
        for name, correct in found.correct.items():
            value, error = float(correct.mean()), standard_error(correct)
            run.report.metric(f"{name}{suffix}", value, split="test", n=len(correct), se=error)
    if BOTH[1] in judged:
        for name in ("knn20", "linear"):
            pair = [judged[arm].correct[name] for arm in reversed(BOTH)]
            gain, error = paired_difference(*pair)
            run.report.metric(f"{name}_gain", gain, split="test", n=len(pair[0]), se=error)


# --- report ----------------------------------------------------------------------------------------------------------


def _report(config: PretrainConfig, run: Run, trained: dict[str, tuple[ArmTrainer, Trained]], source: str) -> None:
    trainer, last = list(trained.values())[-1]
    run.report.model(trainer.network.name, trainer.network.source, last.task.method.result)
    arms = {arm: _arm(*pair) for arm, pair in trained.items()}
    run.report.technique.update(method=config.method, schedule_from=source, batch_size=config.batch_size, arms=arms)
    own = arms[list(trained)[-1]]
    run.report.metric("flop_ratio", own["cost"]["flop_ratio"], unit="ratio")
    run.report.metric("units", own["budget"]["units_spent"], unit="units", higher_is_better=False)
    run.report.efficiency["macs_per_unit"] = trainer.costs.unit_macs
    if len(trained) > 1:
        rates = [arms[arm]["cost"]["images_per_s"] for arm in BOTH]
        ratio = rates[1] / rates[0] if all(rates) else None
        if ratio is not None:
            run.report.metric("images_per_s_ratio", ratio, unit="ratio")
    _warn_of_waiting(run, own["schedule"])


def _arm(trainer: ArmTrainer, trained: Trained) -> dict[str, Any]:
    rows = stage_rows(trained, trainer)
    return {
        "steps": trained.clock.steps,
        "samples": sum(row["samples"] for row in rows),
        "budget": {"units_planned": trained.clock.budget, "units_spent": trained.clock.units},
        "cost": trainer.costs.totals(rows),
        "schedule": rows,
        "stages_skipped": trained.clock.skipped,
    }


def _warn_of_waiting(run: Run, rows: list[dict[str, Any]]) -> None:
    waits = [row["data_wait_fraction"] or 0.0 for row in rows]
    if max(waits) > 0.2:
        run.warn(f"{max(waits):.0%} of a stage's time is spent waiting for pictures: give more --workers")


# --- what users see --------------------------------------------------------------------------------------------------


def table(report: Report) -> Table:
    """Accuracies of the arms and the controls."""
    arms = [*report.technique["arms"], "random_init", "raw_pixels"]
    rows = tuple(_row(report, arm) for arm in arms)
    notes = [f"{report.technique['method']} on {report.model.name if report.model else ''}"]
    gain = report.metrics.get("knn20_gain")
    if gain is not None:
        spread = percent(gain.se, 2)
        notes.append(f"20 neighbours, accelerated - baseline: {points(gain.value)} ± {spread} points, paired")
    notes += ratio_notes(report)
    columns = ("arm", "units", "images", "1-NN %", "20-NN %", "200-NN %", "linear %", "± SE of 20-NN", "n")
    return Table("pretrain: features on the test split", columns, rows, tuple(notes))


def ratio_notes(report: Report) -> list[str]:
    """What the arms cost beside one another."""
    notes = []
    flops, speed = (report.metrics.get(name) for name in ("flop_ratio", "images_per_s_ratio"))
    if flops is not None and flops.value:
        more = flops.value < 1
        ratio = times(1 / flops.value if more else flops.value)
        notes.append(f"{ratio} {'as many' if more else 'fewer'} multiply-adds per image")
    if speed is not None:
        notes.append(f"{times(speed.value)} the images per second")
    return notes


def _row(report: Report, arm: str) -> tuple[Cell, ...]:
    suffix = "" if arm == "train" else f"_{arm}"
    found = [report.metrics.get(f"{name}{suffix}") for name in ("knn1", "knn20", "knn200", "linear")]
    about = report.technique["arms"].get(arm)
    cost: tuple[Cell, ...] = (None, None)
    if about:
        cost = (f"{about['budget']['units_spent']:,.0f}", f"{about['samples']:,}")
    knn = found[1]
    shown = [percent(metric.value) if metric else None for metric in found]
    return (arm.replace("_", " "), *cost, *shown, percent(knn.se, 2) if knn else None, knn.n if knn else None)
