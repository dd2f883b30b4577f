"""Linear probes and fine-tuning on clips: training on random clips, tests on all windows and crops."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.config.cpr_mine_eval import EvalConfig
from effvl_cli.core import distributed, loop, seeds
from effvl_cli.core.checkpoint import STEPS, StepFolders
from effvl_cli.core.errors import DataError
from effvl_cli.core.modes import as_found
from effvl_cli.core.optim import Optimizers, RateCurve
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from effvl_cli.data.clip_sampling import train_start
from effvl_cli.data.clip_tuning import TuneAugment
from effvl_cli.data.clips import ClipSource
from effvl_cli.data.loader import Make, SampleLoader, loader_workers
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.engines.common.batches import check_divides
from effvl_cli.engines.cpr_mine.protocols import Measured, note_classes
from effvl_cli.engines.cpr_mine.view_encoders import ViewEncoder
from effvl_cli.engines.cpr_mine.window_features import WindowsOf, over_windows, windows_asked
from effvl_cli.engines.cpr_mine.window_stream import Failures, Geometry, Window, read_window, windows_of
from effvl_cli.techniques.cpr_mine.evaluation_heads import ClipClassifier, mean_rows

AREA = 0.2  # least share of a frame that a random crop keeps
EVALUATIONS = 20
MOMENTUM = 0.9


@dataclass(frozen=True)
class Setting:
    """How a classifier is trained.

    Attributes:
        name: of the protocol.
        frozen: whether the backbone stays as it is.
        epochs: over the training videos.
        batch_size: clips of a step, over all processes.
        decay: of the rates.
        held_out: share of the training videos that choose the best epoch.
    """

    name: str
    frozen: bool
    epochs: int
    batch_size: int
    decay: RateCurve
    held_out: float = 0.0


def settings_of(config: EvalConfig) -> list[Setting]:
    """The trainings that the protocols ask for."""
    found = []
    if "linear-video" in config.protocols:
        decay = RateCurve("step", milestones=(0.6, 0.8))
        found.append(Setting("linear-video", True, config.linear_epochs, config.linear_batch_size, decay))
    if "finetune" in config.protocols:
        decay = RateCurve("step", milestones=(0.8, 0.9))
        size, held_out = config.finetune_batch_size, config.finetune_held_out
        found.append(Setting("finetune", False, config.finetune_epochs, size, decay, held_out))
    return found


@dataclass(frozen=True)
class TrainVideos:
    """Training videos that can be used, with known labels.

    Attributes:
        source: the split.
        indices: (V,) positions in it.
        lengths: frames of each.
        labels: (V,).
    """

    source: ClipSource
    indices: Tensor
    lengths: tuple[int, ...]
    labels: Tensor

    def take(self, rows: Tensor) -> "TrainVideos":
        """Some of them."""
        lengths = tuple(self.lengths[row] for row in rows.tolist())
        return TrainVideos(self.source, self.indices[rows], lengths, self.labels[rows])


def train_videos(source: ClipSource, geometry: Geometry, on_bad: str) -> tuple[TrainVideos, Failures]:
    """The videos of a split that are long enough and labelled.

    Raises:
        DataError: unreadable ones, or none left.
    """
    failures = Failures(on_bad, len(source))
    windows = windows_of(source, geometry, failures, center=True, step=None)
    kept = [window for window in windows if source.labels[window.index] >= 0]
    if not kept:
        raise DataError(f"no video of {source.name} {source.split} has a label and enough frames", "Give other --data")
    indices = torch.tensor([window.index for window in kept])
    labels = torch.from_numpy(source.labels)[indices]
    return TrainVideos(source, indices, tuple(window.length for window in kept), labels), failures


class RandomClips:
    """`make` of the loader: an augmented random clip of a training video, in one view.

    Args:
        videos: that are trained on.
        encoder: whose view.
        augment: crops and the like.
    """

    def __init__(self, videos: TrainVideos, encoder: ViewEncoder, augment: TuneAugment) -> None:
        self.videos, self.augment = videos, augment
        self.make, self.geometry, self.frames = encoder.make, encoder.geometry, encoder.clips.frames

    def __call__(self, row: int, epoch: int) -> Tensor:
        """(C, T, size, size) float16: what is sent between processes stays small.

        Raises:
            DataError: unreadable.
        """
        length = self.videos.lengths[row]
        start = train_start(length, self.geometry.frames, self.geometry.stride, torch.default_generator)
        window = Window(int(self.videos.indices[row]), start, length)
        frames = read_window(self.videos.source, window, self.geometry)
        return self.augment(self.make(frames[None])[0, :, : self.frames]).half()


@dataclass(frozen=True)
class LabelledClips:
    """B clips (B, C, T, size, size), and their labels."""

    clips: Tensor
    labels: Tensor
    indices: Tensor


class ClassifierTask(loop.Task):
    """Cross entropy on clips; top-1 of held-out videos."""

    def __init__(self, module: ClipClassifier, device: torch.device, validate: Callable[[], dict[str, float]]) -> None:
        self.module, self.device, self.validate = module, device, validate

    def train_step(self, batch: LabelledClips, step: int) -> loop.StepOutput:
        """Mean loss of one process's clips."""
        labels = batch.labels.to(self.device)
        logits = self.module(batch.clips.to(self.device, non_blocking=True).float()).float()
        logs = {"top1_train": (logits.detach().argmax(1) == labels).float().mean()}
        return loop.StepOutput(F.cross_entropy(logits, labels), logs)

    def evaluate(self) -> dict[str, float]:
        """On held-out videos, if there are any."""
        return self.validate()


