"""The Typer app: root help knows every command by its summary alone; options are built for the one that is called."""

import difflib
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.exceptions import TyperException

from effvl_cli.cli import commands, flags, utilities
from effvl_cli.cli.commands import Command
from effvl_cli.config.resolve import Invocation, dry_run_text, read_recipe, resolve, unknown_option
from effvl_cli.core.errors import EffvlError, UsageError

ROOT_FLAGS = ("-h", "--help", "--version")
SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 120},
}


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit code; a user's error is one line on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        _check(arguments)
        result = _app(arguments)(arguments, prog_name="effvl", standalone_mode=False)
        return int(result or 0)
    except typer.Exit as leaving:
        return leaving.exit_code
    except EffvlError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except TyperException as error:
        return _fail(error.format_message(), getattr(error, "exit_code", 2))
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if debug:
            raise
        return _fail(f"internal error: {type(error).__name__}: {error}. Give --debug for the traceback", 1)


def _fail(text: str, code: int) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _app(arguments: list[str]) -> typer.Typer:
    """The root, with the options of the command that is called and the summaries of the others."""
    app = typer.Typer(no_args_is_help=True, help="Vision and vision-language models, cheaper to train, prune and run.", **SETTINGS)
    called = next((word for word in arguments if not word.startswith("-")), None)

    @app.callback()
    def root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
        pass

    for name in commands.names():
        job = commands.of(name)[""]
        if name == called:
            app.add_typer(_technique(name), name=name, help=job.summary, rich_help_panel="Techniques")
        else:
            app.command(name, help=job.summary, rich_help_panel="Techniques")(_stub)
    for name, function in utilities.UTILITIES.items():
        app.command(name, rich_help_panel="Utilities")(function)
    return app


def _stub() -> None:
    """Stands for a command that is only listed."""


def _technique(name: str) -> typer.Typer:
    """Job and verbs of one technique."""
    table = commands.of(name)
    job = table[""]
    app = typer.Typer(subcommand_metavar="[VERB]", **SETTINGS)
    config = flags.config_class(job.config)
    app.callback(invoke_without_command=True)(flags.callback(config, _job_handler(job), job.summary))
    for verb, command in table.items():
        if verb:
            build = flags.callback(flags.config_class(command.config), _handler(command), command.summary)
            app.command(verb, help=command.summary)(build)
    return app


def _handler(command: Command) -> Callable[..., int]:
    def handle(ctx: typer.Context, typed: dict[str, Any], invocation: Invocation) -> int:
        return dispatch(command, typed, invocation)

    return handle


def _job_handler(command: Command) -> Callable[..., int | None]:
    def handle(ctx: typer.Context, typed: dict[str, Any], invocation: Invocation) -> int | None:
        if ctx.invoked_subcommand is not None:  # a group's callback also runs before each of its verbs
            return None
        return dispatch(command, typed, invocation)

    return handle


def dispatch(command: Command, typed: dict[str, Any], invocation: Invocation) -> int:
    """Resolve the options of a command and run it."""
    config = flags.config_class(command.config)
    base = None
    if command.verb and "run" in flags.options(config):
        from effvl_cli.core.run import CONFIG, find_run

        folder = find_run(command.name, typed.get("run"))
        typed = {**typed, "run": str(folder)}
        base = read_recipe(folder / CONFIG)
    resolved = resolve(config, typed, command=command.title, recipe=invocation.recipe, base=base)
    if invocation.dry_run:
        print(dry_run_text(command.title, resolved))
        return 0
    from effvl_cli.cli.execute import execute

    return execute(command, resolved, invocation)


# --- what Typer would let pass ---------------------------------------------------------------------------------------


def _check(arguments: list[str]) -> None:
    """Refuse unknown commands and options with a suggestion, options before a verb, and options given twice."""
    if not arguments or arguments[0] in ROOT_FLAGS:
        return
    name = arguments[0]
    if name.startswith("-"):
        raise UsageError(f"option {name} stands before a command", "Write effvl COMMAND [OPTIONS]; see effvl --help")
    known = [*commands.names(), *utilities.UTILITIES]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}?" if near else f"The commands are {', '.join(known)}"
        raise UsageError(f"unknown command {name!r}", hint)
    if name in commands.names():
        _check_command(name, arguments[1:])


def _check_command(name: str, arguments: list[str]) -> None:
    table = commands.of(name)
    config = flags.config_class(table[""].config)
    given, verb = _scan(arguments, config, table, name)
    if verb:
        if given:
            raise UsageError(f"--{given[0]} stands before {verb!r}", f"Put --{given[0]} after {verb!r}")
        config = flags.config_class(table[verb].config)
        given, _ = _scan(arguments[arguments.index(verb) + 1 :], config, {}, f"{name} {verb}")
    for key in given:
        if given.count(key) > 1:
            raise UsageError(f"--{key} is given twice", "Give it once; lists are comma separated")


def _scan(arguments: list[str], config: type, verbs: dict[str, Command], called: str) -> tuple[list[str], str]:
    """Option words up to a verb, and the verb; values of options are passed over.

    Raises:
        UsageError: an unknown option, or a word that is neither an option's value nor a verb.
    """
    given: list[str] = []
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word.startswith("--"):
            key, equals, _ = word[2:].partition("=")
            given.append(key)
            known = flags.flag_names(config)
            if key not in known and key.removeprefix("no-") not in known and key != "help":
                raise unknown_option(key, known, f"option --{key} of `effvl {called}`")
            skip = not equals and not flags.is_switch(config, key)
        elif word in verbs and word:
            return given, word
        elif verbs and not word.startswith("-") and len(verbs) > 1:
            near = difflib.get_close_matches(word, [verb for verb in verbs if verb], n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The verbs are {', '.join(verb for verb in verbs if verb)}"
            raise UsageError(f"unknown verb {word!r}", hint)
    return given, ""

