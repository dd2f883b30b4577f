"""Schedules of compressions: the default, those of the options, and how they are written."""

import re
from pathlib import Path
from typing import Any

from effvl_cli.config.methods import METHODS
from effvl_cli.config.pretrain import PretrainConfig
from effvl_cli.config.resolve import read_yaml
from effvl_cli.core.errors import UsageError
from effvl_cli.techniques.pretrain.schedule import Compression, Schedule, Stage, schedule_from
from effvl_cli.techniques.pretrain.vit import ViTShape

_WRITTEN = re.compile(r"(constant|[0-9.]+):")
_WORDS = {"patch": "patch", "keep": "keep_q", "keep-k": "keep_k"}


def key_keep(method: str, keep: float) -> float:
    """Keep rate of the key view: SimCLR's has gradient and is compressed too; a teacher's is whole."""
    return keep if METHODS[method].compresses_keys else 1.0


def unsaid_key_keep(method: str) -> float | None:
    """Keep rate of the key view where a stage does not say: None, that of the query view, or 1."""
    return None if METHODS[method].compresses_keys else 1.0


def default_schedule(method: str, shape: ViTShape) -> Schedule:
    """A quarter of the patches until t = 0.8, then all of them: it fits every ViT."""
    early = Compression(shape.patch, 0.25, key_keep(method, 0.25))
    return Schedule((Stage(0.8, early), Stage(1.0, Compression(shape.patch))))


def build_schedule(config: PretrainConfig, shape: ViTShape) -> tuple[Schedule, str]:
    """The schedule that the options ask for, and where it is from.

    Raises:
        UsageError: a schedule that cannot be read, or whose patches do not fit.
    """
    if config.keep is not None or config.patch is not None:
        keep = config.keep or 1.0
        return Schedule.constant(
            Compression(config.patch or shape.patch, keep, key_keep(config.method, keep))
        ), "options"
    if config.schedule is None:
        return default_schedule(config.method, shape), "default"
    return parse_schedule(config.schedule, config.method, shape), config.schedule


def parse_schedule(text: str, method: str, shape: ViTShape) -> Schedule:
    """`none`, `constant:patch=P,keep=R`, stages such as `0.3:patch=8,keep=0.5;1:keep=1`, or a YAML file.

    Raises:
        UsageError: it cannot be read.
    """
    if text == "none":
        return Schedule.constant(Compression(shape.patch))
    written = _WRITTEN.match(text)
    if not written and not Path(text).is_file():
        raise UsageError(f"--schedule {text}: no such file", "Give none, constant:patch=P,keep=R or a YAML file")
    try:
        data = {"stages": _stages(text, shape)} if written else read_yaml(Path(text))
        return schedule_from(data, default_keep_k=unsaid_key_keep(method))
    except ValueError as error:
        raise UsageError(f"--schedule {text}: {error}") from error


def _stages(text: str, shape: ViTShape) -> list[dict[str, Any]]:
    """Rows of a schedule written on the command line; a stage without a patch has the base one."""
    rows = []
    for index, part in enumerate(text.split(";")):
        until, _, words = part.partition(":")
        row: dict[str, Any] = {"until": "1" if until == "constant" else until, "patch": shape.patch}
        for word in filter(None, words.split(",")):
            key, _, value = word.partition("=")
            if key not in _WORDS or not value:
                raise ValueError(f"stage {index}: cannot read {word!r}; write e.g. patch=8,keep=0.5,keep-k=1")
            row[_WORDS[key]] = value
        rows.append(row)
    return rows
