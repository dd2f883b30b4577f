"""The job and its verbs through the real command, on few digits and a small ResNet."""

import json
from pathlib import Path

import pytest
import timm
import torch

from effvl_cli.core.checkpoint import load_model, read_manifest
from effvl_cli.data import digits
from effvl_cli.engines.prune_blocks import candidates, removal_step
from effvl_cli.models import network as networks
from tests.engines.conftest import keep_few_digits, little_beside, no_programs
from tests.processes import run_without_effvl

METRICS = {
    *("top1_baseline", "top1_pruned", "top5_baseline", "top5_pruned", "loss_baseline", "loss_pruned"),
    *("top1_before_ft", "top1_before_ft_mean", "top1_after_ft", "top1_after_ft_mean"),
    *("params_pruned", "params_removed", "macs_pruned", "macs_removed", "latency_ratio"),
    *("scoring_speedup", "scoring_bit_equal", "scoring_mac_ratio"),
}
MODEL = ("--model", "cifar-resnet:20,width=4", "--latency-batch-size", 2)

pytestmark = pytest.mark.usefixtures("shared_cache", "few_digits")  # the same network is trained once for all jobs here


@pytest.fixture
def job(effvl):
    def run(*more, verb=(), code=0):
        outcome = effvl("prune-blocks", *verb, *more)
        assert outcome.code == code, outcome.err
        return outcome

    return run


@pytest.fixture
def trained(blocks_run):
    """The run whose network the verbs work on."""
    return blocks_run


def little_without_programs(patch):
    for change in (little_beside, no_programs, keep_few_digits):
        change(patch)


@pytest.fixture(scope="session")
def smallest_run(shared):
    """A ResNet-8 that has lost its only removable block: what exporting and timing need, and nothing else."""
    return shared.run(
        "smallest-blocks",
        *("prune-blocks", "--model", "cifar-resnet:8,width=4", "--data", "digits", "--baseline-epochs", 1),
        *("--remove", 1, "--score-size", 3, "--finetune-epochs", 0, "--final-epochs", 0, "--latency-batch-size", 1),
        *("--min-per-stage", 0, "--force"),
        prepare=little_without_programs,
        pictures=False,
    )


ELSEWHERE = """
import json, runpy, torch
images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
found = [runpy.run_path("rebuild.py")["build"](), torch.export.load("model.pt2").module()]
with torch.no_grad():
    print(json.dumps([model(images).tolist() for model in found]))
"""


def test_the_job_reports_draws_and_leaves_what_others_can_load(trained, report):
    done = report(trained)
    assert done.status == "completed" and set(done.metrics) == METRICS
    values = {name: metric.value for name, metric in done.metrics.items()}
    assert values["scoring_bit_equal"] == 1 and values["top1_baseline"] > 0.3
    assert done.metrics["top1_pruned"].n == len(digits.build("", "test"))
    technique = done.technique
    steps = technique["steps"]
    assert [row["k"] for row in steps] == [1, 2] and technique["stopped"] == "target_reached"
    # 3n - 2 of the 3n blocks of a ResNet-(6n + 2): those but the entries of stages 2 and 3
    assert [row["path"] for row in technique["valid_units"]] == [
        *("layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"),
    ]
    # width 4: two 3x3 convolutions and two batch norms
    blocks = {"layer1": 2 * 4 * 4 * 9 + 4 * 4, "layer2": 2 * 8 * 8 * 9 + 4 * 8, "layer3": 2 * 16 * 16 * 9 + 4 * 16}
    assert [row["params"] for row in technique["valid_units"]] == [
        blocks[row["stage"]] for row in technique["valid_units"]
    ]
    assert {row["macs"] for row in technique["valid_units"]} == {2 * 4 * 4 * 9 * 32 * 32}
    gone = sum(blocks[removal["original_path"].partition(".")[0]] for row in steps for removal in row["removed"])
    whole = networks.build("cifar-resnet:20,width=4", seed=0).module
    total = sum(parameter.numel() for parameter in whole.parameters())
    assert values["params_pruned"] == total - gone == steps[-1]["params"]
    for row in steps:
        importance = {unit["path_original"]: unit for unit in row["importance"]}
        best = min(importance.values(), key=lambda unit: (unit["impact_acc"], unit["impact_loss"]))
        assert row["removed"][0]["original_path"] == best["path_original"]
        assert best["ci95"][0] <= best["impact_acc"] <= best["ci95"][1] and best["n_used"] == row["score_images"]
        assert row["latency"] is None and row["ft"]["epochs"] == 1
    assert technique["leak"] == technique["holdout_seen_by_pretraining"] == 0
    for name in ("importance", "accuracy", "pareto"):
        assert (trained / "plots" / f"{name}.png").stat().st_size > 5000
    assert len((trained / "table.csv").read_text().splitlines()) == 3


