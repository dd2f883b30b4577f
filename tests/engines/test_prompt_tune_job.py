"""The job of prompt-tune through the real command, on few images."""

import csv
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from effvl_cli.core.checkpoint import load_model
from effvl_cli.core.records import Records
from effvl_cli.data import load
from effvl_cli.engines.prompt_tune.tables import results
from effvl_cli.models.network import load as load_network
from effvl_cli.models.tiny import ASSETS
from effvl_cli.models.tuned_prompts import load_tuned
from tests.conftest import keep_few_images
from tests.engines.conftest import FEW_PROMPTS, PROMPT_METHODS
from tests.kills import KilledError, assert_same_result

ARMS = ("zero_shot", "linear_probe", "prompt_ce", "prompt_gce")
FIGURES = ("top1", "top5", "macro_acc", "macro_f1", "ece15")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    keep_few_images(monkeypatch)


@pytest.fixture
def tune(effvl, shared_cache):
    def run(*more):
        return effvl("prompt-tune", *FEW_PROMPTS, *more)

    return run


def test_every_method_has_its_figures_at_both_noise_rates(prompts_run, report):
    done = report(prompts_run)
    names = {f"{figure}_{arm}{suffix}" for figure in FIGURES for arm in ARMS for suffix in ("", "_clean")}
    suspects = {f"suspects_{figure}{end}" for figure in ("auroc", "precision") for end in ("", "_zero_shot")}
    named = names | suspects | {f"auc_{arm}" for arm in ARMS}
    assert named <= set(done.metrics)
    assert {name.split("_")[0] for name in set(done.metrics) - named} <= {"grad", "gain"}
    assert all(done.metrics[f"top1_{arm}"].n == 48 for arm in ARMS)
    rows = done.technique["results"]
    assert [row["key"] for row in rows] == [f"{arm}{end}" for end in ("_clean", "") for arm in ARMS]
    for arm in ARMS:  # a straight line between two rates: their mean
        two = [done.metrics[f"top1_{arm}{end}"].value for end in ("", "_clean")]
        assert done.metrics[f"auc_{arm}"].value == pytest.approx(sum(two) / 2)


def test_zero_shot_is_what_open_clip_computes(prompts_run, report):
    network, source = load_network("tiny:clip", None, default="", kind="clip"), load("shape-captions:sketch", "test")
    module = network.module.eval()
    pixels = torch.stack([network.preprocess.to_uint8(source.image(place)) for place in range(48)])
    with torch.no_grad():
        texts = open_clip.build_zero_shot_classifier(module, network.tokenize, source.classes, source.templates)
        logits = module.encode_image(network.preprocess.normalise(pixels), normalize=True) @ texts
    right = (logits.argmax(1) == torch.as_tensor(source.labels[np.arange(48)])).float().mean()
    assert report(prompts_run).metrics["top1_zero_shot"].value == pytest.approx(float(right))
    stored = load_file(prompts_run / "logits.safetensors")["zero_shot"]
    assert torch.allclose(stored, module.logit_scale.exp() * logits, atol=0.02)  # features kept in half precision


def _logits(split, places, weights=None):
    """Zero-shot logits by open_clip's own means, with the scale."""
    network, source = load_network("tiny:clip", weights, default="", kind="clip"), load("shape-captions:sketch", split)
    module = network.module.eval()
    pixels = torch.stack([network.preprocess.to_uint8(source.image(place)) for place in places])
    with torch.no_grad():
        texts = open_clip.build_zero_shot_classifier(module, network.tokenize, source.classes, source.templates)
        cosines = module.encode_image(network.preprocess.normalise(pixels), normalize=True) @ texts
    return module.logit_scale.exp().detach() * cosines


def _predicted(split, places):
    """What zero-shot by open_clip's own means says."""
    return _logits(split, places).argmax(1).tolist()


def test_both_rates_and_all_methods_share_one_noise_json(prompts_run, report):
    noise = json.loads((prompts_run / "noise.json").read_text())
    clean, noisy = noise["sets"]
    assert (clean["rate"], noisy["rate"], noisy["rate_realised"]) == (0.0, 0.5, 0.5)
    assert not any(row["flipped"] for row in clean["records"])
    assert sum(row["flipped"] for row in noisy["records"]) == 30  # one of two in each of 30 classes
    told = report(prompts_run).technique["noise"][1]
    assert told["flipped_ids"] == [row["sample_id"] for row in noisy["records"] if row["flipped"]]


