"""Whatever stands in a recipe, a claim, a schedule or a report: it is read, or refused by an error of one line."""

import json
import math
import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effvl_cli.config.pretrain import parse_budget
from effvl_cli.config.recipe_file import read_recipe
from effvl_cli.core import claims, sweep_check
from effvl_cli.core.checkpoint import MANIFEST, StepFolders, save_model
from effvl_cli.core.errors import EffvlError, ModelError, UsageError
from effvl_cli.core.files import read_numbers
from effvl_cli.core.report import ReportBuilder, read_report
from effvl_cli.core.sweep_table import tabulate
from effvl_cli.models import edits, token_pruned_clip
from effvl_cli.models import network as networks
from effvl_cli.techniques.pretrain.schedule import is_written, schedule_from, stages_from

FIGURES = {0: {"a-x": {"m": 0.5, "m.se": 0.1}, "b": {"m": 0.25}}, 1: {"b": {"m": 0.5}}}
MANY = [pytest.param(200, id="200"), pytest.param(10_000, id="10000", marks=pytest.mark.faults)]
WORDS = {
    "claim": [
        *("a_x.m", "b.m", "a_x.m.se", ">=", "<", "+", "-", "*", "/", "(", ")", "mean(", "se(", "1e308", "9" * 400, "0"),
        *(" ", ".", "**", "\ud800", "\0", "lambda:", "[", "1j", "b", "x", "\n", "#", "'", "if", "0x", "_", "é"),
    ],
    "yaml": [
        *(
            "effvl: 1\n",
            "command: pretrain\n",
            "config:",
            "arms:",
            "seeds:",
            "claims:",
            "reference:",
            "expected:",
            "run:",
        ),
        *(" ", "\n", "- ", "{", "}", "[", "]", ": ", ",", "a", "1", "&x ", "*x", "!!python/none ", "? ", "|", ">", "'"),
        *('"', "#", "metric: m", "like: a", "inherited:", "\t", "\\x00", "\ufeff", "baseline: a\n", "%YAML 9.9\n---\n"),
    ],
    "schedule": [
        *("constant", "0.3", "1", "50%", "1e-1", ":", ";", ",", "=", "patch", "keep", "keep-k", "8", "inf", "nan", " "),
        *("-1", "0", "1e400", "9" * 400, "%", "é", "\0", "until", "_"),
    ],
    "json": [
        *("{", "}", "[", "]", '"metrics"', '"technique"', ":", ",", "null", "1e999", "NaN", '"a"', "1", " ", "\\ud800"),
        *("true", '"schema_version"', "9" * 400),
    ],
}


def texts(kind: str) -> st.SearchStrategy[str]:
    """Words of a language in any order, and any other characters between them."""
    return st.lists(st.sampled_from(WORDS[kind]) | st.text(max_size=3), max_size=25).map("".join)


def hold(count, strategy, check):
    """Run a check on so many examples; what it raises of ours is an answer."""

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(value):
        try:
            check(value)
        except EffvlError as error:
            assert str(error)

    one()


@pytest.mark.parametrize("count", MANY)
def test_claims(count):
    def check(text):
        claims.arms_of(text, ["a-x", "b"])
        assert claims.judge(text, FIGURES).passed in (True, False)

    hold(count, texts("claim"), check)


@pytest.mark.parametrize("count", MANY)
def test_recipes(count, tmp_path):
    path = tmp_path / "r.yaml"

    def check(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        recipe = read_recipe(path)
        assert isinstance(recipe.command, str)
        assert all(isinstance(value, str) for value in recipe.config.values())
        if recipe.arms:
            assert all(sweep_check.faults(recipe, tmp_path, lambda run, before: recipe))

    hold(count, texts("yaml") | texts("yaml").map(lambda text: f"effvl: 1\ncommand: pretrain\n{text}"), check)


@pytest.mark.parametrize("count", MANY)
def test_schedules(count):
    def check(text):
        is_written(text)
        try:
            schedule = schedule_from({"stages": stages_from(text, patch=4)})
        except ValueError as error:
            assert str(error)
        else:
            assert schedule.stages[-1].until == 1
            assert all(stage.compression.patch >= 1 and 0 < stage.compression.keep_q <= 1 for stage in schedule.stages)
        try:
            assert (parse_budget(text) or 1) > 0
        except ValueError as error:
            assert "--budget" in str(error)

    hold(count, texts("schedule"), check)


@pytest.fixture(scope="module")
def stored():
    builder = ReportBuilder(
        command="pretrain", run_id="x", seed=3, config_sha256="ab", recipe=None, device=torch.device("cpu")
    )
    builder.metric("top1", 0.5, n=10, se=0.1)
    return json.loads(builder.finish("completed").to_json())


PLAIN = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.sampled_from([2**63, -(2**63), 10**400])
    | st.text(max_size=5)
)
TREES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


