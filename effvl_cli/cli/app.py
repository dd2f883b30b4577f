"""The Typer app: root help needs only the commands' summaries; options are built for the command that is called."""

import difflib
import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.exceptions import TyperException

from effvl_cli import __version__
from effvl_cli.cli import commands, flags, utilities
from effvl_cli.cli.commands import Command
from effvl_cli.cli.console import is_main
from effvl_cli.config import recipes, schema
from effvl_cli.config.recipe_file import Recipe, read_recipe
from effvl_cli.config.resolve import Invocation, dry_run_text, resolve
from effvl_cli.config.validate import unknown_option
from effvl_cli.core.errors import EffvlError, ModelError, UsageError, as_user_error

ABOUT = "Vision and vision-language models, cheaper to train, prune and run."
HELP_ALL = "--help-all"
HELP = ("-h", "--help", HELP_ALL)
COMPLETION = ("--install-completion", "--show-completion")
ROOT_FLAGS = (*HELP, "--version", *COMPLETION)
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
        check_words(arguments)
        words = ["--help" if word == HELP_ALL else word for word in arguments or ["--help"]]
        result = _called(arguments, words)
        sys.stdout.flush()  # a closed pipe is noticed here, not while Python shuts down
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
    except BrokenPipeError:  # `effvl list models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        if known := as_user_error(error):
            return _fail(str(known), known.exit_code)
        return _fail(f"internal error: {type(error).__name__}: {error}. Give --debug for the traceback", 1)


def _called(arguments: list[str], words: list[str]) -> Any:
    """What the command returns.

    Raises:
        BrokenPipeError: the reader of our output has left; Click makes exit code 1 of it.
    """
    try:
        return _app(arguments)(words, prog_name="effvl", standalone_mode=False, obj=("effvl", *arguments))
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):
            raise leaving.__context__ from None
        raise


def _fail(text: str, code: int) -> int:
    if is_main():
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        print(f"effvl {__version__}")
        raise typer.Exit(0)


def _app(arguments: list[str]) -> typer.Typer:
    """The root, with the options of the command that is called and the summaries of the others."""
    line = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS"))  # of a shell asking for completions
    completes = "_EFFVL_COMPLETE" in os.environ or bool(set(arguments[:1]) & set(COMPLETION))
    about = "Shell completion: effvl --install-completion"
    app = typer.Typer(help=ABOUT, epilog=about, **{**SETTINGS, "add_completion": completes})
    full = HELP_ALL in arguments or completes  # hidden options would not be completed
    arguments = line.split()[1:] if completes and line else arguments
    called = next((word for word in arguments if not word.startswith("-")), None)

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", callback=_version, is_eager=True, metavar="", help="Print the version and exit."
        ),
    ) -> None:
        pass

    for name in commands.names():
        job = commands.of(name)[""]
        if name != called:
            app.command(name, help=job.summary, rich_help_panel="Techniques")(_stub)
        elif len(commands.of(name)) == 1:
            app.command(name, help=job.summary, epilog=_epilog(job, full))(_callback(job, full=full))
        else:
            words = None if completes else arguments[arguments.index(name) + 1 :]
            technique = _technique(name, words, full=full)
            app.add_typer(technique, name=name, help=job.summary, epilog=_epilog(job, full))
    for name, function in utilities.UTILITIES.items():
        app.command(name, rich_help_panel="Utilities")(function)
    return app


def _stub() -> None:
    """Stand-in for a command that is only listed."""


def _technique(name: str, words: list[str] | None, *, full: bool) -> typer.Typer:
    """Job and verbs of one technique, with the options of those that `words` can call: building them all takes longer
    than the rest of the start.

    Args:
        name: of the technique.
        words: what follows it on the command line; None: with the options of all.
        full: with all options in their help.
    """
    table = commands.of(name)
    job = table[""]
    app = typer.Typer(subcommand_metavar="[VERB]", **SETTINGS)
    at_once = bool(words and words[0] in table)  # behind an option, a word may be that option's value
    app.callback(invoke_without_command=True)(_stub if at_once else _callback(job, full=full))
    for verb, command in table.items():
        if verb:
            about: dict[str, Any] = {"help": command.summary, "rich_help_panel": "Verbs: parts of the job"}
            wanted = words is None or verb in (words[:1] if at_once else words)
            function = _callback(command, full=full) if wanted else _stub
            app.command(verb, epilog=_epilog(command, full), **about)(function)
    return app


def _epilog(command: Command, full: bool) -> str | None:
    left = flags.groups(flags.config_class(command.config))
    return None if full or not left else f"More options: effvl {command.title} {HELP_ALL} shows {left}."


def _callback(command: Command, *, full: bool) -> Callable[..., None]:
    def handle(ctx: typer.Context, typed: dict[str, Any], invocation: Invocation) -> int | None:
        if ctx.invoked_subcommand is not None:  # a group's callback also runs before each of its verbs
            return None
        return dispatch(command, typed, invocation)

    return flags.callback(flags.config_class(command.config), handle, command.summary, full=full)


def dispatch(command: Command, typed: dict[str, Any], invocation: Invocation) -> int:
    """Resolve the options of a command and run it."""
    config = flags.config_class(command.config)
    base = earlier_run(command, config, typed, invocation.recipe) if "run" in schema.options(config) else None
    resolved = resolve(config, typed, command=command.title, recipe=invocation.recipe, base=base)
    if invocation.dry_run:
        print(dry_run_text(command.title, resolved))
        from effvl_cli.cli.execute import preview

        preview(command, resolved.config)
        return 0
    from effvl_cli.cli.execute import execute

    return execute(command, resolved, invocation)


