"""Options of `effvl detect` and its verbs, each in a file of its own."""

from effvl_cli.config.detect_bench import BenchConfig
from effvl_cli.config.detect_convert import ConvertConfig
from effvl_cli.config.detect_dedup import DedupConfig
from effvl_cli.config.detect_eval import EvalConfig
from effvl_cli.config.detect_export import ExportConfig
from effvl_cli.config.detect_predict import PredictConfig
from effvl_cli.config.detect_tag import TagConfig
from effvl_cli.config.detect_train import DetectConfig, TrainConfig

__all__ = [
    "BenchConfig",
    "ConvertConfig",
    "DedupConfig",
    "DetectConfig",
    "EvalConfig",
    "ExportConfig",
    "PredictConfig",
    "TagConfig",
    "TrainConfig",
]