def test_the_result_loads_where_effvl_cannot_be_imported(trained):
    network = networks.load(None, str(trained), default="", kind="classifier").module.eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = network(images)
    found = json.loads(run_without_effvl(ELSEWHERE, trained).splitlines()[-1])
    assert len(found) == 2
    for logits in found:
        assert torch.equal(torch.tensor(logits), expected)


def test_a_damaged_checkpoint_is_refused(trained, tmp_path, effvl):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["edits"][0]["kind"] = "blocks painted"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    outcome = effvl("prune-blocks", "score", copy, "--out", "a")
    assert outcome.code == 4 and "blocks painted" in outcome.error
    shutil.copy(trained / "manifest.json", copy)
    weights = bytearray((copy / "checkpoint.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "checkpoint.safetensors").write_bytes(weights)
    outcome = effvl("prune-blocks", "score", copy, "--out", "b")
    assert outcome.code == 4, outcome.err


def test_score_and_apply_work_on_a_run(job, trained, report):
    scored = job(trained, "--out", "s", verb=("score",)).out
    assert "the first row would be removed first" in scored and len(report("s").technique["importance"]) == 5
    applied = job(
        *(trained, "--units", "0", "--finetune-epochs", 0, "--final-epochs", 0, "--latency-batch-size", 1),
        *("--out", "a"),
        verb=("apply",),
    )
    assert "step" in applied.out
    edits = load_edits("a")
    assert [removal["step"] for removal in edits] == [1, 2, 3]
    first = report("s").technique["importance"][0]
    assert edits[-1]["original_path"] == first["path_original"]
    # without fine-tuning what is measured is what was scored
    impact = report("a").technique["steps"][0]
    assert impact["top1_score_before_ft"] == pytest.approx(
        report("s").metrics["top1_score"].value - first["impact_acc"]
    )


def test_bench_and_export_work_on_a_run(job, smallest_run, report, programs):
    job(smallest_run, "--batch-size", "1", "--out", "b", verb=("bench",))
    done = report("b")
    assert {row["runtime"] for row in done.technique["bench"]} == {"torch", "onnxruntime"}
    assert set(done.metrics) == {"mac_ratio", "latency_ratio_b1", "onnx_latency_ratio_b1"}
    assert done.metrics["mac_ratio"].value == pytest.approx(1 - report(smallest_run).metrics["macs_removed"].value)
    assert Path("b/pareto.csv").read_text().startswith("step,params,macs,top1,latency_torch,latency_ort,latency_torch_")
    for runtime, short in (("torch", "torch"), ("onnxruntime", "ort")):
        first, row = (row for row in done.technique["bench"] if row["runtime"] == runtime)
        point = done.technique["pareto"][-1]
        span = [point[f"latency_{short}_low"], point[f"latency_{short}_high"]]
        assert span == pytest.approx([first["median_ms"] * end for end in row["ratio_ci95"]])
    job(smallest_run, "--out", "e", verb=("export",))
    assert {path.name for path in Path("e").iterdir()} >= {"model.onnx", "model.pt2", "rebuild.py"}
    one, other = (load_model(folder / "checkpoint.safetensors")[0] for folder in (smallest_run, Path("e")))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_images_that_score_are_never_trained_on_and_always_the_same(job, report, trained):
    ids = [set(digits.build("", split).ids) for split in ("train", "val", "test")]
    assert all(ids) and not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
    digest = []
    for number, seed in enumerate((0, 0, 1)):
        job(trained, "--score-size", 3, "--seed", seed, "--out", number, verb=("score",))
        digest.append(report(str(number)).technique["ids_sha256"])
        assert report(str(number)).technique["score_images"] == 30
    assert digest[0] == digest[1] != digest[2]


FALLS = {7: 0.0, 6: 0.02, 5: 0.06}  # by the blocks that are left


@pytest.mark.parametrize(("limit", "kept"), [(0.01, 0), (0.04, 1)])
def test_a_fall_that_is_too_large_is_taken_back(limit, kept, job, report, trained, monkeypatch):
    """Accuracies are given: what is left of a short training differs between processors."""
    measured = removal_step.figures

    def figures(context, module):
        found = measured(context, module)
        left = sum(type(child).__name__ == "BasicBlock" for child in module.modules())
        found["score"]["top1"] = 0.9 - FALLS[left]
        return found

    monkeypatch.setattr(removal_step, "figures", figures)
    job(*quick(trained, "--remove", 2, "--max-drop", limit))
    done = report("r").technique
    assert done["stopped"] == "max_drop"
    assert [bool(row.get("rejected")) for row in done["steps"]] == [False] * kept + [True]
    assert [0.9 - row["top1_score_after_ft"] for row in done["steps"]] == pytest.approx([0.02, 0.06][: kept + 1])
    assert len(load_edits("r")) == 2 + kept


def load_edits(folder):
    return read_manifest(Path(folder))["edits"][0]["args"]


CRITERIA = ("random", "l1", "bn-scale", "block-influence", "sr-init", "cka")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_proxies_choose_by_their_number(criterion, job, report, trained):
    job(trained, "--criterion", criterion, "--score-size", 2, "--out", "r", verb=("score",))
    rows = report("r").technique["importance"]
    assert report("r").technique["order"][0] == min(range(len(rows)), key=lambda k: rows[k]["importance"])
    assert all(row["impact_acc"] is None and row["ci95"] is None for row in rows)  # unknown is null, not 0


def test_scores_from_a_file(job, report, trained):
    names = [row["path_original"] for row in _scores(job, report, trained)]
    values = [0.5, 0.1, 0.3, 0.4, 0.2]
    Path("s.json").write_text(json.dumps(dict(zip(names, values, strict=True))))
    job(trained, "--criterion", "file:s.json", "--out", "r", verb=("score",))
    assert report("r").technique["order"] == [1, 4, 2, 3, 0]
    Path("s.json").write_text("{}")
    assert "has no value for" in job(trained, "--criterion", "file:s.json", "--out", "q", verb=("score",), code=3).error


def _scores(job, report, trained):
    job(trained, "--score-size", 2, "--out", "scores", verb=("score",))
    return report("scores").technique["importance"]


WRONG = {
    "no target": (("--data", "{folder}", "--baseline-epochs", 1), 2, "nothing says how much to remove"),
    "share": (("--target-params", 1.5), 2, "target-params"),
    "count": (("--remove", 9, "--force", "--baseline-epochs", 1), 2, "at most 6 units"),
    "unreachable": (
        ("--target-macs", 0.99, "--force", "--baseline-epochs", 1), 2, "of the multiply-adds can be removed",
    ),
    "metric": (("--metric", "top5"), 2, "metric"),
    "criterion": (("--criterion", "l2"), 2, "'l2'"),
    "score size": (("--score-size", 5000, "--force", "--baseline-epochs", 1), 2, "--score-size is 5000"),
    "leak": (("--score-split", "test"), 2, "--allow-test-leak"),
    "race": (("--race", "bound", "--criterion", "l1"), 2, "--race bound needs --criterion direct"),
    "pattern": (("--only", "layer9.*", "--force", "--baseline-epochs", 1), 2, "'layer9.*' matches no unit"),
    "no unit": (("--model", "torchvision:squeezenet1_1", "--remove", 1, "--baseline-epochs", 1), 4, "no removable"),
    "chance": (
        ("--model", "cifar-resnet:14,width=2", "--baseline-epochs", 1, "--baseline-lr", 1e-9), 4, "chance is 10.0%",
    ),
    "half": (("--unit", "half", "--force", "--baseline-epochs", 1), 4, "no ViT blocks"),
    "weights": (("--weights", "nothing.safetensors"), 4, "nothing.safetensors"),
    "filtered": (("--min-per-stage", 3, "--force", "--baseline-epochs", 1, "--only", "layer1.0"), 4, "no removable"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests(name, effvl, image_folder):
    words, code, part = WRONG[name]
    words = [str(word).replace("{folder}", f"folder:{image_folder}") for word in words]
    model = () if "--model" in words else MODEL[:2]
    outcome = effvl("prune-blocks", *model, *words, "--out", "r")
    assert (outcome.code, part in outcome.error) == (code, True), outcome.err


def test_weights_of_other_classes_or_networks(effvl, trained, image_folder, report):
    line = ("prune-blocks", "--weights", trained, "--data", f"folder:{image_folder}", "--remove", 1)
    outcome = effvl(*line, "--out", "a")
    assert outcome.code == 3 and "have 10 classes, and the data have 2" in outcome.error
    outcome = effvl("prune-blocks", "--weights", trained, "--model", "cifar-resnet:20", "--out", "b")
    assert outcome.code == 4 and "not of --model cifar-resnet:20" in outcome.error
    short = ("--baseline-epochs", 2, "--baseline-batch-size", 8, "--finetune-epochs", 0, "--final-epochs", 0)
    outcome = effvl(*line, "--new-head", "--force", *short, "--latency-batch-size", 1, "--out", "c")
    assert outcome.code == 0, outcome.err
    assert report("c").technique["baseline"]["epochs"] == 2
    torch.save({"fc.weight": torch.zeros(2, 2)}, "w.pt")
    outcome = effvl("prune-blocks", "--model", "cifar-resnet:14", "--weights", "w.pt", "--out", "d")
    assert outcome.code == 4 and "missing" in outcome.error


def test_apply_refuses_what_is_no_block(effvl, trained):
    wrong = {"": "names no block", "9": "'9'", "layer2.0": "not a removable", "0,0": "a second time"}
    for number, (units, part) in enumerate(wrong.items()):
        words = ("--units", units) if units else ()
        outcome = effvl("prune-blocks", "apply", trained, *words, "--out", f"r{number}")
        assert outcome.code == 2 and part in outcome.error, outcome.err


def test_verbs_need_a_run(effvl, workdir, trained):
    for verb in ("score", "apply", "bench", "export"):
        outcome = effvl("prune-blocks", verb, "--out", verb)
        assert outcome.code == 3 and "effvl prune-blocks" in outcome.error
    outcome = effvl("prune-blocks", "score", trained, "--weights", trained, "--out", "both")
    assert outcome.code == 2 and "Give one of them" in outcome.error


def test_leaked_scores_are_marked_everywhere(job, report, trained):
    outcome = job(
        *("--weights", trained, "--score-split", "test", "--allow-test-leak", "--score-size", 2, "--remove", 1),
        *("--finetune-epochs", 0, "--final-epochs", 0, "--latency-batch-size", 1, "--out", "r"),
    )
    assert report("r").technique["leak"] == 1 and "LEAKED" in outcome.out
    assert any("LEAK" in text for text in report("r").warnings)


def test_a_dry_run_shows_units_and_cost(effvl):
    outcome = effvl("prune-blocks", "--model", "cifar-resnet:20", "--dry-run")
    assert outcome.code == 0 and "7 removable, 2 rejected" in outcome.out
    assert "291.4 MMACs naively, 168.0 shared (1.73x)" in outcome.out  # 8 F - 7 u, F = 40,551,040, u = 4,718,592
    assert "each pair" not in outcome.out
    words = ("--search", "pairs", "--blocks-per-step", 2, "--min-per-stage", 0, "--dry-run")
    outcome = effvl("prune-blocks", "--model", "cifar-resnet:20", *words)
    assert "scoring each pair, for one image: 693.9 MMACs naively" in outcome.out  # 22 F - 42 u
    assert not Path("runs").exists()


def quick(trained, *more, out="r"):
    """Removal from a trained network without fine-tuning."""
    return (
        *("--weights", trained, "--score-size", 3, "--finetune-epochs", 0, "--final-epochs", 0),
        *("--latency-batch-size", 1, "--out", out, *more),
    )


@pytest.mark.parametrize("search", ["pairs", "beam"])
def test_sets_of_blocks_are_scored_and_go_together(search, job, report, trained):
    job(*quick(trained, "--search", search, "--blocks-per-step", 2, "--remove", 2))
    (step,) = report("r").technique["steps"]
    pairs = step["importance"]
    names = [row["path_original"] for row in pairs]
    assert all(name.count("+") == 1 for name in names) and len(set(names)) == len(names)
    best = min(pairs, key=lambda row: (row["impact_acc"], row["impact_loss"]))
    assert "+".join(removal["original_path"] for removal in step["removed"]) == best["path_original"]
    if search == "pairs":
        singles = sorted({name for row in names for name in row.split("+")})
        stages = [name.partition(".")[0] for name in singles]
        whole = len(singles) * (len(singles) - 1) // 2
        barred = sum(
            stages.count(stage) == 2 for stage in set(stages)
        )  # where two of three blocks are left, one may go
        assert whole - barred <= len(pairs) <= whole


def test_a_lookahead_goes_on_with_the_candidate_that_recovers_best(job, report, trained):
    job(*quick(trained, "--lookahead", "2:0.1", "--remove", 1))
    (step,) = report("r").technique["steps"]
    tried = step["lookahead"]
    assert len(tried) == 2
    best = max(tried, key=lambda row: (row["top1"], -row["loss"]))
    assert step["removed"][0]["original_path"] == best["path_original"]
    assert step["top1_score_after_ft"] == pytest.approx(best["top1"])  # its weights, and no further training


def test_scores_with_statistics_of_batch_norm_without_the_unit(job, report, trained):
    """Of the units that are scored alone, against a network that really lost one and was recalibrated."""
    words = ("--score-bn", "recal", "--bn-recal", 40, "--score-size", 5, "--seed", 0)  # a verb takes its run's
    job(trained, *words, "--out", "s", verb=("score",))
    job(trained, "--score-size", 5, "--out", "plain", verb=("score",))
    scored, plain = report("s").technique, report("plain").technique
    assert scored["score_bn"] == "recal" and plain["score_bn"] == "keep" and scored["sharing"] == "chain"
    assert [r["impact_loss"] for r in scored["importance"]] != [r["impact_loss"] for r in plain["importance"]]
    short = ("--finetune-epochs", 0, "--final-epochs", 0, "--latency-batch-size", 1)
    job(*words, "--weights", trained, "--remove", 1, *short, "--out", "r")
    (step,) = report("r").technique["steps"]
    assert step["score_bn"] == "recal" and step["bit_exact"] == 1
    row = next(r for r in step["importance"] if r["path_original"] == step["removed"][0]["original_path"])
    assert row["impact_acc"] == min(r["impact_acc"] for r in step["importance"])
    first = next(r for r in scored["importance"] if r["path_original"] == row["path_original"])
    assert first["impact_loss"] == row["impact_loss"]


def test_stacked_candidates_are_chosen_from_alike_and_marked(job, report, trained):
    job(*quick(trained, "--score-stack", 3, "--remove", 1))
    (step,) = report("r").technique["steps"]
    assert (step["sharing"], step["bit_exact"]) == ("stack", 0)
    job(*quick(trained, "--remove", 1, "--fresh"))
    (plain,) = report("r").technique["steps"]
    assert (plain["sharing"], plain["bit_exact"]) == ("chain", 1) and plain["removed"] == step["removed"]
    for one, other in zip(step["importance"], plain["importance"], strict=True):
        assert one["impact_acc"] == other["impact_acc"]
        assert one["impact_loss"] == pytest.approx(other["impact_loss"], abs=1e-4)


def test_a_fresh_start_leaves_nothing_of_the_run_before(job, report, trained, program_files):
    job(*quick(trained, "--remove", 2))
    assert {path.name for path in Path("r/scores").iterdir()} == {"step_1.safetensors", "step_2.safetensors"}
    assert {path.name for path in Path("r").iterdir()} >= {"table.csv", "model.pt2", "rebuild.py", "plots"}
    outcome = job(*quick(trained, "--remove", 1, "--criterion", "random"), code=2)
    assert "--fresh" in outcome.err
    job(*quick(trained, "--remove", 1, "--criterion", "random", "--max-drop", 0.0, "--fresh"))
    assert not Path("r/scores").exists()
    done = report("r")
    assert done.resume.count == 0 and len(done.technique["steps"]) == 1
    listed = {artifact.path for artifact in done.artifacts}
    assert {"table.csv", "model.pt2", "rebuild.py"} <= listed
    for path in ("table.csv", "model.pt2", "rebuild.py", "plots/pareto.png"):
        assert Path("r", path).exists() == (path in listed), path


def test_impacts_over_latency(job, report, trained, monkeypatch):
    calls, discover = [], candidates.discover
    monkeypatch.setattr(candidates, "discover", lambda *words, **more: calls.append(1) or discover(*words, **more))
    job(*quick(trained, "--impact-per", "latency", "--remove", 1))
    assert len(report("r").technique["steps"]) == 1
    assert len(calls) == 1  # weights that are given do not change between the check and the first step


def test_halves_of_a_vit_go_one_by_one(effvl, report, image_folder, programs, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *words, **more: create(*words, **more, depth=2))  # instead of 6
    line = ("prune-blocks", "--data", f"folder:{image_folder}", "--model", "timm:test_vit", "--unit", "half", "--force")
    short = ("--baseline-epochs", 1, "--baseline-batch-size", 8, "--finetune-epochs", 0, "--final-epochs", 0)
    outcome = effvl(*line, *short, "--remove", 1, "--latency-batch-size", 1, "--out", "r")
    assert outcome.code == 0, outcome.err
    units = [row["path"] for row in report("r").technique["valid_units"]]
    assert len(units) == 4 and all(path.endswith(("_attention", "_mlp")) for path in units)
    network = networks.load(None, "r", default="", kind="classifier")
    assert [edit["kind"] for edit in network.edits] == ["halves", "blocks removed"]
    assert (Path("r") / "model.pt2").is_file() and not (Path("r") / "rebuild.py").exists()
    assert any("split in halves" in text for text in report("r").warnings)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--search", "pairs"), "--blocks-per-step 2"),
        (("--search", "beam", "--blocks-per-step", 2, "--rescore", "once"), "--rescore every"),
        (("--lookahead", "2"), "Write M:E"),
        (("--lookahead", "2:0"), "E above 0"),
        (("--lookahead", "2:1", "--blocks-per-step", 2), "Remove one unit at a time"),
        (("--score-bn", "recal"), "--bn-recal 512"),
        (("--score-bn", "recal", "--bn-recal", 9, "--search", "pairs", "--blocks-per-step", 2), "--search single"),
        (("--score-stack", 2, "--sharing", "off"), "--sharing auto or chain"),
        (("--score-stack", 2, "--score-bn", "recal", "--bn-recal", 9), "Give --score-stack 1"),
        (("--score-stack", 2, "--search", "pairs", "--blocks-per-step", 2), "Give --score-stack 1"),
    ],
)
def test_searches_that_cannot_be(words, part, effvl):
    outcome = effvl("prune-blocks", *MODEL, *words, "--out", "r")
    assert outcome.code == 2 and part in outcome.error
    assert not Path("r").exists()  # seen before a run is opened