def places(tree, above=()):
    """Keys on the way to everything within JSON, the outermost first."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from places(value, (*above, key))


def changed(tree) -> st.SearchStrategy[str]:
    """Good JSON with one of its values, at any depth, left out or replaced by any other."""
    text = json.dumps(tree)

    def change(where, value, left_out):
        found = holder = json.loads(text)
        for key in where[:-1]:
            holder = holder[key]
        if left_out:
            del holder[where[-1]]
        else:
            holder[where[-1]] = value
        return json.dumps(found)

    return st.builds(change, st.sampled_from(list(places(tree))), TREES, st.booleans())


@pytest.mark.parametrize("count", MANY)
def test_reports(count, tmp_path, stored):
    """Any text, and a good report with one of its values replaced by any JSON."""
    path = tmp_path / "report.json"

    def check(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        read_report(path)
        tabulate([path])

    hold(count, texts("json") | changed(stored), check)


REMOVAL = {"step": 1, "original_path": "layer1.1", "path_at_step": "layer1.1", "mode": "delete"}


@pytest.mark.parametrize("count", MANY)
def test_manifests_of_networks(count, tmp_path):
    """Any text, and a good manifest with one of its values changed, beside weights that it may still fit."""
    network = networks.build("cifar-resnet:14,width=1", seed=0, num_classes=3)
    network.edits = [{"kind": "blocks removed", "args": [REMOVAL]}]
    edits.apply_edits(network.module, network.edits)
    save_model(tmp_path / networks.CHECKPOINT, network.module.state_dict(), network.describe())
    path, folder = tmp_path / MANIFEST, str(tmp_path)

    def check(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        found = networks.load(None, folder, default="cifar-resnet:14,width=1", kind="classifier")
        assert found.module.fc.out_features == 3 and min(found.preprocess.size) > 0 and min(found.preprocess.std) > 0
        assert isinstance(edits.in_words(found.edits), str)

    good = json.loads(path.read_text())
    check(json.dumps(good))
    hold(count, texts("json") | changed(good), check)


@pytest.mark.parametrize("count", MANY)
def test_manifests_of_prune_tokens(count, tmp_path):
    predictor = token_pruned_clip.make_predictor("linear", num_patches=4, num_prefix=1, dim=2, width=2)
    state, manifest = token_pruned_clip.contents(
        token_pruned_clip.Artefact(predictor, None, {"predictor": {"prompted": False}}),
        fields={"model": "tiny:clip", "weights": "ab", "layer": 0, "patches": 4, "prefix": 1, "width": 2},
        base={"weights": None, "weights_key": None, "seed": 0},
        ranking={"data": "x"},
        keep=0.5,
        any_keep=False,
        class_weights=torch.ones(2, 3),
        about={"classes": ["a", "b", "c"], "templates": ["{}"], "preprocess": {"size": [8, 8]}},
    )
    file, path = tmp_path / networks.CHECKPOINT, tmp_path / MANIFEST
    save_model(file, state, manifest)

    def check(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        state, manifest = token_pruned_clip.read(file)
        parts = token_pruned_clip.Artefact(*token_pruned_clip.modules_of(state, manifest), manifest)
        assert parts.prompted in (True, False) and parts.any_keep in (True, False)
        assert parts.tuned_for([0.25, 1]) in ([], [0.25], [1], [0.25, 1])
        assert isinstance(token_pruned_clip.ranking_of(tmp_path), dict)

    good = json.loads(path.read_text())
    check(json.dumps(good))
    hold(count, texts("json") | changed(good), check)


@pytest.mark.parametrize("count", MANY)
def test_manifests_of_training_states(count, tmp_path):
    """A damaged one is left out with a warning, and the step before it counts."""
    steps = StepFolders(tmp_path)
    for step in (1, 2):
        steps.save(step, {"a": torch.full((2,), float(step))}, {"step": step}, best=None)
    path, warnings = tmp_path / "step-00000002" / MANIFEST, []

    def check(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        warnings.clear()
        found = steps.latest(warnings.append)
        assert found is not None and found.step == 2 - len(warnings)
        assert found.state == {"step": found.step} and torch.equal(
            found.model["a"], torch.full((2,), float(found.step))
        )

    good = json.loads(path.read_text())
    check(json.dumps(good))
    assert not warnings
    hold(count, texts("json") | changed(good), check)


@pytest.mark.parametrize("count", MANY)
def test_scores_from_files(count, tmp_path):
    """SCORES.json of --criterion file:SCORES.json and the like: finite numbers, or refused."""
    path, names = tmp_path / "scores.json", ["layer1.1", "a"]

    def check(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        found = read_numbers(path, names, f"--criterion file:{path}", "{}")
        assert len(found) == 2 and all(math.isfinite(value) for value in found)

    good = {"layer1.1": 0.02, "a": -1, "more": 2}
    check(json.dumps(good))
    entries = st.fixed_dictionaries({name: TREES for name in names}).map(json.dumps)
    hold(count, texts("json") | changed(good) | entries, check)


# --- what was found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claim",
    [
        "b.m > " + "9" * 400,
        "b.m > " + "9" * 4800,
        " + ".join(["b.m"] * 700) + " > 0",
        " + ".join(["b.m"] * 3000) + " > 0",
        "-" * 900 + "b.m > 0",
        "-" * 5000 + "b.m > 0",
        "(" * 900 + "b.m" + ")" * 900 + " > 0",
        "b" + ".m" * 1500 + " > 0",
        "b.m > '\ud800'",
        "b.m > 0 \0",
    ],
    ids=lambda claim: f"{claim[:12]!r}-{len(claim)}",
)
def test_a_claim_beyond_measure_is_refused_in_one_short_line(claim):
    for judge in (lambda: claims.judge(claim, FIGURES), lambda: claims.arms_of(claim, ["b"])):
        with pytest.raises(UsageError) as caught:
            judge()
        assert len(str(caught.value)) < 400


def test_figures_near_the_largest_number_have_a_spread():
    by_seed = {seed: {"b": {"m": value}} for seed, value in enumerate((1e200, -1e200))}
    assert claims.judge("b.m >= 0", by_seed).se is not None


@pytest.mark.parametrize("depth", [30, 1500, 20_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}"), ("- ", "")])
def test_yaml_nested_deeply_is_refused_at_once(effvl, workdir, depth, opening, closing):
    Path("r.yaml").write_text(f"effvl: 1\ncommand: pretrain\nconfig:\n  {opening * depth}a{closing * depth}\n")
    before = time.process_time()
    outcome = effvl("pretrain", "--recipe", "r.yaml")
    assert (outcome.code, outcome.error) == (
        2,
        "error: r.yaml is nested more than 20 deep. Recipes are flat: one option per line",
    )
    assert time.process_time() - before < 3  # 20,000 deep took 14 s


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("0.3:patch=8, keep=0.5; 1:patch=4", [(0.3, 8, 0.5), (1, 4, 1)]),
        ("0.3:patch=8,keep=0.5;1:;", [(0.3, 8, 0.5), (1, 4, 1)]),
        (" constant : keep = 0.25 ", [(1, 4, 0.25)]),
        ("50%:keep=0.5;100%:", [(0.5, 4, 0.5), (1, 4, 1)]),
        ("1e-1:patch=8;1e0:", [(0.1, 8, 1), (1, 4, 1)]),
    ],
)
def test_schedules_as_people_write_them(text, stages):
    assert is_written(text)
    found = schedule_from({"stages": stages_from(text, patch=4)})
    assert [(s.until, s.compression.patch, s.compression.keep_q) for s in found.stages] == stages


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1:patch=inf", "patch is inf, which is not finite"),
        ("1:patch=nan", "patch is nan"),
        ("1:patch=8,patch=4", "stage 0: patch is given twice"),
        ("inf:patch=8", "until is inf"),
        ("0.5:patch=8;;1:", "stage 1: cannot read ''"),
        ("1:patch", "cannot read 'patch'"),
        ("%:patch=8", "until is '%', which is not a number"),
    ],
)
def test_schedules_that_mean_nothing(text, part):
    with pytest.raises(ValueError, match=part.replace("(", r"\(")):
        schedule_from({"stages": stages_from(text, patch=4)})


@pytest.mark.parametrize("data", [None, [], "abc", {"stages": [{"until": "inf", "patch": 4}], "unit": "steps"}])
def test_schedule_files_that_hold_something_else(data):
    with pytest.raises(ValueError, match=r"not a mapping|not finite"):
        schedule_from(data)


@pytest.mark.parametrize(
    ("text", "value"), [("550K", 550e3), ("550k", 550e3), ("100_000", 1e5), ("1e+5", 1e5), ("2.5M", 2.5e6)]
)
def test_budgets_as_people_write_them(text, value):
    assert parse_budget(text) == value


@pytest.mark.parametrize("text", ["9" * 400, "1e400", "_1", "1__0", "550m", "-1", "k"])
def test_budgets_that_mean_nothing(text):
    with pytest.raises(ValueError, match="--budget is"):
        parse_budget(text)


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"prune-tokens eval {LONG}", 4),
        (f"pretrain eval {LONG}", 4),
        (f"table {LONG}", 3),
        (f"table {LONG}.yaml", 2),
        (f"sweep {LONG}", 2),
        (f"prune-tokens --recipe {LONG}", 2),
        (f"prune-tokens --out {LONG}", 2),
        (f"pretrain --budget 1k --schedule {LONG}", 2),
    ],
    ids=lambda value: str(value)[:28],
)
def test_a_path_that_is_too_long_is_one_short_line(effvl, line, code):
    outcome = effvl(*line.split())
    assert outcome.code == code, outcome.err[:300]
    assert len(outcome.error) < 600


def test_a_written_schedule_may_be_longer_than_a_path(effvl, workdir):
    stages = ";".join(f"{k / 100}:patch=8,keep=0.5" for k in range(1, 101))
    outcome = effvl(
        *("pretrain", "--budget", 200, "--model", "vit:nano/4@24,mean", "--schedule", stages, "--baseline", "--dry-run")
    )
    assert outcome.code == 0, outcome.err
    from effvl_cli.config.pretrain import PretrainConfig
    from effvl_cli.core.run import input_digests

    assert input_digests(PretrainConfig(schedule=stages)) == {}


@pytest.mark.parametrize(("option", "value"), [("--name", os.fsdecode(b"a\xff")), ("--templates", "a {} \udc80")])
def test_bytes_that_are_no_text_are_refused(effvl, option, value):
    outcome = effvl("prune-tokens", option, value)
    assert outcome.code == 2 and f"{option} is" in outcome.error and "UTF-8" in outcome.error


def test_a_report_of_a_later_version_is_refused(effvl, workdir, stored):
    Path("run").mkdir()
    Path("run/report.json").write_text(json.dumps({**stored, "schema_version": 2}))
    outcome = effvl("table", "run")
    assert outcome.code == 4 and "has schema_version 2, and this version of effvl reads 1" in outcome.error
    with pytest.raises(ModelError):
        read_report(Path("run/report.json"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("reference: {expected: [a]}\n", "reference.expected"),
        ("reference: {expected: [{metric: [a]}]}\n", "reference.expected"),
        ("reference: {expected: [{metric: a, value: much}]}\n", "value of 'a'"),
        ("run: {inherited: [a]}\n", "run.inherited"),
        ('config: {name: "a\\0b"}\n', "name is 'a\\\\x00b'"),
    ],
)
def test_a_recipe_with_other_things_in_it(effvl, workdir, text, part):
    Path("r.yaml").write_text(f"effvl: 1\ncommand: prune-tokens\n{text}")
    outcome = effvl("prune-tokens", "--recipe", "r.yaml", "--dry-run")
    assert outcome.code == 2 and part.replace("\\\\", "\\") in outcome.error
