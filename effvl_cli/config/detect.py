"""Options of `effvl detect` and its verbs, each in a file of its own."""

from effvl_cli.config.detect_eval import EvalConfig
from effvl_cli.config.detect_train import DetectConfig, TrainConfig

__all__ = ["DetectConfig", "EvalConfig", "TrainConfig"]
