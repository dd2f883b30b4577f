"""Results on stdout, the rest on stderr, and nothing from ranks that are not the first."""

import sys

import pytest

from effvl_cli.cli import console
from effvl_cli.cli.console import Console, plain
from effvl_cli.core import distributed
from effvl_cli.core.table import Table

TABLE = Table("two rows", ("name", "top-1 %"), (("dense", "98.3"), ("folder:[a|b/]C", None)), ("a note",))


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "1"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "4"},
        {"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
    ],
)
def test_the_rank_is_the_one_that_the_run_has(monkeypatch, env):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert console.is_main() == distributed.is_main()


def test_a_plain_table_is_aligned():
    assert plain(TABLE).splitlines() == [
        "two rows",
        "name            top-1 %",
        "--------------  -------",
        "dense              98.3",
        "folder:[a|b/]C        -",
        "a note",
    ]


def test_a_drawn_table_shows_brackets_as_they_are(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Console().print_table(TABLE)
    shown = capsys.readouterr().out
    assert "folder:[a|b/]C" in shown and "a note" in shown


def test_progress_off_a_terminal_is_a_line_now_and_then_and_one_at_the_end(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 40.0, 40.0, 45.0, 80.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with Console().progress("ranking", 8) as progress:
        progress.update(1, loss=2.0)  # at 10 s: too early
        progress.update(4, loss=0.5)  # at 40 s
        progress.update(8, loss=0.25)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "ranking 4/8  0:40, 0:40 to go  loss 0.5",
        "ranking 8/8 in 1:20  loss 0.25",
    ]


def test_quiet_and_json_keep_the_terminal_clean(capsys):
    with Console(quiet=True).progress("ranking", 8) as progress:
        progress.update(8)
    Console(quiet=True).log("a line")
    Console(json=True).print_table(TABLE)
    assert capsys.readouterr() == ("", "")
    Console(json=True).print_json('{"a": 1}')
    assert capsys.readouterr().out == '{"a": 1}\n'


def test_an_error_is_one_line(capsys):
    Console(quiet=True).error("first\n  second")
    assert capsys.readouterr().err == "error: first second\n"