class ClipTrainer:
    """Trains and tests classifiers on one official split.

    Args:
        config: options.
        run: of the command.
        sources: training and test videos.
        short: name of the split, in names of phases.
    """

    def __init__(self, config: EvalConfig, run: Run, sources: tuple[ClipSource, ClipSource], short: str) -> None:
        self.config, self.run, self.sources, self.short = config, run, sources, short
        self.num_classes = len(sources[0].classes) or int(max(source.labels.max() for source in sources)) + 1

    def measure(self, setting: Setting, encoders: Sequence[ViewEncoder], measured: Measured) -> None:
        """One classifier for each view; several views are averaged too."""
        known = torch.from_numpy(self.sources[1].labels)
        last: dict[str, Tensor] = {}
        best: dict[str, Tensor] = {}
        rows: Tensor | None = None
        for encoder in encoders:
            states, module = self._trained(setting, encoder)
            for kind, state in states.items():
                module.load_state_dict(state)
                found, rows = self._test(encoder, module)
                (last if kind == "last" else best)[encoder.key] = found
        assert rows is not None
        name = setting.name.replace("-", "_")
        note_classes(name, last, known[rows], measured)
        if best:
            note_classes(f"{name}_best", best, known[rows], measured)

    def _trained(
        self, setting: Setting, encoder: ViewEncoder
    ) -> tuple[Mapping[str, dict[str, Tensor]], ClipClassifier]:
        """Weights after the last epoch, and after the best one where videos were held out."""
        config, run = self.config, self.run
        videos, failures = train_videos(self.sources[0], encoder.geometry, config.on_bad)
        run.report.data(self.sources[0], num_samples=len(videos.labels), bad_files=len(failures.bad.bad))
        held_out, videos = _divided(videos, setting.held_out, config.seed)
        with seeds.global_stream(config.seed, "classifier"):
            width = encoder.network.module.feature_size
            dropout = config.finetune_dropout
            backbone = encoder.copied_backbone()
            module = ClipClassifier(backbone, width, self.num_classes, frozen=setting.frozen, dropout=dropout)
        module.to(run.device)
        phase = f"{setting.name}-{self.short}-{encoder.key}"
        size = min(setting.batch_size, len(videos.labels))
        check_divides(size, "--linear-batch-size" if setting.frozen else "--finetune-batch-size", least=2)
        sampler = EpochSampler(len(videos.labels), size, config.seed)
        steps = setting.epochs * sampler.steps_per_epoch
        period = config.eval_every or max(1, setting.epochs // EVALUATIONS)
        validate = partial(self._validate, encoder, module, held_out) if held_out is not None else dict
        plan = loop.Plan(
            steps=steps,
            rate=lambda step: setting.decay(step / steps),
            phase=phase,
            precision=config.precision,
            eval_every=period * sampler.steps_per_epoch if held_out is not None else 0,
            save_every=config.save_every,
            log_every=config.log_every,
            best="top1_val" if held_out is not None else None,
        )
        task = ClassifierTask(module, run.device, validate)
        stream = self._stream(setting, encoder, videos, sampler)
        optimizers = self._optimizers(setting, module)
        fitted = Phases.of(run).train(phase, module, lambda: loop.fit(task, optimizers, stream, run, plan))
        states = {"last": {key: value.clone() for key, value in module.state_dict().items()}}
        if held_out is not None:
            folders = StepFolders(run.path(STEPS) / phase)
            states = {"best": states["last"], "last": folders.load(fitted.steps).model}
        return states, module

    def _optimizers(self, setting: Setting, module: ClipClassifier) -> Optimizers:
        config = self.config
        if setting.frozen:
            decay = config.linear_weight_decay
            head = torch.optim.SGD(module.head.parameters(), lr=config.linear_lr, momentum=MOMENTUM, weight_decay=decay)
            return Optimizers([head])
        groups = [
            {"params": list(module.head.parameters()), "lr": config.finetune_lr},
            {"params": list(module.backbone.parameters()), "lr": config.finetune_backbone_lr},
        ]
        return Optimizers([torch.optim.Adam(groups, lr=config.finetune_lr, weight_decay=config.finetune_weight_decay)])

    def _stream(
        self, setting: Setting, encoder: ViewEncoder, videos: TrainVideos, sampler: EpochSampler
    ) -> Callable[[int], Iterator[LabelledClips]]:
        config, clips = self.config, encoder.clips
        area = None if clips.crop == clips.size else AREA
        make = RandomClips(videos, encoder, TuneAugment(clips.size, area, bool(config.flip), encoder.is_flow))

        def make_at(step: int) -> Make[Tensor]:
            return make

        loader: SampleLoader[Tensor, Tensor] = SampleLoader(
            make_at,
            lambda found: torch.stack(list(found)),
            len(videos.labels),
            seed=config.seed,
            workers=loader_workers(config.workers, self.run.device.type),
            on_bad=config.on_bad,
        )
        world = distributed.world()

        def batches(start: int) -> Iterator[LabelledClips]:
            for found, rows in loader.endless(sampler, start_step=start, rank=world.rank, world=world.size):
                yield LabelledClips(found, videos.labels[rows], videos.indices[rows])

        return batches

    def _validate(self, encoder: ViewEncoder, module: ClipClassifier, videos: TrainVideos) -> dict[str, float]:
        """Top-1 on the middle clips of held-out videos."""
        geometry = encoder.geometry
        windows = [
            Window(index, geometry.starts(length, center=True, step=None)[0], length)
            for index, length in zip(videos.indices.tolist(), videos.lengths, strict=True)
        ]
        asked = WindowsOf(videos.source, windows, geometry, Failures(self.config.on_bad, len(windows)))
        found = self._probabilities(encoder, module, asked, crops="center")
        return {"top1_val": float((found.argmax(1) == videos.labels).float().mean())}

    def _test(self, encoder: ViewEncoder, module: ClipClassifier) -> tuple[Tensor, Tensor]:
        """Probabilities (V, C) of the labelled test videos that can be used, and their numbers (V,)."""
        source = self.sources[1]
        asked = windows_asked([encoder], source, self.config)
        found = self._probabilities(encoder, module, asked, crops=self.config.crops or "ten")
        good = [k for k, window in enumerate(asked.windows) if self._usable(asked, window)]
        numbers = torch.tensor([asked.windows[k].index for k in good])
        videos, counts = numbers.unique_consecutive(return_counts=True)
        self.run.report.data(source, num_samples=len(videos), bad_files=len(asked.failures.bad.bad))
        return mean_rows(found[good], counts.tolist()), videos

    @staticmethod
    def _usable(asked: WindowsOf, window: Window) -> bool:
        return window.index not in asked.failures.errors and asked.source.labels[window.index] >= 0

    def _probabilities(self, encoder: ViewEncoder, module: ClipClassifier, asked: WindowsOf, *, crops: str) -> Tensor:
        """Probabilities (R, C) of windows, the mean over their crops."""
        seed = self.config.seed if self.config.official_jitter else None

        def make(frames: Tensor, windows: Sequence[Window]) -> Tensor:
            with torch.inference_mode():
                clips = encoder.test_clips(frames, windows, crops, seed)  # type: ignore[arg-type]
                return torch.stack([module(crop).float().softmax(1) for crop in clips]).mean(0)

        with as_found(module, training=False):
            found = over_windows({encoder.view: (make, self.num_classes)}, asked, self.config, self.run)
        return found[encoder.view]


def _divided(videos: TrainVideos, share: float, seed: int) -> tuple[TrainVideos | None, TrainVideos]:
    """Held-out videos, if any, and the others."""
    count = round(share * len(videos.labels))
    if not count:
        return None, videos
    order = torch.randperm(len(videos.labels), generator=seeds.generator(seed, "held-out"))
    return videos.take(order[:count].sort().values), videos.take(order[count:].sort().values)
