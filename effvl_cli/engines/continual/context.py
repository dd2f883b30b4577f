"""What every phase of learning works with: options, network, tasks and their images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from torch import nn

from effvl_cli.config.continual_learn import TaskOptions
from effvl_cli.core.errors import UsageError
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.continual.accuracy import Accuracy
from effvl_cli.engines.continual.heads import fresh_head, head_path
from effvl_cli.engines.continual.task_images import TaskReader, TaskSplits
from effvl_cli.engines.continual.tasks import Task
from effvl_cli.models import network as networks
from effvl_cli.models.geometry import owned_of
from effvl_cli.models.network import Network

EMBEDDED_MODEL = "smallcnn"
PATCH_EMBEDDINGS = ("patch_embed.*", "conv_proj.*")
POSITIONS = ("pos_embed", "pos_embedding", "positional_embedding")
"""Last words of the names of position embeddings."""
HEAD = 2  # outputs of the head that no task keeps


@dataclass
class Job:
    """A task to be learned.

    Attributes:
        task: which.
        number: 1 for the first; its number as an owner of weights.
        config: options of the run with those of the task.
        reader: opens its images.
    """

    task: Task
    number: int
    config: TaskOptions
    reader: TaskReader

    @cached_property
    def data(self) -> TaskSplits:
        """Its images; read when they are first needed."""
        return self.reader.splits(self.task)

    @cached_property
    def test(self) -> Decoded:
        """Its test images, which stay."""
        return self.data.test

    def release(self) -> None:
        """Forget the images that it is learned from; they are read again when they are needed."""
        if "data" in self.__dict__:
            self.test  # noqa: B018 - is kept
            del self.__dict__["data"]

    @property
    def prefix(self) -> str:
        """Beginning of the names of its phases."""
        return f"{self.number:04d}-{self.task.name}"

    def described(self) -> dict[str, Any]:
        """What the report says of it before anything is learned."""
        data = self.data
        return {
            "name": self.task.name,
            "classes": list(data.classes),
            "n_train": len(data.train),
            "n_val": len(data.val),
            "n_test": len(data.test),
            "epochs_used": self.length,
            "flags": [],
        }

    @property
    def length(self) -> int:
        """Epochs in which it is learned."""
        assert self.config.epochs is not None  # filled in by the options
        return self.config.epochs


@dataclass
class Context:
    """One run of the job or of `add-task`.

    Attributes:
        config: options of the run.
        run: folder, device, report.
        network: the backbone as every task finds it, at width 1.
        keeps_individuals: whether later goals begin as individual networks of earlier tasks.
    """

    config: TaskOptions
    run: Run
    network: Network
    keeps_individuals: bool = False

    @cached_property
    def phases(self) -> Phases:
        """Results of the phases."""
        return Phases.of(self.run)

    @cached_property
    def accuracy(self) -> Accuracy:
        """How accuracies are measured."""
        return Accuracy(self.run, self.config.eval_batch_size)

    @cached_property
    def reader(self) -> TaskReader:
        """Opens the images of tasks."""
        return TaskReader(self.config, self.run, self.network.preprocess)

    @cached_property
    def shared(self) -> frozenset[str]:
        """Names of the weights that learned tasks share."""
        return frozenset(owned_of(self.network, self.excluded))

    @property
    def excluded(self) -> tuple[str, ...]:
        """Patterns of weights that are not shared."""
        embeddings = () if self.config.own_patch_embed else PATCH_EMBEDDINGS
        return (*self.config.exclude, *embeddings)

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Names of the tensors that only the first task trains: weights left out, and positions that came trained."""
        found = set(owned_of(self.network)) - self.shared
        if self.network.source != "random":
            found |= {name for name, _ in self.network.module.named_parameters() if name.endswith(POSITIONS)}
        return frozenset(found)

    @property
    def identity(self) -> list[Any]:
        """What the network is and begins with."""
        return [self.network.name, self.network.edits, self.network.weights_sha256]

    def job(self, task: Task, number: int) -> Job:
        """A task with its options.

        Raises:
            UsageError: it is not to be trained, and is not a first one that comes with weights.
        """
        job = Job(task, number, task.options(self.config), self.reader)
        if job.length == 0 and (number > 1 or self.config.weights in (None, "none")):
            raise UsageError(
                f"--epochs is 0 for task {task.name!r}", "Only a first task takes its network, from --weights, as it is"
            )
        return job

    def head(self, module: nn.Module, job: Job) -> nn.Linear:
        """What a task's head begins with: random weights, or those of --weights where it is not trained.

        Raises:
            DataError: --weights have another number of classes.
        """
        if job.length:
            return fresh_head(module, len(job.data.classes), self.config.seed, job.task.name)
        whole = _load(self.config, self.run, num_classes=len(job.data.classes))
        return cast("nn.Linear", whole.module.get_submodule(head_path(whole.module)))

    def measure(self, module: nn.Module, job: Job) -> dict[str, float]:
        """Accuracies of a network on the validation, test and training images of a task."""
        splits = {"val": job.data.val, "test": job.test, "train": job.data.train_images}
        return {name: self.accuracy.of(module, images) for name, images in splits.items()}

    @staticmethod
    def plateau(config: TaskOptions) -> Mapping[str, Any]:
        """What a course under --schedule plateau has besides its curve."""
        return {"plateau": config.plateau, "gamma": config.gamma} if config.schedule == "plateau" else {}


def open_context(config: TaskOptions, run: Run) -> Context:
    """Build the network, which is trained from scratch unless weights are given.

    Raises:
        ModelError: weights that do not fit.
        UsageError: an unknown network or a normalisation that is none.
    """
    network = _load(config, run, num_classes=None)
    run.report.model(network.name, network.source, network.module)
    keeps = config.goal in ("finetune-avg", "finetune-max")
    return Context(config, run, network, keeps)


def _load(config: TaskOptions, run: Run, *, num_classes: int | None) -> Network:
    """The network with its own head of so many classes, or with one that no task keeps."""
    options = replace(config, normalise=None) if config.normalise == "per-task" else config
    weights = "none" if config.weights is None else config.weights
    return networks.load(
        config.model,
        weights,
        default=EMBEDDED_MODEL,
        kind="classifier",
        seed=config.seed,
        num_classes=num_classes or HEAD,
        new_head=num_classes is None,
        options=options,
        log=run.log,
        warn=run.warn,
    )
