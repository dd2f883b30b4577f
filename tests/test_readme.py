"""The commands of README and pages are understood, their make targets are there, and the Python page runs."""

import re
import shlex
from pathlib import Path

import pytest

from effvl_cli.cli import execute

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "recipes").glob("*/README.md"))]
TEXTS = [page.read_text() for page in PAGES]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCKS = [block for text in TEXTS for language, block in FENCED.findall(text) if not language]
LINES = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
LINES += [line for line in re.findall(r"\| `(effvl .*?)` \|", TEXTS[0])]
COMMANDS = [shlex.split(line)[1:] for line in dict.fromkeys(LINES) if line.startswith("effvl ")]
STORED = (
    *("prune-tokens eval", "pretrain eval", "pretrain search", "prompt-tune eval", "prompt-tune export"),
    *("cpr-mine eval", "cpr-mine embed"),
    *("continual add-task", "continual verify", "continual export"),
    *("detect eval", "detect predict", "detect export", "detect bench"),
)
PYTHON = (ROOT / "recipes" / "PYTHON.md").read_text()
EXAMPLES = dict(re.findall(r"^## .*?\(`(\w+)`\).*?^```python\n(.*?)^```", PYTHON, re.M | re.S))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_resolves(effvl, workdir, monkeypatch, words):
    monkeypatch.setattr(execute, "preview", lambda command, config: None)  # it opens data, which a reader has
    (workdir / "recipes").symlink_to(ROOT / "recipes")
    technique, verb = words[0], words[1] if len(words) > 1 else ""
    if f"{technique} {verb}" in STORED:  # a stored run: options alone
        run = workdir / "runs" / technique / "flowers"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"effvl: 1\ncommand: {technique}\nconfig: {{}}\n")
        (run / "state").mkdir()
        (run / "state" / "state.json").write_text("{}")  # continual looks for it; no other technique does
        words = [word.replace("<name>", "flowers") for word in words]
        words = words if any(word.startswith("runs/") for word in words) else [*words, str(run)]
    outcome = effvl(*words, "--dry-run")
    assert outcome.code == 0, outcome.err


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for text in TEXTS for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", text)}
    assert {"demo", "test", "lint", "assets", "mini-prune-tokens", "bench-prune-tokens"} <= targets
    for target in targets:
        known = f"\n{target}:" in makefile
        known |= target.startswith("mini-") and (ROOT / "recipes" / "mini" / f"{target[5:]}.yaml").is_file()
        known |= target.startswith("table-") and (ROOT / "recipes" / "tables" / f"{target[6:]}.yaml").is_file()
        known |= (
            target.startswith("bench-")
            and (ROOT / "tests" / "bench" / f"bench_{target[6:].replace('-', '_')}.py").is_file()
        )
        assert known, target


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "mini").glob("*.yaml")), ids=lambda path: path.stem)
def test_make_unpacks_what_a_miniature_reads(path):
    text = (ROOT / "Makefile").read_text().replace("\\\n", "")
    rules = re.findall(r"^([^#\t\n:=]+): (.*)$", text, re.MULTILINE)
    made, found = {f"mini-{path.stem}"}, -1
    while found != len(made):  # what is made on the way to it, too
        found = len(made)
        made |= {word for targets, words in rules if made & set(targets.split()) for word in words.split()}
    read = set(re.findall(r"runs/data/[\w.-]+", path.read_text()))
    assert all(any(word == name or word.startswith(f"{name}/") for word in made) for name in read), (read, made)


def test_the_readme_is_short_and_every_technique_has_a_page_and_an_example():
    from effvl_cli.cli.commands import names

    assert len(TEXTS[0].splitlines()) <= 250
    for name in names():
        assert f"(recipes/{name}/README.md)" in TEXTS[0]
        assert (ROOT / "recipes" / name / "README.md").is_file()
        assert name.replace("-", "_") in EXAMPLES


def test_links_lead_somewhere():
    for page, text in zip(PAGES, TEXTS, strict=True):
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("technique", EXAMPLES)
def test_the_examples_of_the_python_page_run(technique):
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(EXAMPLES[technique], "recipes/PYTHON.md", "exec"), {"__name__": "example"})
