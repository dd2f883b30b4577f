"""Typer callbacks built from option dataclasses: the dataclass is the only place where an option is described."""

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from effvl_cli.config.resolve import Invocation
from effvl_cli.config.schema import Option, options, written

INVOCATION = {
    "recipe": "YAML file with options (flags win over it)",
    "dry_run": "print the resolved options and where each is from, and stop",
    "fresh": "start anew in a run folder that is there already",
    "quiet": "no progress and no log on the terminal",
    "json": "print the report as one line of JSON",
    "debug": "tracebacks instead of one-line errors",
}
PANEL = "Invocation"


def config_class(target: str) -> type:
    """Import "module:Class"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def flag_names(config: type) -> list[str]:
    """Every option that a command takes, without the dashes."""
    own = [option.key for name, option in options(config).items() if name != "run"]
    return [*own, *(name.replace("_", "-") for name in INVOCATION)]


def is_switch(config: type, key: str) -> bool:
    """Whether a flag takes no value."""
    if key in ("recipe", "help"):
        return key == "help"
    name = key.replace("-", "_").removeprefix("no_")
    found = options(config).get(name)
    return name in INVOCATION if found is None else found.kind is bool


def callback(config: type, handle: Callable[..., int | None], summary: str) -> Callable[..., None]:
    """A function with one parameter per option, all of them None unless typed.

    Args:
        config: option dataclass.
        handle: called with (context, typed values by field name, Invocation); gives the exit code, or
            None to go on to a verb.
        summary: its help.
    """

    def command(ctx: typer.Context, **given: Any) -> None:
        typed = {name: value for name, value in given.items() if value is not None}
        switches = {name: typed.pop(name) for name in INVOCATION if name in typed}
        code = handle(ctx, typed, Invocation(**switches, argv=tuple(sys.argv)))
        if code is not None:
            raise typer.Exit(code)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for name, option in sorted(options(config).items(), key=lambda item: _panel_order(config, item[1])):
        parameters.append(_parameter(name, _argument(option) if name == "run" else _flag(option)))
    for name, text in INVOCATION.items():
        kind = str if name == "recipe" else bool
        info = typer.Option(f"--{name.replace('_', '-')}", help=text, rich_help_panel=PANEL, show_default=False)
        parameters.append(_parameter(name, Annotated[kind | None, info]))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = summary
    return command


def _panel_order(config: type, option: Option) -> int:
    """The command's own panel first, the shared ones (run, data, model) last."""
    late = ["Training", "Data", "Model", "Run"]
    if option.panel in late:
        return 100 + late.index(option.panel)
    panels = [getattr(base, "panel", "") for base in config.__mro__]
    return panels.index(option.panel)


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _argument(option: Option) -> Any:
    return Annotated[str | None, typer.Argument(metavar="[RUN]", help=option.doc, show_default=False)]


def _flag(option: Option) -> Any:
    about = [option.bounds] if option.bounds and not option.choices else []
    if option.default not in (None, (), False):
        about.append(f"default {written(option.default)}")
    text = option.doc + (f" ({'; '.join(about)})" if about else "")
    if option.kind is bool:
        info = typer.Option(f"{option.flag}/--no-{option.key}", help=text, rich_help_panel=option.panel)
        return Annotated[bool | None, info]
    info = typer.Option(option.flag, help=text, metavar=option.metavar, rich_help_panel=option.panel, show_default=False)
    return Annotated[str | None, info]
