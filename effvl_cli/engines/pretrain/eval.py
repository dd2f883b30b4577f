"""Evaluates the features of a trained backbone, also on data other than its training data."""

from pathlib import Path
from typing import Any

from torch import Tensor

from effvl_cli.config.pretrain import EvalConfig
from effvl_cli.core.devices import resolve_device
from effvl_cli.core.errors import DataError, ModelError
from effvl_cli.core.find_run import find_run
from effvl_cli.core.metrics import standard_error
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table, percent
from effvl_cli.engines.pretrain.images import open_split
from effvl_cli.engines.pretrain.preview import features_table
from effvl_cli.engines.pretrain.probes import Probe, decode
from effvl_cli.engines.pretrain.saved_features import save_features
from effvl_cli.engines.pretrain.sgd_probe import sgd_probe
from effvl_cli.models import network as networks
from effvl_cli.techniques.pretrain.vit import VisionTransformer


def preview(config: EvalConfig) -> list[Table]:
    """What `--dry-run` shows besides the options."""
    network = _load(config, find_run("pretrain", config.run))
    network.module.to(resolve_device(config.device))
    return [features_table(network, config)]


def run(config: EvalConfig, run: Run) -> None:
    """Run k-NN, logistic regression and, on request, a linear probe by SGD, each once on the test split."""
    folder = find_run("pretrain", config.run)
    network = _load(config, folder)
    run.report.model(network.name, network.source, network.module)
    network.module.to(run.device).eval()
    module: Any = network.image_module
    if config.cls_blocks > 1 and not isinstance(module, VisionTransformer):
        raise ModelError(f"--cls-blocks {config.cls_blocks} needs a ViT, not {network.name}", "Leave it out")

    def encode(images: Tensor) -> Tensor:
        found: Tensor = module.last_cls(images, config.cls_blocks) if config.cls_blocks > 1 else module(images)
        return found

    train = open_split(config, "train")
    if not train.classes:
        raise DataError(f"{config.data} has no classes to evaluate features with", "Give --data with classes")
    bank = decode(config, run, train, network.preprocess, config.num_bank)
    probe = Probe.open(config, run, network.preprocess, "test", bank=bank)
    run.report.data(train, num_samples=len(bank.labels))
    run.report.data(open_split(config, "test"), num_samples=len(probe.asked.labels))
    if config.save_features:
        save_features(config, run, network, encode)
    judged = probe.judge(encode)
    for name, found in judged.correct.items():
        _metric(run, name, found)
    for name, found in probe.judge_pixels().correct.items():
        _metric(run, f"{name}_raw_pixels", found)
    if config.sgd_epochs:
        validation = Probe.open(config, run, network.preprocess, "val", bank=bank)
        found, rate = sgd_probe(config, run, network, encode, train, validation, probe)
        _metric(run, "linear_sgd", found)
        run.report.technique["sgd_lr"] = rate
    run.report.technique.update(
        method=network.manifest.get("method"), trained_on=network.manifest.get("data"), run=Path(folder).name
    )


def _load(config: EvalConfig, folder: Path) -> networks.Network:
    """The backbone that a run trained, or its CLIP, whose image tower is evaluated."""
    kind = "clip" if networks.manifest_of(str(folder)).get("method") == "clip" else "backbone"
    return networks.load(None, str(folder), default="", kind=kind, seed=config.seed)


def _metric(run: Run, name: str, correct: Any) -> None:
    run.report.metric(name, float(correct.mean()), split="test", n=len(correct), se=standard_error(correct))


def table(report: Report) -> Table:
    """Test figures."""
    rows = tuple((name, percent(m.value), percent(m.se, 2), m.n) for name, m in report.metrics.items())
    data = report.data[0].name if report.data else ""
    title = (
        f"features of {report.model.name if report.model else ''}, trained on {report.technique['trained_on']}: {data}"
    )
    return Table(title, ("figure", "test %", "± SE", "n"), rows)
