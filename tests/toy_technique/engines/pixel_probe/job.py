"""The whole job: choose pixels, train, measure beside all pixels, time, draw."""

from functools import partial

from effvl_cli.config.pixel_probe import PixelProbeConfig
from effvl_cli.techniques.pixel_probe.probe import PixelProbe, most_varied

from effvl_cli.core import bench, loop, optim, plots
from effvl_cli.core.chance import refuse_chance
from effvl_cli.core.metrics import standard_error, top_k
from effvl_cli.core.phases import Phases
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Table, percent
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import Batch, loader_workers
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.transforms import Preprocess
from effvl_cli.engines.common.batches import check_divides, in_memory
from effvl_cli.engines.common.classifier import ClassifierTask, cross_entropy, logits_of

PREPROCESS = Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3)


def run(config: PixelProbeConfig, run: Run) -> None:
    """Train on few pixels and on all of them; measure both on the test split."""
    check_divides(config.batch_size, "--batch-size")
    train, test = (_images(config, run, split) for split in ("train", "test"))
    phases, probes, accuracies = Phases(run), {}, {}
    for name, keep in (("few", config.keep), ("all", 1.0)):
        probes[name] = PixelProbe(most_varied(train.pixels, keep), len(train.source.classes)).to(run.device)
        phases.train(name, probes[name], partial(_fit, config, run, probes[name], train, name))
        right = top_k(logits_of(probes[name], test, run, batch_size=256, precision=config.precision), test.labels, 1)
        accuracies[name] = float(right.mean())
        run.report.metric(f"top1_{name}", accuracies[name], split="test", n=len(right), se=standard_error(right))
    about = {"images": "the test images", "force": config.force}
    refuse_chance(run, "the probe", accuracies["all"], len(train.source.classes), **about)
    noise = bench.noise(PREPROCESS.size, run.device)
    macs = len(probes["few"].kept) / len(probes["all"].kept)
    arms = [bench.Arm(k, lambda size, k=k: partial(probes[k], noise(size)), macs) for k in ("all", "few")]
    bench.record(run, bench.compare(arms, [1], run, precision=config.precision))
    bars = {"top-1": list(accuracies.values())}
    run.plot("accuracy", plots.paired_bars, list(accuracies), bars, title="Pixels kept", ylabel="test top-1")
    run.save_model(probes["few"].state_dict(), {"kind": "pixel-probe", "keep": config.keep})


def preview(config: PixelProbeConfig) -> list[Table]:
    """How many steps."""
    count = len(_images(config, unopened("pixel-probe", config), "train"))
    steps = config.epochs * (count // config.batch_size)
    return [Table("what it does", ("arm", "steps"), (("few", steps), ("all", steps)))]


def table(report: Report) -> Table:
    """Both arms."""
    rows = tuple((name, percent(figure.value), percent(figure.se, 2)) for name, figure in report.metrics.items())
    speed = bench.described(bench.rows_from(report.technique["bench"])[-1:])
    return Table("pixel-probe", ("arm", "top-1 %", "SE"), rows, (f"few pixels: {speed}",))


def _images(config: PixelProbeConfig, run: Run, split: str) -> Decoded:
    source = load(config.data, split, root=config.data_root, seed=0)
    workers = loader_workers(config.workers, run.device.type)
    found = Decoded.read(source, PREPROCESS, workers=workers, on_bad=config.on_bad)
    run.report.data(source, num_samples=len(found), bad_files=found.bad_files)
    return found


def _fit(config: PixelProbeConfig, run: Run, probe: PixelProbe, train: Decoded, phase: str) -> loop.FitResult:
    sampler = EpochSampler(len(train), config.batch_size, config.seed)
    steps = config.epochs * sampler.steps_per_epoch
    task = ClassifierTask(probe, PREPROCESS, run, loss=cross_entropy(), validate=lambda module: {})
    batches = in_memory(sampler, lambda rows: Batch(train[rows], train.labels[rows], rows))
    plan = loop.Plan(
        steps=steps,
        rate=lambda step: optim.cosine(step, steps),
        phase=phase,
        precision=config.precision,
        save_every=config.save_every,
        log_every=config.log_every,
    )
    return loop.fit(task, optim.build(probe, "sgd", lr=config.lr, weight_decay=0.0), batches, run, plan)
