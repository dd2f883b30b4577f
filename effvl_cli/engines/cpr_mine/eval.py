"""`effvl cpr-mine eval`: retrieval, linear probes and fine-tuning of the encoders of a run, also on other data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from effvl_cli.config.cpr_mine_eval import TRAINED_ON_VIDEO, EvalConfig
from effvl_cli.core.errors import DataError
from effvl_cli.core.metrics import standard_error
from effvl_cli.core.plots import Point, curves
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Cell, Table, percent
from effvl_cli.data.clips import ClipSource
from effvl_cli.engines.cpr_mine.clip_classification import ClipTrainer, settings_of
from effvl_cli.engines.cpr_mine.clip_data import carrying, open_clips
from effvl_cli.engines.cpr_mine.clip_splits import note_failures, official_splits
from effvl_cli.engines.cpr_mine.encoding_cost import cost_of, trainings
from effvl_cli.engines.cpr_mine.protocols import TWO_STREAM, Features, Measured, linear, linear_features, retrieval
from effvl_cli.engines.cpr_mine.view_encoders import ViewEncoder, open_encoders
from effvl_cli.engines.cpr_mine.window_features import window_features
from effvl_cli.techniques.cpr_mine.retrieval import KS

SPLITS = ("train", "test")


def preview(config: EvalConfig) -> list[Table]:
    """What `--dry-run` shows besides the options."""
    run = unopened("cpr-mine eval", config)
    data = official_splits(config.data, config.splits)
    sources = [open_clips(replace(config, data=name), split) for name in data for split in SPLITS]
    check_apart(config, data)
    num_train = sum(len(source) for source in sources if source.split == "train")
    return [cost_of(config, run, open_encoders(config, run), sources, trainings(config, num_train))]


def run(config: EvalConfig, run: Run) -> None:
    """Measure each official split, and report the mean over them."""
    encoders = open_encoders(config, run)
    network = encoders[0].network
    run.report.model(network.name, network.source, network.module)
    data = official_splits(config.data, config.splits)
    check_apart(config, data)
    found = {name: _measure(config, run, encoders, name) for name in data}
    for name in next(iter(found.values())).correct:
        _note(run, name, [measured.correct[name] for measured in found.values()])
    first = next(iter(found.values()))
    by_chance = {name: _mean([m.chance[name] for m in found.values()]) for name in first.chance}
    run.report.technique.update(
        views=[{"view": e.view, "key": e.key, "model": e.network.name, "source": e.network.source} for e in encoders],
        center=config.center,
        crops=config.crops,
        chance=by_chance,
    )
    for name, measured in found.items():
        if measured.about:
            run.report.technique.setdefault("settings", {})[name] = measured.about
        if len(found) > 1:
            values = {key: float(right.mean()) for key, right in measured.correct.items()}
            run.report.technique.setdefault("splits", {})[name] = values
    _draw(run, encoders, by_chance)


def check_apart(config: EvalConfig, data: Sequence[str]) -> None:
    """Refuse data whose test videos are training videos too: each would find itself.

    Raises:
        DataError: names one.
    """
    for name in data:
        train, test = (open_clips(replace(config, data=name), split) for split in SPLITS)
        known = set(train.ids)
        both = [video for video in test.ids if video in known]
        if both:
            raise DataError(
                f"{len(both)} of the {len(test)} test videos of {name} are training videos too, e.g. {both[0]}",
                "Put them into the folders train and test, or give a csv with a column split",
            )


def _measure(config: EvalConfig, run: Run, encoders: Sequence[ViewEncoder], data: str) -> Measured:
    """All protocols on one official split."""
    measured, short = Measured(), data.replace(":", "-")

    def opened(split: str) -> ClipSource:
        return carrying(config, run, open_clips(replace(config, data=data), split), [e.view for e in encoders])

    if set(config.protocols) - set(TRAINED_ON_VIDEO):
        parts = []
        for split in SPLITS:
            source = opened(split)
            parts.append(window_features(encoders, source, config, run))
            note_failures(run, source, parts[-1].failures)
        features = Features.of(*parts)
        if "retrieval" in config.protocols:
            retrieval(config, encoders, features, measured)
        if "linear" in config.protocols:
            linear(encoders, features, measured)
        if "linear-features" in config.protocols:
            linear_features(config, run, encoders, features, measured, f"linear-features-{short}")
    trainings = settings_of(config)
    if trainings:
        train, test = (opened(split) for split in SPLITS)
        trainer = ClipTrainer(config, run, (train, test), short)
        for setting in trainings:
            trainer.measure(setting, encoders, measured)
    return measured


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _note(run: Run, name: str, correct: Sequence[Tensor]) -> None:
    """The mean over the official splits, and its standard error from those of each."""
    error = math.sqrt(math.fsum(standard_error(right) ** 2 for right in correct)) / len(correct)
    value = _mean([float(right.mean()) for right in correct])
    run.report.metric(name, value, se=error, split="test", n=sum(len(right) for right in correct))


def _draw(run: Run, encoders: Sequence[ViewEncoder], chance: Mapping[str, float]) -> None:
    """`plots/retrieval.png`: R@K against K."""
    metrics = run.report.metrics
    series: dict[str, list[Point]] = {}
    for encoder in encoders:
        found = [(k, metrics.get(f"retrieval_r{k}_{encoder.key}")) for k in KS]
        series[encoder.view] = [(float(k), 100 * (m.value or 0.0), 100 * (m.se or 0.0)) for k, m in found if m]
    if not any(series.values()):
        return
    name = f"retrieval_r{{}}_{encoders[0].key}"
    series["a random order"] = [(float(k), 100 * chance[name.format(k)], 0.0) for k in KS]
    run.plot(
        "retrieval",
        curves,
        series,
        title="Test videos that find their class",
        xlabel="K nearest training videos",
        ylabel="R@K, %  (bars: SE)",
    )


def table(report: Report) -> Table:
    """A row for each view, and one for their mean."""
    about = report.technique
    keys = {row["key"]: row["view"] for row in about["views"]} | {TWO_STREAM: "mean of both"}
    kinds = dict.fromkeys(_kind(name, keys) for name in report.metrics)
    rows: list[tuple[Cell, ...]] = []
    for key, view in keys.items():
        found = [report.metrics.get(f"{kind}_{key}") for kind in kinds]
        if any(found):
            rows.append((view, *(f"{percent(m.value)} ± {percent(m.se)}" if m else None for m in found)))
    if about.get("chance"):
        first = about["views"][0]["key"]
        rows.append(("a random order", *(percent(about["chance"].get(f"{kind}_{first}")) for kind in kinds)))
    data = ", ".join(dict.fromkeys(row.name for row in report.data))
    columns = ("view", *(f"{kind.replace('retrieval_r', 'R@')} %" for kind in kinds))
    return Table(f"cpr-mine eval: {data}, test", columns, tuple(rows))


def _kind(name: str, keys: Mapping[str, str]) -> str:
    """A figure without the view that it is of."""
    return next((name.removesuffix(f"_{key}") for key in keys if name.endswith(f"_{key}")), name)