def earlier_run(command: Command, config: type, typed: dict[str, Any], recipe: str | None) -> Recipe | None:
    """The config.yaml of the run that a verb works on: RUN, else the recipe's, else the newest completed one.

    None where none was given, of a verb that needs none (`run_optional`), or one of whose options
    `in_place_of_run` (joined by +) was given.
    Of a folder that is wanted for a file in it (`run_holds`), whatever command wrote it, no options are taken over
    (but for `run_gives_options`).
    """
    from effvl_cli.core.find_run import find_holding, find_run
    from effvl_cli.core.run_files import CONFIG

    written = read_recipe(recipes.find(recipe)).config if recipe else {}
    given = typed.get("run") or written.get("run")
    asked = {**written, **typed}
    instead = any(asked.get(name) for name in getattr(config, "in_place_of_run", "").split("+"))
    if held := getattr(config, "run_holds", ""):
        if instead:
            return None
        folder = find_holding(held, command.title, given)
        if getattr(config, "run_gives_options", False):
            return read_recipe(folder / CONFIG)
        return Recipe(str(folder / CONFIG), command.title, {})
    if given is None and (instead or getattr(config, "run_optional", False)):
        return None
    folder = find_run(command.name, given)
    found = read_recipe(folder / CONFIG)
    if found.command.split()[0] != command.name:
        raise ModelError(f"{folder} is a run of `effvl {found.command}`", f"Give one of `effvl {command.name}`")
    return found


# --- checks that Typer does not make-----------------------------------------------------------------------------------


def check_words(arguments: list[str]) -> None:
    """Refuse unknown commands and options with a suggestion, options before a verb, and options given twice."""
    if not arguments or arguments[0] in ROOT_FLAGS:
        return
    name = arguments[0]
    if name.startswith("-"):
        raise UsageError(f"option {name} comes before the command", "Write effvl COMMAND [OPTIONS]; see effvl --help")
    known = [*commands.names(), *utilities.UTILITIES]
    if name not in known:
        having = [command.title for command in commands.COMMANDS if command.verb == name]
        hint = f"It is a verb: effvl {' or effvl '.join(having)}" if having else _nearest(name, known, "commands")
        raise UsageError(f"unknown command {name!r}", hint)
    if name in commands.names():
        _check_command(name, arguments[1:])
    else:
        _refuse_twice([word.partition("=")[0] for word in arguments[1:] if word.startswith("--")])


def _check_command(name: str, arguments: list[str]) -> None:
    table = commands.of(name)
    config = flags.config_class(table[""].config)
    given, verb = _scan(arguments, config, table, name)
    if verb:
        if given:
            raise UsageError(f"{given[0]} comes before {verb!r}", f"Put {given[0]} after {verb!r}")
        config = flags.config_class(table[verb].config)
        given, _ = _scan(arguments[arguments.index(verb) + 1 :], config, {}, f"{name} {verb}")
    opposites = {f"--no-{name}": f"--{name}" for name in flags.flag_names(config)}
    _refuse_twice([opposites.get(key, key) for key in given])


def _scan(arguments: list[str], config: type, verbs: dict[str, Command], called: str) -> tuple[list[str], str]:
    """Option words up to a verb, and the verb; values of options are skipped.

    Args:
        arguments: what follows `effvl COMMAND`, or the verb.
        config: option dataclass.
        verbs: the technique's table, or nothing behind a verb, where a word is RUN.
        called: the command, for messages.

    Raises:
        UsageError: an unknown option, or a word that is neither an option's value nor a verb.
    """
    given: list[str] = []
    known, switches = flags.flag_names(config), flags.switches(config)
    words = iter(arguments)
    for word in words:
        key, equals, _ = word.removeprefix("--").partition("=")
        if word in HELP:
            continue
        if word.startswith("-"):
            if not word.startswith("--") or key not in (*known, *switches):
                raise _unknown_option(word.partition("=")[0], key, known, called)
            given.append(f"--{key}")
            if not equals and key not in switches:
                next(words, None)
        elif word and word in verbs:
            return given, word
        elif verbs:
            raise _no_verb(word, [verb for verb in verbs if verb], called)
    return given, ""


def _unknown_option(word: str, key: str, known: list[str], called: str) -> UsageError:
    """Names the commands of the technique that have the option, else the nearest options of this one."""
    mates = commands.of(called.partition(" ")[0]).values()
    having = [mate.title for mate in mates if key in flags.flag_names(flags.config_class(mate.config))]
    if having and word == f"--{key}":
        return UsageError(
            f"`effvl {called}` has no {word}", f"It belongs to {' and '.join(f'`effvl {n}`' for n in having[:3])}"
        )
    return unknown_option(key, known, f"option {word} of `effvl {called}`")


def _no_verb(word: str, verbs: list[str], called: str) -> UsageError:
    if not verbs:
        return UsageError(f"`effvl {called}` takes options only, not {word!r}", f"See effvl {called} --help")
    return UsageError(f"unknown verb {word!r}", _nearest(word, verbs, "verbs"))


def _nearest(word: str, known: list[str], kind: str) -> str:
    begun = [name for name in known if word and name.startswith(word)]
    near = begun or difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"The {kind} are {', '.join(known)}"


def _refuse_twice(given: list[str]) -> None:
    for flag in given:
        if given.count(flag) > 1:
            raise UsageError(f"{flag} is given twice", "Give it once; lists are comma separated")
