"""Options of `effvl cpr-mine` and its verbs, each in a file of its own."""

from effvl_cli.config.cpr_mine_bench import BenchConfig
from effvl_cli.config.cpr_mine_eval import EmbedConfig, EvalConfig
from effvl_cli.config.cpr_mine_mine import MineConfig
from effvl_cli.config.cpr_mine_probe import ProbeConfig
from effvl_cli.config.cpr_mine_train import CprMineConfig, TrainConfig

__all__ = ["BenchConfig", "CprMineConfig", "EmbedConfig", "EvalConfig", "MineConfig", "ProbeConfig", "TrainConfig"]