def test_suspects_are_ranked_and_the_figures_follow_from_the_table(prompts_run, report):
    rows = list(csv.DictReader((prompts_run / "suspects.csv").open()))
    suspicion = [float(row["suspicion"]) for row in rows]
    flipped = [int(row["flipped"]) for row in rows]
    assert suspicion == sorted(suspicion, reverse=True) and [int(row["rank"]) for row in rows] == [*range(1, 61)]
    metrics = report(prompts_run).metrics
    assert metrics["suspects_auroc"].value == pytest.approx(roc_auc_score(flipped, suspicion), abs=1e-3)
    assert metrics["suspects_precision"].value == pytest.approx(sum(flipped[:30]) / 30)
    assert metrics["suspects_auroc"].value > 0.8
    wrong = next(row for row in rows if row["flipped"] == "1")
    assert wrong["given"] != wrong["suggested"] or wrong["given_label"] == wrong["suggested_label"]
    assert (prompts_run / "plots" / "suspects.png").stat().st_size > 5000


def test_pictures_of_noise_classes_and_gradients(prompts_run):
    for name in ("accuracy", "transition", "classes", "gradients", "suspects"):
        assert (prompts_run / "plots" / f"{name}.png").stat().st_size > 5000, name


def test_gradients_are_recorded_at_the_first_and_last_epochs(prompts_run):
    rows = [json.loads(line) for line in (prompts_run / "grads.jsonl").read_text().splitlines()]
    assert {(row["method"], row["rate"]) for row in rows} == {
        (arm, rate) for arm in ("prompt_ce", "prompt_gce") for rate in (0.0, 0.5)
    }
    noisy = [row for row in rows if row["rate"] == 0.5 and row["method"] == "prompt_ce"]
    assert [row["epoch"] for row in noisy] == [0] * 4 + [1] * 4 + [2] * 4
    for clean, wrong in zip(noisy[::2], noisy[1::2], strict=True):
        assert (clean["group"], wrong["group"], clean["n"], wrong["n"]) == ("clean", "noisy", 30, 30)
        assert (clean["alignment"] + wrong["alignment"]) / 2 == pytest.approx(1, abs=1e-3)


def test_the_checkpoint_holds_class_weights_and_what_made_them(prompts_run):
    state, manifest = load_model(prompts_run / "checkpoint.safetensors")
    arms = {row["key"]: row for row in manifest["arms"]}
    assert set(arms) == {f"{arm}{end}" for arm in ARMS for end in ("", "_clean")}
    assert arms["prompt_gce"]["learned"] == ["context"] and state["prompt_gce.learned.context"].shape == (4, 64)
    assert state["prompt_gce.weight"].norm(dim=1) == pytest.approx(torch.ones(30), abs=1e-5)
    assert not arms["linear_probe"]["normalize"] and state["linear_probe.bias"].shape == (30,)
    assert not torch.equal(state["prompt_ce.weight"], state["prompt_ce_clean.weight"])


def test_every_method_is_trained_and_measured(all_prompts_run, report):
    rows = {row["method"]: row for row in report(all_prompts_run).technique["results"]}
    assert tuple(rows) == PROMPT_METHODS
    assert all(0 <= row["top1"] <= 1 for row in rows.values())
    trained = {"classifier-c": 30 * 64, "classifier-r": 30 * 64, "prompt": 4 * 64}
    assert {method: rows[method]["about"]["params"] for method in trained} == trained
    assert rows["full-prompt"]["about"]["params"] == 4 * 64 + rows["cls-tuning"]["about"]["params"]
    assert rows["cls-random"]["about"]["params"] == 4 * 64
    assert rows["tenc-ft"]["about"]["params"] > 50_000
    # one epoch at a rate of 1e-5 leaves them where they started
    sweep = rows["linear-probe-sweep"]["about"]
    tried = {found["c"]: found["top1_val"] for found in sweep["tried"]}
    assert len(tried) == len(sweep["tried"]) >= 9 and {1e6, 1e-6} <= set(tried)
    best = {penalty for penalty, top1 in tried.items() if top1 == max(tried.values())}
    assert any(penalty == pytest.approx(sweep["c"], rel=1e-5) for penalty in best)
    assert all(1e-7 <= penalty <= 1e7 and 0 <= top1 <= 1 for penalty, top1 in tried.items())
    assert f"{len(tried)} tried" in results(report(all_prompts_run)).notes[0]
    assert rows["classifier-c"]["top1"] == rows["tenc-ft"]["top1"] == rows["zero-shot"]["top1"]


