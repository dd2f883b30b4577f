"""Options of `effvl continual` and its verbs, each in a file of its own."""

from effvl_cli.config.continual_add_task import AddTaskConfig
from effvl_cli.config.continual_eval import EvalConfig, ExportConfig
from effvl_cli.config.continual_learn import ContinualConfig
from effvl_cli.config.continual_tasks import ListTasksConfig
from effvl_cli.config.continual_verify import InspectConfig, VerifyConfig

__all__ = [
    "AddTaskConfig",
    "ContinualConfig",
    "EvalConfig",
    "ExportConfig",
    "InspectConfig",
    "ListTasksConfig",
    "VerifyConfig",
]
