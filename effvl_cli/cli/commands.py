"""Every command and verb, as data; a technique adds one block of rows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A job (`verb` empty) or one of its verbs.

    Attributes:
        name: the technique.
        verb: the part of the job, or "".
        config: "module:Class" of its options.
        engine: module with `run(config, run)` and `table(report)`, and `preview(config)` for `--dry-run`: tables
            of what a run will do and cost.
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
    """The block of a technique: verb, class of its options in `config/NAME.py`, one line for help."""
    module = name.replace("-", "_")
    return tuple(
        Command(name, verb, f"effvl_cli.config.{module}:{cls}", f"effvl_cli.engines.{module}.{verb or 'job'}", summary)
        for verb, cls, summary in rows
    )


COMMANDS = (
    *rows_of(
        "pretrain",
        (
            ("", "PretrainConfig", "Train a network from scratch: from images alone (accelerated), texts or labels."),
            ("search", "SearchConfig", "Measure gradient errors along RUN or a pilot, and write a schedule."),
            ("eval", "EvalConfig", "Judge the features of RUN by neighbours and linear probes, also on other data."),
        ),
    ),
    *rows_of(
        "prune-tokens",
        (
            ("", "PruneTokensConfig", "Patch Ranking: drop the patches that CLIP's image tower does not need."),
            ("rank", "RankConfig", "Search golden rankings of the training images; needs no RUN."),
            ("predict", "PredictConfig", "Train a predictor on the rankings of RUN."),
            ("tune", "TuneConfig", "Tune prompts with the predictor of RUN pruning."),
            ("eval", "EvalConfig", "Accuracy of selectors at keep rates, with RUN's predictor and prompts."),
            ("bench", "BenchConfig", "Time of RUN's pruned tower beside the dense one."),
            ("export", "ExportConfig", "RUN's pruned tower for use elsewhere: state, torch.export, ONNX."),
            ("viz", "VizConfig", "Pictures of kept and dropped patches, with RUN's predictor."),
        ),
    ),
    *rows_of(
        "prune-blocks",
        (
            ("", "PruneBlocksConfig", "Direct block removal: drop the residual blocks that a network misses least."),
            ("score", "ScoreConfig", "Importance of every block of RUN's network, or of --weights; removes nothing."),
            ("apply", "ApplyConfig", "Remove the named blocks of RUN's network, or of --weights; fine-tune."),
            ("bench", "BenchConfig", "Latency of RUN's network beside the original, in torch and onnxruntime."),
            ("export", "ExportConfig", "RUN's network for use without effvl: ONNX, torch.export, rebuild.py."),
        ),
    ),
)


def names() -> list[str]:
    """Techniques, in the order of the table."""
    return list(dict.fromkeys(command.name for command in COMMANDS))


def of(name: str) -> dict[str, Command]:
    """Job and verbs of a technique, by verb."""
    return {command.verb: command for command in COMMANDS if command.name == name}
