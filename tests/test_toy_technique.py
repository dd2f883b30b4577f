"""What a new technique costs: its own files and one block of rows, and no edit of anything shared.

`tests/toy_technique` lies as a newcomer's files would lie in the package; here the folders are put beside the package's
own, and the block behind the other blocks.
"""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch

import effvl_cli.config
import effvl_cli.engines
import effvl_cli.techniques
from effvl_cli.cli import commands
from effvl_cli.core import bench
from effvl_cli.core.checkpoint import load_model

TOY = Path(__file__).parent / "toy_technique"
BLOCK = commands.rows_of(
    "pixel-probe", (("", "PixelProbeConfig", "A linear classifier on the pixels that vary most."),)
)
FEW = ("pixel-probe", "--data", "digits", "--epochs", 2, "--save-every", 10)


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    for layer in (effvl_cli.config, effvl_cli.engines, effvl_cli.techniques):
        monkeypatch.setattr(layer, "__path__", [*layer.__path__, str(TOY / layer.__name__.rpartition(".")[2])])
    monkeypatch.setattr(commands, "COMMANDS", (*commands.COMMANDS, *BLOCK))
    monkeypatch.setattr(bench, "MAX_PASSES", 2)
    yield
    for name in [name for name in sys.modules if "pixel_probe" in name]:
        del sys.modules[name]


def test_its_job_is_short_and_its_mathematics_pure():
    tree = ast.parse((TOY / "engines" / "pixel_probe" / "job.py").read_text())
    [job] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    assert job.end_lineno - job.lineno <= 40
    pure = ast.parse((TOY / "techniques" / "pixel_probe" / "probe.py").read_text())
    assert {node.module for node in ast.walk(pure) if isinstance(node, ast.ImportFrom)} == {"torch"}


def test_the_mathematics():
    from effvl_cli.techniques.pixel_probe.probe import PixelProbe, most_varied

    images = torch.tensor([[[[0.0, 5.0], [1.0, 2.0]]], [[[0.0, -5.0], [3.0, 2.0]]]])  # variances 0, 50, 2, 0
    assert most_varied(images, 0.5).tolist() == [1, 2] and most_varied(images, 0.25).tolist() == [1]
    probe = PixelProbe(torch.tensor([1, 2]), 2)
    with torch.no_grad():
        probe.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert probe(images).tolist() == [[5.0, 2.0], [-5.0, 6.0]]


def test_root_help_help_and_dry_run(effvl):
    assert "pixel-probe" in effvl("--help").out
    short, whole = (effvl("pixel-probe", words).out for words in ("--help", "--help-all"))
    assert "--keep" in short and "--keep" in whole
    assert "--force" in whole and "--force" not in short
    outcome = effvl(*FEW, "--dry-run")
    assert outcome.code == 0 and "keep: 0.5" in outcome.out and "what it does" in outcome.out
    outcome = effvl("pixel-probe", "--kep", 0.5)
    assert outcome.code == 2 and "Did you mean" in outcome.error
    assert not Path("runs").exists()


def test_report_page_pictures_and_what_fresh_deletes(effvl, report):
    outcome = effvl(*FEW, "--out", "r")
    assert outcome.code == 0, outcome.err
    done = report("r")
    assert {"top1_few", "top1_all"} <= set(done.metrics) and done.metrics["top1_all"].value > 0.5
    assert [row["arm"] for row in done.technique["bench"]] == ["all", "few"]
    listed = {artifact.path for artifact in done.artifacts}
    assert {"checkpoint.safetensors", "plots/accuracy.png", "plots/latency.png"} <= listed
    assert load_model(Path("r/checkpoint.safetensors"))[1]["kind"] == "pixel-probe"
    if Path("r/report.html").exists():  # written by core for every command
        assert "pixel-probe" in Path("r/report.html").read_text()
    assert "finished before" in effvl(*FEW, "--out", "r").err
    assert effvl(*FEW, "--out", "r", "--keep", 0.25).code == 2
    outcome = effvl(*FEW, "--out", "r", "--keep", 0.25, "--fresh", "--json")
    assert outcome.code == 0 and json.loads(outcome.out)["resume"]["count"] == 0


def test_a_resume_gives_the_same_figures_and_weights(effvl, report):
    assert effvl(*FEW, "--out", "whole").code == 0
    assert effvl(*FEW, "--out", "cut").code == 0
    for name in ("report.json", "checkpoint.safetensors", "manifest.json", "checkpoints/phases.json"):
        Path("cut", name).unlink()
    assert effvl(*FEW, "--out", "cut").code == 0
    whole, cut = report("whole"), report("cut")
    assert cut.resume.count == 1 and cut.resume.steps_done_before > 0
    assert all(cut.metrics[name] == figure for name, figure in whole.metrics.items())
    ours, theirs = (load_model(Path(name, "checkpoint.safetensors"))[0] for name in ("cut", "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert Path("cut/metrics.jsonl").read_bytes() == Path("whole/metrics.jsonl").read_bytes()
