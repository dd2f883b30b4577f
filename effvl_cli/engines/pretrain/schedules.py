"""Schedules of compressions: the default, those of the options, and how they are written."""

import itertools
from collections.abc import Mapping
from pathlib import Path

from effvl_cli.config.methods import METHODS
from effvl_cli.config.pretrain import PretrainConfig, SearchConfig
from effvl_cli.config.recipe_file import read_yaml
from effvl_cli.core.errors import UsageError
from effvl_cli.core.files import file_or_folder
from effvl_cli.techniques.pretrain.schedule import (
    Compression,
    Schedule,
    Stage,
    default_schedule,
    is_written,
    schedule_from,
    stages_from,
)
from effvl_cli.techniques.pretrain.step_cost import Costs
from effvl_cli.techniques.pretrain.vit import ViTShape

MIXED = "mixed"


def key_keep(method: str, keep: float) -> float:
    """Keep rate of the key view: SimCLR's has a gradient and is compressed too; a teacher's is whole."""
    return keep if METHODS[method].compresses_keys else 1.0


def unsaid_key_keep(method: str) -> float | None:
    """Keep rate of the key view where a stage does not give one; None: that of the query view."""
    return None if METHODS[method].compresses_keys else 1.0


def build_schedule(config: PretrainConfig, shape: ViTShape) -> tuple[Schedule, str]:
    """The schedule that the options ask for, and its origin.

    Raises:
        UsageError: a schedule that cannot be read, or whose patches do not fit.
    """
    if config.keep is not None or config.patch is not None:
        keep = config.keep or 1.0
        return Schedule.constant(
            Compression(config.patch or shape.patch, keep, key_keep(config.method, keep))
        ), "options"
    if config.schedule is None:
        return default_schedule(shape.patch, key_keep(config.method, 0.25)), "default"
    return parse_schedule(config.schedule, config.method, shape), config.schedule


def pilot_schedule(
    config: SearchConfig, costs: Costs, candidates: Mapping[str, Compression], budget: float
) -> Schedule:
    """What the pilot of a search trains with; `mixed`: every candidate in turn, one step each.

    A network that has never seen a compression shows a larger bias for it than one that has.

    Raises:
        UsageError: it cannot be read.
    """
    if config.pilot_schedule != MIXED:
        return parse_schedule(config.pilot_schedule, config.method, costs.shape)
    stages, spent = [], 0.0
    for step, compression in enumerate(itertools.cycle(candidates.values()), start=1):
        stages.append(Stage(float(step), compression))
        spent += config.batch_size * costs.sample(compression)
        if spent >= budget:
            return Schedule(tuple(stages), "steps")
    raise AssertionError("a cycle does not end")


def parse_schedule(text: str, method: str, shape: ViTShape) -> Schedule:
    """`none`, `constant:patch=P,keep=R`, stages such as `0.3:patch=8,keep=0.5;1:keep=1`, or a YAML file.

    Raises:
        UsageError: it cannot be read.
    """
    if text == "none":
        return Schedule.constant(Compression(shape.patch))
    written = is_written(text)
    if not written and file_or_folder(text) != "file":
        shown = text if len(text) <= 200 else f"{text[:100]}... ({len(text)} characters)"
        raise UsageError(f"--schedule {shown}: no such file", "Give none, constant:patch=P,keep=R or a YAML file")
    try:
        data = {"stages": stages_from(text, patch=shape.patch)} if written else read_yaml(Path(text))
        return schedule_from(data, default_keep_k=unsaid_key_keep(method), patch=shape.patch)
    except ValueError as error:
        raise UsageError(f"--schedule {text}: {error}") from error
