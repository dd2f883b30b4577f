"""Help: complete, quick, and free of heavy imports."""

import functools
import io
import json
import os
import resource
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

from effvl_cli.cli import commands, flags
from effvl_cli.cli.app import main
from effvl_cli.config.schema import common, options

HEAVY = ("torch", "numpy", "yaml", "matplotlib", "sklearn", "open_clip", "PIL")
LINES = [(), *((name,) for name in commands.names()), *((c.name, c.verb) for c in commands.COMMANDS if c.verb)]


EACH = """
import json, sys
from effvl_cli.cli.app import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print(code, [name for name in json.loads(sys.argv[2]) if name in sys.modules], words, file=sys.stderr)
"""


def run_each(lines, heavy):
    """Command lines one after another in one process: output, and codes with the modules loaded so far."""
    words = (json.dumps([list(line) for line in lines]), json.dumps(heavy))
    done = subprocess.run([sys.executable, "-c", EACH, *words], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.splitlines()


def test_help_imports_nothing_heavy():
    lines = [[*words, "--help"] for words in LINES]
    shown, loaded = run_each(lines, HEAVY)
    assert loaded == [f"0 [] {words}" for words in lines]
    assert shown.count("Usage: effvl") == len(LINES) > 10


def test_what_needs_no_torch_imports_none():
    lines = [["list", "models"], ["list", "datasets"]]
    assert run_each(lines, ["torch"])[1] == [f"0 [] {words}" for words in lines]


@pytest.mark.parametrize(
    ("words", "built"),
    [
        (("prune-blocks", "score", "--help"), {"score"}),
        (("prune-blocks", "--help"), {""}),
        (("prune-blocks", "--help", "score"), {"", "score"}),  # of the job
        (("prune-blocks", "--out", "score", "--help"), {"", "score"}),  # what is behind an option may be its value
    ],
)
def test_options_are_built_for_what_is_called(effvl, monkeypatch, words, built):
    seen, build = [], flags.callback
    monkeypatch.setattr(
        flags, "callback", lambda config, *rest, **more: seen.append(config) or build(config, *rest, **more)
    )
    shown = effvl(*words).out
    table = commands.of("prune-blocks")
    assert seen == [flags.config_class(command.config) for verb, command in table.items() if verb in built]
    assert table["" if "" in built else "score"].summary in shown
    assert ("--remove" in shown) == ("" in built)


@pytest.fixture(scope="module")
def short_help():
    """Help of a command in so many columns, written once."""

    @functools.cache
    def written(title, columns):
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as shown:
            patch.setenv("COLUMNS", str(columns))
            assert main([*title.split(), "--help"]) == 0
        return shown.getvalue()

    return written


@pytest.mark.parametrize("command", commands.COMMANDS, ids=lambda c: c.title)
def test_every_option_is_documented(effvl, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "120")
    shown = effvl(*command.title.split(), "--help-all").out
    for option in options(flags.config_class(command.config)).values():
        assert option.doc
        assert ("[RUN]" if option.name == "run" else option.flag) in shown
    assert "[default" not in shown  # brackets would be taken for markup


def test_help_shows_defaults_ranges_choices_and_verbs(effvl, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = effvl("prune-tokens", "--help-all").out
    for text in (
        "default 0.6; above 0, at most 1",
        "default 0; at least 0",
        "one of ce, distill, ce+distill; default ce+distill",
    ):
        assert text in shown
    for text in ("fp32|bf16|fp16", "[OPTIONS] [VERB]", "eval     Measure", "--deterministic"):
        assert text in shown
    assert "--no-deterministic" not in shown  # it is taken, but a column of its own would squeeze the text
    assert shown.index("--keep") < shown.index("--layer") < shown.index("--shots") < shown.index("--seed")
    assert "eval [OPTIONS] [RUN]" in effvl("prune-tokens", "eval", "--help").out
    assert "pretrain [OPTIONS] " in effvl("pretrain", "--help").out


@pytest.mark.parametrize("command", commands.COMMANDS, ids=lambda c: c.title)
def test_help_shows_what_most_need_and_says_where_the_rest_is(short_help, command):
    config = flags.config_class(command.config)
    short = " ".join(short_help(command.title, 120).split())
    first = [option.flag for name, option in options(config).items() if name in common(config) and name != "run"]
    assert 4 <= len(first) <= 20 and all(f"{flag} " in short for flag in first)
    left = [option for name, option in options(config).items() if name not in common(config)]
    assert not any(f"│ {option.flag} " in short for option in left)
    assert (f"effvl {command.title} --help-all shows" in short) == bool(left)
    assert all(f"{option.panel} (" in short for option in left)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", commands.COMMANDS, ids=lambda c: c.title)
def test_help_fits_and_cuts_nothing_off(short_help, command, columns):
    lines = short_help(command.title, columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines)


def _cpu_seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_root_help_costs_less_than_four_imports_of_typer():
    root = (
        "import sys; sys.argv = ['effvl', '--help']; import effvl_cli.__main__ as m\n"
        "try: m.main()\nexcept SystemExit: pass"
    )
    ours = min(_cpu_seconds(root) for _ in range(3))
    typer = min(_cpu_seconds("import typer") for _ in range(3))
    assert ours < 4 * typer


def test_only_what_exists_is_listed(effvl):
    shown = effvl("--help").out
    for name in (
        "pretrain",
        "prune-tokens",
        "prune-blocks",
        "prompt-tune",
        "cpr-mine",
        "continual",
        "detect",
        "list",
        "env",
        "sweep",
        "table",
    ):
        assert name in shown


def test_version():
    done = subprocess.run([sys.executable, "-m", "effvl_cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "effvl 0.1.0\n"


def test_lists(effvl):
    assert "tiny:clip" in effvl("list", "models").out
    assert "openclip:ViT-B-16" in effvl("list", "models", "ViT-B-16").out
    assert "shape-captions" in effvl("list", "datasets").out
    assert "torch" in effvl("env").out


def test_dry_run_names_the_origin_of_each_value_and_runs_nothing(effvl, workdir):
    (workdir / "r.yaml").write_text("effvl: 1\ncommand: prune-tokens\nconfig: {keep: 5e-1, shots: 4}\n")
    shown = effvl("prune-tokens", "--recipe", "r.yaml", "--shots", 8, "--dry-run").out
    lines = {line.split(":")[0].strip(): line for line in shown.splitlines()}
    assert "0.5" in lines["keep"] and "recipe r.yaml" in lines["keep"]
    assert "8" in lines["shots"] and "# flag" in lines["shots"]
    assert "# default" in lines["block"]
    assert not (workdir / "runs").exists()
    (workdir / "again.yaml").write_text(shown)
    assert effvl("prune-tokens", "--recipe", "again.yaml", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("line", "word"),
    [("effvl pru", "prune-tokens"), ("effvl prune-tokens ev", "eval"), ("effvl prune-tokens --tune-l", "--tune-lr")],
)
def test_a_shell_completes_commands_verbs_and_options(line, word):
    asked = {"_EFFVL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    code = "import sys; from effvl_cli.cli.app import main; sys.argv = ['effvl']; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    assert word in done.stdout.split(), done.stderr


def test_completion_is_offered(effvl):
    assert "effvl --install-completion" in effvl("--help").out
    asked = f"{sys.executable} -m effvl_cli --show-completion; true"  # the shell is known by the parent process
    shown = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert "_effvl_completion effvl" in shown.stdout
