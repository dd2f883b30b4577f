"""The runs of a sweep, resolved as their command lines would be, without running them."""

from typing import TYPE_CHECKING, Any

from effvl_cli.cli import app, commands, flags
from effvl_cli.config.recipe_file import Recipe
from effvl_cli.config.resolve import as_recipe, resolve
from effvl_cli.config.schema import options
from effvl_cli.core.errors import ModelError, UsageError

if TYPE_CHECKING:
    from effvl_cli.core.sweep import Planned
    from effvl_cli.core.sweep_check import Planned as Before

ALLOWED = ("recipe",)  # invocation options that a sweep may set


def check(run: "Planned", before: "Before") -> Recipe:
    """Resolve the options of a run as its command will.

    Args:
        run: a run of the sweep.
        before: options of the runs before it, by folder.

    Raises:
        EffvlError: they are faulty; one line says how.
    """
    name, verb, words = _command(run.arguments)
    command = commands.of(name)[verb]
    app.check_words(run.arguments)
    config = flags.config_class(command.config)
    typed = _typed(words, config)
    recipe = typed.pop("recipe", None)
    base = _base(command, config, typed, recipe, before) if "run" in options(config) else None
    resolved = resolve(config, typed, command=command.title, recipe=recipe, base=base)
    return as_recipe(command.title, resolved, run.folder)


def _command(arguments: list[str]) -> tuple[str, str, list[str]]:
    """Technique, verb and the other words."""
    name = arguments[0] if arguments else ""
    if name not in commands.names():
        raise UsageError(f"command is {name!r}", f"A sweep runs {', '.join(commands.names())} and their verbs")
    verb = arguments[1] if len(arguments) > 1 and arguments[1] in commands.of(name) else ""
    return name, verb, arguments[2 if verb else 1 :]


def _typed(words: list[str], config: type) -> dict[str, Any]:
    """Values by field name of words such as `--keep=0.5`, `--download`, `--no-download`, `--seed 0` and RUN."""
    known = options(config)
    typed: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        field = key.replace("-", "_")
        if not word.startswith("--"):
            typed["run"] = word
        elif key in ALLOWED:
            typed[field] = value
        elif field.removeprefix("no_") not in known:
            raise UsageError(f"{key} cannot be set for a run of a sweep", "Leave it out")
        elif known.get(field, known[field.removeprefix("no_")]).kind is not bool:
            typed[field] = value if equals else next(rest, "")
        elif equals:
            raise UsageError(f"{key} is {value}", "Write true or false")
        else:
            typed[field.removeprefix("no_")] = field in known
    return typed


def _base(
    command: commands.Command, config: type, typed: dict[str, Any], recipe: str | None, before: "Before"
) -> Recipe | None:
    """Options of the run that a verb works on: one that the sweep makes, or an existing one."""
    folder = str(typed.get("run", ""))
    found = before.get(folder)
    if found is None:
        return app.earlier_run(command, config, typed, recipe)
    if found.command.split()[0] != command.name:
        raise ModelError(f"{folder} is a run of `effvl {found.command}`", f"Give one of `effvl {command.name}`")
    return found
