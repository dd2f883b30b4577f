"""Typer callbacks built from option dataclasses: the dataclass is the only place where an option is described."""

import importlib
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from effvl_cli.config.resolve import Invocation
from effvl_cli.config.schema import WIDEST, Option, common, options, written

INVOCATION = {
    "recipe": "YAML file with options; flags override it, and --no-SWITCH turns off a switch that it sets",
    "dry_run": "print the resolved options, where each comes from and what the run costs, and stop",
    "fresh": "start anew in a run folder that already exists",
    "quiet": "no progress and no log on the terminal",
    "json": "print the report as one line of JSON",
    "debug": "tracebacks instead of one-line errors",
}
PANEL, COMMON = "Invocation", "Common options"
_OFF = "no_"


def config_class(target: str) -> type:
    """Import "module:Class"."""
    module, _, name = target.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


def flag_names(config: type) -> list[str]:
    """Every option that a command takes, without the dashes."""
    own = [option.key for name, option in options(config).items() if name != "run"]
    return [*own, *(name.replace("_", "-") for name in INVOCATION)]


def switches(config: type) -> list[str]:
    """Options that take no value; each has a --no- form, except those of the invocation."""
    own = [option.key for option in options(config).values() if option.kind is bool]
    return [*own, *(f"no-{key}" for key in own), *(name.replace("_", "-") for name in INVOCATION if name != "recipe")]


def groups(config: type) -> str:
    """The panels that short help leaves out, and how many options each holds; empty where it shows all."""
    known, first = options(config), common(config)
    left = [option.panel for name, option in known.items() if name not in first]
    return ", ".join(f"{panel} ({left.count(panel)})" for panel in dict.fromkeys(left))


def callback(
    config: type, handle: Callable[..., int | None], summary: str, *, full: bool = False
) -> Callable[..., None]:
    """A function with one parameter per option, all of them None unless typed.

    Args:
        config: option dataclass.
        handle: called with (context, typed values by field name, Invocation); returns the exit code, or
            None to go on to a verb.
        summary: its help.
        full: help shows every option in the panel of its group, not only those that most people need first.
    """
    first = common(config)

    def command(ctx: typer.Context, **given: Any) -> None:
        typed = {name: value for name, value in given.items() if value is not None}
        how = {name: typed.pop(name) for name in INVOCATION if name in typed}
        for name in [name for name in typed if name.startswith(_OFF)]:
            typed[name.removeprefix(_OFF)] = not typed.pop(name)
        code = handle(ctx, typed, Invocation(**how, argv=tuple(ctx.find_root().obj or ())))
        if code is not None:
            raise typer.Exit(code)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    known = options(config)
    for name in [*first, *(name for name in known if name not in first)] if not full else known:
        option = known[name]
        shown = option.panel if full or not groups(config) else (COMMON if name in first else "")
        parameters.append(_parameter(name, _argument(option) if name == "run" else _flag(option, shown)))
        if option.kind is bool:  # hidden: the column of --no- forms would squeeze the text of the whole panel
            off = typer.Option(f"--no-{option.key}", hidden=True)
            parameters.append(_parameter(f"{_OFF}{name}", Annotated[bool | None, off]))
    for name, text in INVOCATION.items():
        kind, word = (str, "FILE") if name == "recipe" else (bool, "")
        flag = f"--{name.replace('_', '-')}"
        info = typer.Option(flag, help=text, metavar=word, rich_help_panel=PANEL, show_default=False)
        parameters.append(_parameter(name, Annotated[kind | None, info]))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = summary
    return command


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _argument(option: Option) -> Any:
    return Annotated[str | None, typer.Argument(metavar="RUN", help=option.doc, show_default=False)]


def _flag(option: Option, panel: str) -> Any:
    """The option in a panel of help; hidden without one."""
    kind, word = (bool, "") if option.kind is bool else (str, option.metavar)
    info = typer.Option(
        option.flag,
        help=_help(option),
        metavar=word,
        rich_help_panel=panel or None,
        hidden=not panel,
        show_default=False,
    )
    return Annotated[kind | None, info]


def _help(option: Option) -> str:
    """Description (choices; default; range), without square brackets, which help would read as markup."""
    long = len("|".join(option.choices)) > WIDEST  # no room in the placeholder
    about = [f"one of {', '.join(option.choices)}"] if long else []
    if option.default is not None and option.default is not False and option.default != ():
        about.append(f"default {written(option.default)}")
    if option.bounds and not option.choices:
        about.append(option.bounds)
    if not about:
        return option.doc
    if option.doc.endswith(")"):
        return f"{option.doc[:-1]}; {'; '.join(about)})"
    return f"{option.doc} ({'; '.join(about)})"