def test_tuned_prompts_come_back_as_a_part_of_the_clip(all_prompts_run):
    state, manifest = load_model(all_prompts_run / "checkpoint.safetensors")
    prompted = {row["method"]: row["key"] for row in manifest["arms"] if row["edit"]}
    assert set(prompted) == {"prompt", "full-prompt", "cls-tuning", "cls-random"}
    for key in prompted.values():
        weight = load_tuned(all_prompts_run, key).prompts()
        assert (weight - state[f"{key}.weight"]).abs().max() < 1e-5


def test_a_run_killed_within_a_training_ends_with_the_same_bits(tune, own_cache, monkeypatch):
    line = ("--method", "linear-probe,prompt", "--loss", "gce", "--save-every", 1, "--log-every", 1)
    assert tune(*line, "--out", "whole").code == 0
    write = Records.write

    def dies(self, event, fields):
        write(self, event, fields)
        if fields.get("phase") == "prompt_gce" and fields.get("step") == 3:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Records, "write", dies)
        with pytest.raises(KilledError):
            tune(*line, "--out", "cut")
    assert tune(*line, "--out", "cut").code == 0
    resume = json.loads(Path("cut/report.json").read_text())["resume"]
    assert resume["count"] == 1 and resume["steps_done_before"] >= 6
    assert_same_result(Path("whole"), Path("cut"))


def test_unsupervised_training_takes_the_predictions_for_labels(effvl, shared_cache, report, monkeypatch):
    line = ("prompt-tune", "--unsupervised", "--num-select", 2, "--epochs", 1, "--batch-size", 30, "--method", "prompt")
    monkeypatch.setattr("effvl_cli.engines.prompt_tune.pseudo.ENDLESS_SHOTS", 4)
    outcome = effvl(*line, "--loss", "gce", "--select", "topk", "--out", "a")
    assert outcome.code == 0, outcome.err
    found = report("a").technique["pseudo"]
    assert f"pseudo-labels: {found['n']} images by topk, {100 * found['acc']:.1f} % are right" in outcome.out
    assert found["n"] <= 60 and sum(row["n"] for row in found["per_class"]) == found["n"]
    assert found["acc"] == pytest.approx(report("a").metrics["top1_pseudo_labels"].value)
    assert max(row["n"] for row in found["per_class"]) == 2
    [chosen] = json.loads(Path("a/noise.json").read_text())["sets"]
    places = [row["sample_id"] for row in chosen["records"]]
    assert [row["given_label"] for row in chosen["records"]] == _predicted("train", places)
    assert effvl(*line, "--loss", "gce", "--select", "random", "--out", "b").code == 0
    assert json.loads(Path("b/noise.json").read_text())["sets"][0]["model"] == "pseudo-random"
    assert "suspects_auroc" not in report("a").metrics


def test_pseudo_labels_of_several_models_are_those_of_their_mean_logits(effvl, shared_cache, report, monkeypatch):
    state, draw = load_file(ASSETS / "tiny-clip" / "checkpoint.safetensors"), torch.Generator().manual_seed(0)
    state["visual.proj"] += 0.2 * torch.randn(state["visual.proj"].shape, generator=draw)
    save_file(state, "other.safetensors")
    monkeypatch.setattr("effvl_cli.engines.prompt_tune.pseudo.ENDLESS_SHOTS", 4)
    models = "tiny:clip,tiny:clip=other.safetensors"
    line = ("prompt-tune", "--unsupervised", "--select", "random-global", "--num-select", 4, "--method", "zero-shot")
    outcome = effvl(*line, "--pseudo-models", models, "--cache-dtype", "fp32", "--out", "r")
    assert outcome.code == 0, outcome.err
    rows = json.loads(Path("r/noise.json").read_text())["sets"][0]["records"]
    assert [row["sample_id"] for row in rows] == list(range(120)) and report("r").technique["pseudo"]["n"] == 120
    parts = [_logits("train", range(120), weights) for weights in (None, "other.safetensors")]
    mean = ((parts[0] + parts[1]) / 2).topk(2)
    sure = mean.values[:, 0] - mean.values[:, 1] > 1e-3
    given = torch.tensor([row["given_label"] for row in rows])
    assert sure.sum() > 110 and torch.equal(given[sure], mean.indices[sure, 0])
    assert all((part.argmax(1) != given).sum() > 5 for part in parts)
    outcome = effvl(*line, "--pseudo-models", "tiny:clip,tiny:clip=none.pt", "--out", "x")
    assert outcome.code == 4 and "--pseudo-models tiny:clip=none.pt: no weights" in outcome.error


