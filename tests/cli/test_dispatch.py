"""What a command line hands on: options, the run that a verb starts from, the words as typed."""

import signal
import subprocess

import pytest

from effvl_cli.cli import utilities
from effvl_cli.core import signals


@pytest.fixture
def handed_on(monkeypatch):
    """Instead of running a command, keep what would be run."""
    calls = []
    monkeypatch.setattr("effvl_cli.cli.execute.execute", lambda *call: calls.append(call) or 0)
    return calls


def _run_folder(path, command="prune-tokens", **config):
    path.mkdir(parents=True)
    lines = [f"  {key}: {value}\n" for key, value in config.items()]
    (path / "config.yaml").write_text(f"effvl: 1\ncommand: {command}\nconfig:\n{''.join(lines)}")
    return path


def _origins(shown):
    lines = [line.partition(" # ") for line in shown.splitlines() if " # " in line]
    return {text.split(":")[0].strip(): (text.partition(":")[2].strip(), origin) for text, _, origin in lines}


def test_switches_and_their_opposites(effvl, handed_on, workdir):
    (workdir / "r.yaml").write_text("effvl: 1\ncommand: prune-tokens\nconfig: {download: yes, deterministic: on}\n")
    assert effvl("prune-tokens", "--recipe", "r.yaml", "--no-download", "--fresh", "--json").code == 0
    command, resolved, invocation = handed_on[0]
    assert command.title == "prune-tokens"
    assert (resolved.config.download, resolved.config.deterministic) == (False, True)
    assert resolved.origins["download"] == "flag"
    assert (invocation.fresh, invocation.json, invocation.quiet) == (True, True, False)


def test_the_words_are_kept_as_typed(effvl, handed_on):
    effvl("prune-tokens", "--templates", "a {} here", "--keep=.5")
    assert handed_on[0][2].argv == ("effvl", "prune-tokens", "--templates", "a {} here", "--keep=.5")


def test_the_job_does_not_run_before_its_verb(effvl, handed_on):
    assert effvl("prune-tokens", "rank", "--shots", 2).code == 0
    assert [call[0].title for call in handed_on] == ["prune-tokens rank"]


def test_the_value_of_an_option_may_be_the_name_of_a_verb(effvl, handed_on):
    assert effvl("prune-tokens", "--name", "eval").code == 0
    assert handed_on[0][0].title == "prune-tokens"


def test_a_verb_takes_run_from_the_line_before_the_recipe(effvl, workdir):
    _run_folder(workdir / "a", keep=0.3)
    _run_folder(workdir / "b", keep=0.4)
    (workdir / "a" / "checkpoint.safetensors").touch()
    recipe = workdir / "r.yaml"
    recipe.write_text("effvl: 1\ncommand: prune-tokens eval\nconfig: {run: b, num-golden: 5}\n")

    shown = _origins(effvl("prune-tokens", "eval", "--recipe", "r.yaml", "--dry-run").out)
    assert shown["run"] == ('"b"', "recipe r.yaml")
    assert shown["keep"] == ('"0.4"', "run b")
    assert shown["num-golden"] == ("5", "recipe r.yaml")

    words = ("prune-tokens", "eval", "a/checkpoint.safetensors", "--recipe", "r.yaml", "--dry-run")
    shown = _origins(effvl(*words).out)
    assert shown["run"] == ('"a"', "flag")
    assert shown["keep"] == ('"0.3"', "run a")


def test_a_verb_refuses_the_run_of_another_technique(effvl, workdir):
    _run_folder(workdir / "a", "pretrain", method="clip", steps=1)
    outcome = effvl("prune-tokens", "eval", "a")
    assert outcome.code == 4
    assert "a is a run of `effvl pretrain`" in outcome.error


class _Process:
    """A run that ends when it is asked to."""

    def __init__(self, code):
        self.code, self.asked, self.waited = code, [], 0

    def wait(self, timeout=None):
        self.waited += 1
        if timeout is not None and self.waited == 1:
            signals._note(signal.SIGINT, None)
            raise subprocess.TimeoutExpired("effvl", timeout)
        return self.code

    def terminate(self):
        self.asked.append(signal.SIGTERM)


@pytest.mark.parametrize("code", [130, -signal.SIGTERM])  # the second: asked twice, it died on its way out
def test_a_sweep_passes_ctrl_c_on_without_doubling_it(monkeypatch, code):
    process = _Process(code)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: process)
    assert utilities._launch(["prune-tokens"]) == 130
    assert process.asked == [signal.SIGTERM]  # two SIGINTs would end the run before it has saved


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_sweep_that_is_to_stop_starts_no_further_run(monkeypatch, number, code):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a run was started"))
    signals._note(number, None)
    assert utilities._launch(["prune-tokens"]) == code


def test_recipes_are_listed_past_one_that_is_broken(effvl, workdir):
    (workdir / "recipes").mkdir()
    (workdir / "recipes" / "good.yaml").write_text("effvl: 1\ncommand: pretrain\ndescription: fine\n")
    (workdir / "recipes" / "draft.yaml").write_text("effvl: 1\n")
    shown = effvl("list", "recipes").out
    assert "effvl pretrain: fine" in shown
    assert "unusable" in shown and "has no command" in shown
