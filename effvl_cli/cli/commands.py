"""Every command and verb, as data; a technique adds one block of rows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A job (`verb` empty) or one of its verbs.

    Attributes:
        name: the technique.
        verb: the part of the job, or "".
        config: "module:Class" of its options.
        engine: module with `run(config, run)` and `table(report)`, `preview(config)` for `--dry-run` (tables of what
            a run will do and cost), `refuse_first(config)` for what can be refused before there is a run folder, and
            `refuse(config, folder, fresh)` where an earlier run's folder may have to stay.
        summary: one line for help.
    """

    name: str
    verb: str
    config: str
    engine: str
    summary: str

    @property
    def title(self) -> str:
        """As typed after `effvl`."""
        return f"{self.name} {self.verb}".strip()


def rows_of(name: str, rows: tuple[tuple[str, str, str], ...]) -> tuple[Command, ...]:
    """Rows of a technique, from (verb, class of its options in `config/NAME.py`, one line for help)."""
    module = name.replace("-", "_")
    engines = f"effvl_cli.engines.{module}"
    return tuple(
        Command(name, verb, f"effvl_cli.config.{module}:{cls}", f"{engines}.{verb.replace('-', '_') or 'job'}", summary)
        for verb, cls, summary in rows
    )


COMMANDS = (
    *rows_of(
        "pretrain",
        (
            ("", "PretrainConfig", "Train a network from scratch: on images alone (accelerated), captions or labels."),
            ("search", "SearchConfig", "Measure gradient errors along a training, and write a schedule."),
            ("eval", "EvalConfig", "Evaluate the features of RUN by k-NN and linear probes, also on other data."),
        ),
    ),
    *rows_of(
        "prune-tokens",
        (
            ("", "PruneTokensConfig", "Patch Ranking: drop the patches that CLIP's image tower does not need."),
            ("rank", "RankConfig", "Search golden rankings of the training images; needs no RUN."),
            ("predict", "PredictConfig", "Train a predictor on the rankings of RUN."),
            ("tune", "TuneConfig", "Tune prompts while the predictor of RUN prunes."),
            ("eval", "EvalConfig", "Measure the accuracy of selectors at keep rates with RUN's predictor and prompts."),
            ("bench", "BenchConfig", "Time RUN's pruned tower against the dense one."),
            ("export", "ExportConfig", "Export RUN's pruned tower: state, torch.export, ONNX."),
            ("viz", "VizConfig", "Draw kept and dropped patches, with RUN's predictor."),
        ),
    ),
    *rows_of(
        "prune-blocks",
        (
            ("", "PruneBlocksConfig", "Direct block removal: drop the residual blocks that a network misses least."),
            ("score", "ScoreConfig", "Score every block of RUN's network, or of --weights; remove nothing."),
            ("apply", "ApplyConfig", "Remove the named blocks of RUN's network, or of --weights; fine-tune."),
            ("bench", "BenchConfig", "Time RUN's network against the original, in torch and onnxruntime."),
            ("export", "ExportConfig", "Export RUN's network for use without effvl: ONNX, torch.export, rebuild.py."),
        ),
    ),
    *rows_of(
        "prompt-tune",
        (
            ("", "PromptTuneConfig", "Few-shot prompt tuning of a CLIP under label noise, beside its alternatives."),
            ("eval", "EvalConfig", "Measure RUN's methods on other data or with other class names; average runs."),
            ("suspects", "SuspectsConfig", "Rank training images by how wrong their labels look; needs no RUN."),
            ("export", "ExportConfig", "Export RUN's methods as class weights for open_clip."),
        ),
    ),
    *rows_of(
        "cpr-mine",
        (
            ("", "CprMineConfig", "Cascade positive retrieval: train encoders of videos with positives of many views."),
            ("train", "TrainConfig", "Train the encoder of one view with positives that RUN's frozen encoders mine."),
            ("mine", "MineConfig", "Mine positives of saved embeddings by a cascade over their views; any encoder's."),
            ("embed", "EmbedConfig", "Write what RUN's encoders make of the clips of a data set, for `mine`."),
            ("eval", "EvalConfig", "Measure RUN's encoders: retrieval, linear probes, fine-tuning; on any data."),
            ("probe", "ProbeConfig", "Scan the videos of a data set once; which cannot be used, and why."),
            ("bench", "BenchConfig", "Time mining on this machine, beside faiss where it is installed."),
        ),
    ),
    *rows_of(
        "continual",
        (
            ("", "ContinualConfig", "Learn task after task in one network and forget none: compact, pick, grow."),
            ("add-task", "AddTaskConfig", "Learn one more task on top of RUN's, without the data of those."),
            ("eval", "EvalConfig", "Measure RUN's tasks on their test images, or one of them on other images."),
            ("export", "ExportConfig", "Export the network of one of RUN's tasks for use without effvl."),
            ("verify", "VerifyConfig", "Prove that RUN's tasks are, bit for bit, what they were when committed."),
            ("inspect", "InspectConfig", "List what RUN's tasks own, pick and take on disk, and what is free."),
            (
                "list-tasks",
                "ListTasksConfig",
                "Divide a data set into tasks, as a list for --tasks FILE; needs no RUN.",
            ),
        ),
    ),
    *rows_of(
        "detect",
        (
            ("", "DetectConfig", "Detect objects on roads by day and night: one stage against a cascade, measured."),
            ("train", "TrainConfig", "Train one detector, RUN's further or a new one, and measure it."),
            ("eval", "EvalConfig", "Measure RUN's detector, an exported one or any program's detections."),
            ("predict", "PredictConfig", "Detect objects in images and videos with RUN's detector, and draw them."),
            ("tag", "TagConfig", "Tell day from night, by metadata, names or pixels; needs no RUN."),
            ("dedup", "DedupConfig", "Leave out near-duplicates, and find images that splits share; needs no RUN."),
            ("export", "ExportConfig", "Write RUN's detector as ONNX, and compare what it finds."),
            ("bench", "BenchConfig", "Time RUN's detector, part by part, and in onnxruntime."),
            ("convert", "ConvertConfig", "Check annotations of boxes, and write them as COCO or YOLO; needs no RUN."),
        ),
    ),
)


def names() -> list[str]:
    """Techniques, in the order of the table."""
    return list(dict.fromkeys(command.name for command in COMMANDS))


def of(name: str) -> dict[str, Command]:
    """Job and verbs of a technique, by verb."""
    return {command.verb: command for command in COMMANDS if command.name == name}