def test_what_cannot_be_done_is_refused(tune, effvl, image_folder, tmp_path):
    for line, code, words in (
        (("--noise-rate", "1"), 2, "--noise-rate"),
        (("--num-context", "12"), 2, "Give at most"),
        (("--context-init", "a photo of a", "--num-context", "3"), 2, "has 4 tokens"),
        (("--prefix-share", "on", "--csc"), 2, "--prefix-share on with --csc"),
        (("--prefix-share", "on", "--class-position", "front"), 2, "on with --class-position front"),
        (("--context-init", " "), 2, "--context-init is empty"),
        (("--data", "folder:nothing-here"), 3, "nothing-here"),
        (("--noise-rate", "0.2,0.4", "--noise", "matrix", "--noise-matrix", "m.csv"), 2, "holds one set"),
        (("--method", "rn50-ft", "--cache-features", "off"), 2, "--rn50-weights"),
        (
            ("--method", "rn50-ft", "--cache-features", "off", "--split", "ot"),
            2,
            "rn50-ft has no zero-shot predictions",
        ),
        (("--unsupervised", "--labels", "x.csv"), 2, "reads no labels"),
        (("--noise-from", str(tmp_path)), 3, "noise.json cannot be read: No such file"),
        (("--weights", "none", "--model", "tiny:resnet"), 4, "a clip is needed"),
    ):
        outcome = tune(*line, "--out", str(tmp_path / "r"), "--fresh")
        assert outcome.code == code and words in outcome.error, (line, outcome.err)


def test_real_labels_from_a_table(effvl, image_folder, report):
    names = sorted(path.relative_to(image_folder / "train") for path in (image_folder / "train").glob("*/*.jpg"))
    with Path("labels.csv").open("w") as file:
        file.write("path,label\n")
        for place, name in enumerate(names):
            right = name.parts[0].replace("_", " ")
            wrong = {"red thing": "blue thing", "blue thing": "red thing"}[right]
            file.write(f"train/{name},{wrong if place % 6 == 0 else right}\n")
    line = ("prompt-tune", "--data", f"folder:{image_folder}", "--labels", "labels.csv", "--force", "--epochs", 2)
    outcome = effvl(*line, "--shots", "all", "--method", "zero-shot,prompt", "--loss", "gce", "--out", "r")
    assert outcome.code == 0, outcome.err
    noise = json.loads(Path("r/noise.json").read_text())["sets"][-1]
    assert noise["model"] == "file" and sum(row["flipped"] for row in noise["records"]) == 4
    assert {"top1_prompt_gce", "top1_prompt_gce_clean", "suspects_auroc"} <= set(report("r").metrics)
    assert [row["rate"] for row in report("r").technique["results"]] == [0, 0, 4 / 24, 4 / 24]


def test_labels_like_those_of_the_data_are_compared_with_nothing(effvl, image_folder, report):
    names = sorted(path.relative_to(image_folder / "train") for path in (image_folder / "train").glob("*/*.jpg"))
    rows = [f"train/{name},{name.parts[0].replace('_', ' ')}" for name in names]
    Path("labels.csv").write_text("\n".join(["path,label", *rows]))
    line = ("prompt-tune", "--data", f"folder:{image_folder}", "--labels", "labels.csv", "--force", "--epochs", 1)
    outcome = effvl(*line, "--shots", "all", "--method", "zero-shot", "--num-folds", 0, "--out", "r")
    assert outcome.code == 0, outcome.err
    done = report("r")
    assert [row["rate"] for row in done.technique["results"]] == [0] and "top1_zero_shot_clean" not in done.metrics
    assert not any("no label is wrong" in text for text in done.warnings) and "learned:" not in outcome.out


def test_a_sweep_of_probes_asks_for_validation_images_before_anything_is_trained(effvl, image_folder):
    Path("few").symlink_to(image_folder / "train")  # which names are held out of train depends on the names
    rows = [f"few/{name}_thing/img{number}.jpg,{name}" for name in ("blue", "red") for number in range(2)]
    lines = [f"{row},{'test' if place % 2 else 'train'}" for place, row in enumerate(rows)]
    Path("few.csv").write_text("\n".join(["path,label,split", *lines]))
    line = ("prompt-tune", "--data", "csv:few.csv", "--force", "--noise-rate", 0, "--shots", 1)
    outcome = effvl(*line, "--method", "prompt,linear-probe-sweep", "--loss", "ce", "--epochs", 1, "--out", "r")
    assert outcome.code == 3 and "val" in outcome.error, outcome.err
    assert not list(Path("r").glob("checkpoints/prompt*"))
    Path("few.json").write_text('{"train": ["blue/x.jpg"]}')
    line = ("prompt-tune", "--data", f"folder:{image_folder}", "--force", "--noise-rate", 0, "--noise", "pair")
    outcome = effvl(*line, "--method", "prompt,linear-probe-sweep", "--fewshot-file", "few.json", "--out", "s")
    assert outcome.code == 3 and "it has no list 'val'" in outcome.error  # before the training images are looked for


def test_pictures_without_labels_have_pseudo_labels_and_no_figures_about_true_ones(effvl, shared_cache, report):
    pictures = Path("pictures")
    pictures.mkdir()
    shown = load("shape-captions:sketch", "train")
    for number in range(24):
        shown.image(number).save(pictures / f"{number:02}.png")
    rows = "".join(f"pictures/{number:02}.png,train\n" for number in range(24))
    Path("all.csv").write_text(f"path,split\n{rows}")
    line = ("prompt-tune", "--unsupervised", "--num-select", 2, "--epochs", 1, "--cache-dtype", "fp32")
    line = (*line, "--method", "zero-shot,prompt", "--loss", "gce", "--unlabelled")
    outcome = effvl(*line, "csv:all.csv", "--out", "r")
    assert outcome.code == 0, outcome.err
    assert "images by topk, how many are right is not known" in outcome.out and "shape-captions:sketch" in outcome.out
    done, noise = report("r"), json.loads(Path("r/noise.json").read_text())
    metric, [about] = done.metrics["top1_pseudo_labels"], done.technique["noise"]
    assert metric.value is None and metric.n == done.technique["pseudo"]["n"] == about["images"] > 5
    assert about["rate_realised"] is about["flipped_ids"] is about["transition"] is None
    assert done.technique["pseudo"]["acc"] is None
    assert {row["acc"] for row in done.technique["pseudo"]["per_class"]} == {None}
    assert {row["rate"] for row in done.technique["results"]} == {None}
    [found] = noise["sets"]
    assert noise["classes"] == list(shown.classes) and found["rate"] is found["transition"] is None
    assert {(row["clean_label"], row["flipped"]) for row in found["records"]} == {(None, None)}
    places = [row["sample_id"] for row in found["records"]]
    assert [row["given_label"] for row in found["records"]] == _predicted("train", places)
    assert done.metrics["top1_prompt_gce"].value is not None
    (pictures / "00.png").write_bytes((pictures / "01.png").read_bytes())
    again = effvl(*line, "csv:all.csv", "--out", "r")
    assert again.code == 2 and "have changed since it read them (train of csv:all.csv)" in again.error
    for given, code, words in (
        ("images:nowhere", 3, "no folder at nowhere"),
        ("pictures", 2, "--unlabelled pictures is a path"),
    ):
        outcome = effvl(*line, given, "--out", "x")
        assert outcome.code == code and words in outcome.error and not Path("x").exists()
    outcome = effvl(*line, "moving-shapes", "--out", "y")
    assert outcome.code == 2 and "--unlabelled moving-shapes is a data set of clips" in outcome.error
    outcome = effvl("prompt-tune", "--unlabelled", "images:pictures", "--out", "x")
    assert outcome.code == 2 and "--unlabelled is for --unsupervised" in outcome.error
