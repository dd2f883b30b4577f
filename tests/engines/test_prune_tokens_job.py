"""The job and its verbs through the real command, on few images."""

import json
from pathlib import Path

import pytest
import torch

from effvl_cli.core.checkpoint import load_model, read_manifest
from tests.engines.conftest import copy_of

METRICS = {
    *("top1_dense", "top1_dense_golden", "top1_golden", "top1_predictor", "top1_predictor_tuned", "top1_cls_attn"),
    *("top1_random", "mac_ratio", "speedup_b1", "speedup_b32", "gain_over_random", "gain_over_cls_attn"),
    *("top1_shuffled_names", "object_cover", "top1_evit", "top1_tome", "top1_grid", "top1_center"),
    *("top1_val_dense", "top1_val_predictor", "top1_val_predictor_tuned"),
}


@pytest.fixture
def job(effvl, few_images, quick_figures, shared_cache, miniature):
    def run(*more, verb=()):
        defaults = (
            []
            if verb
            else [
                word
                for pair in zip(miniature[::2], miniature[1::2], strict=True)
                if pair[0] not in more
                for word in pair
            ]
        )
        outcome = effvl("prune-tokens", *verb, *defaults, *more)
        assert outcome.code == 0, outcome.err
        return outcome

    return run


def test_the_job_reports_and_draws(tokens_run, report, records):
    done = report(tokens_run)
    assert done.status == "completed" and set(done.metrics) == METRICS
    assert done.metrics["top1_dense"].n == done.metrics["top1_predictor_tuned"].n == 48
    assert done.metrics["top1_golden"].n == done.metrics["top1_dense_golden"].n == 4
    assert done.metrics["top1_dense"].value > 0.85
    rows = {row["selector"]: row for row in done.technique["results"]}
    assert rows["predictor"]["K"] == 38
    # 12 288 patch embedding, 4 blocks over 1+38 rows, projection, and the mixer of width 64
    per_row, n = 4 * 64**2 + 2 * 64 * 128, 39
    tower = 64 * 192 * 64 + 4 * (n * per_row + 2 * n * n * 64) + 64 * 64
    mixer = 2 * 65 * 64 * 32 + 2 * 65 * 64 * 256 + 64 * 64
    # merging: all patches with each other, sums for each kept one, and the means of 26 in 38
    merging = 64 * 64 * (64 + 38) + (26 * 38 + 64) * 64
    chosen = done.technique["dropped"]["chosen"]
    assert rows["predictor"]["macs"] == tower + mixer + {"discard": 0, "merge": merging}[chosen]
    assert rows["predictor"]["flops"] == 2 * rows["predictor"]["macs"]
    assert done.technique["ranking"]["images"] == 60 and done.technique["ranking"]["passes"] == 60 * 64
    for name in ("patches", "accuracy", "latency"):
        assert (tokens_run / "plots" / f"{name}.png").stat().st_size > 5000
    phases = {(r["event"], r["phase"]) for r in records(tokens_run)}
    assert phases == {(e, p) for e in ("train", "eval") for p in ("predictor", "tuning")}


def test_a_finished_job_prints_its_stored_result(job, report):
    outcome = job("--out", "run", "--keep", 0.5)
    done = report("run")
    assert "predictor+tuned" in outcome.out and "golden (oracle)" in outcome.out
    again = job("--out", "run", "--keep", 0.5)
    assert again.out == outcome.out and "stored result" in again.err
    assert report("run") == done


def test_json_is_one_line_and_the_whole_report(job, plain_tokens_run, workdir, report):
    outcome = job("--shots", 1, "--out", "run", "--json", verb=("rank",))
    found = json.loads(outcome.out)
    assert len(outcome.out.splitlines()) == 1
    assert found == json.loads((workdir / "run" / "report.json").read_text())
    assert METRICS - set(report(plain_tokens_run).metrics) == {
        *("top1_predictor_tuned", "top1_golden", "top1_dense_golden", "top1_val_predictor_tuned"),
    }


def test_keep_one_is_the_dense_tower(job, report):
    job("--out", "run", "--keep", 1, "--prompts", "none")
    figures = report("run").metrics
    rows = report("run").technique["results"]
    assert figures["mac_ratio"].value == 1.0
    assert {row["cosine"] for row in rows} == {rows[0]["cosine"]}
    assert {row["agreement"] for row in rows} == {1.0}


def test_another_config_in_the_folder_is_refused_and_fresh_starts_anew(job, effvl, plain_tokens_run, report, miniature):
    copy_of(plain_tokens_run, "run")
    before = report("run")
    outcome = effvl("prune-tokens", *miniature, "--out", "run", "--keep", 0.5, "--prompts", "none")
    assert outcome.code == 2
    assert "keep: 0.6 there, 0.5 here" in outcome.error and "num-golden: 0 there, 4 here" in outcome.error
    assert report("run") == before
    assert effvl("pretrain", "--method", "clip", "--steps", 1, "--out", "run").code == 2
    job("--out", "run", "--prompts", "none", "--num-golden", 0, "--keep", 0.5, "--fresh")
    assert report("run").metrics["mac_ratio"].value < before.metrics["mac_ratio"].value


def test_the_run_folder_repeats_itself(plain_tokens_run, few_images, quick_figures, report, effvl):
    """With a cache of its own: nothing is taken from the first."""
    outcome = effvl("prune-tokens", "--recipe", plain_tokens_run / "config.yaml", "--out", "two")
    assert outcome.code == 0, outcome.err
    one, two = report(plain_tokens_run), report("two")
    assert one.config_sha256 == two.config_sha256
    same = [name for name in one.metrics if not name.startswith("speedup")]
    assert len(same) > 10 and one.metrics.keys() == two.metrics.keys()
    assert [one.metrics[n] for n in same] == [two.metrics[n] for n in same]


def test_verbs_follow_one_another_and_equal_the_job(job, tokens_run, report, miniature):
    whole = report(tokens_run)
    few = ("--shots", 2)
    job(*few, "--name", "r", verb=("rank",))
    assert report("runs/prune-tokens-rank/r").technique["ranking"]["searched_now"] == 0  # the job's, from the cache
    job("runs/prune-tokens-rank/r", *miniature[4:8], "--name", "p", verb=("predict",))
    job("runs/prune-tokens-predict/p", *few, *miniature[8:], "--name", "t", verb=("tune",))
    tuned = report("runs/prune-tokens-tune/t").metrics
    assert tuned["top1_predictor"] == whole.metrics["top1_predictor"]
    assert tuned["top1_predictor_tuned"] == whole.metrics["top1_predictor_tuned"]
    state, manifest = load_model(Path("runs/prune-tokens-tune/t/checkpoint.safetensors"))
    expected, _ = load_model(tokens_run / "checkpoint.safetensors")
    assert state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in state)
    assert manifest["fields"]["layer"] == 0


def test_eval_takes_the_newest_run_and_lists(tokens_run, effvl, few_images, shared_cache, report, drawn):
    copy_of(tokens_run, "runs/prune-tokens/a")
    outcome = effvl(
        *("prune-tokens", "eval", "--keep", "0.9,0.6,0.3", "--selector", "predictor,golden,random", "--name", "e")
    )
    assert outcome.code == 0, outcome.err
    found = report("runs/prune-tokens-eval/e")
    assert found.command == "prune-tokens eval"
    whole = report("runs/prune-tokens/a").metrics
    assert found.metrics["top1_predictor_keep0.6"] == whole["top1_predictor"]
    assert found.metrics["top1_predictor_tuned_keep0.6"] == whole["top1_predictor_tuned"]
    assert found.metrics["top1_golden_keep0.3"].n == 4
    assert {(row["selector"], row["keep"]) for row in found.technique["results"]} >= {
        (s, k) for s in ("predictor", "golden", "random") for k in (0.9, 0.6, 0.3)
    }
    assert effvl("prune-tokens", "viz", "--num-images", 3, "--keep", "0.5,0.2", "--name", "v").code == 0
    assert Path("runs/prune-tokens-viz/v/plots/patches.png").stat().st_size > 5000


def test_rankings_and_predictors_of_other_settings_are_refused(job, plain_tokens_run, effvl):
    copy_of(plain_tokens_run, "runs/prune-tokens/a")
    outcome = effvl("prune-tokens", "predict", "runs/prune-tokens/a", "--layer", 1)
    assert outcome.code == 4 and "layer: 0 there, 1 here" in outcome.error
    outcome = effvl("prune-tokens", "predict", "--block", 2, "--group", 4)
    assert outcome.code == 4 and "block: 1 there, 2 here" in outcome.error and "group: 0 there, 4 here" in outcome.error
    outcome = effvl("prune-tokens", "eval", "--layer", 1)
    assert outcome.code == 4 and "layer: 0 there, 1 here" in outcome.error
    outcome = effvl("prune-tokens", "eval", "--weights", "none")
    assert outcome.code == 4 and "weights:" in outcome.error
    job("--shots", 2, "--name", "r", verb=("rank",))
    outcome = effvl("prune-tokens", "tune", "runs/prune-tokens-rank/r")
    assert outcome.code == 4 and "no predictor" in outcome.error


def test_a_damaged_checkpoint_is_refused(plain_tokens_run, effvl):
    copy_of(plain_tokens_run, "a")
    path = Path("a/checkpoint.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    outcome = effvl("prune-tokens", "eval", "a")
    assert outcome.code == 4 and "not the file that manifest.json describes" in outcome.error


def test_a_broken_shard_of_rankings_is_searched_again(job, own_cache, report):
    job("--shots", 2, "--out", "a", verb=("rank",))
    shards = sorted((own_cache / "rankings").glob("*/*.safetensors"))
    assert len(shards) == 2  # 60 images, 32 a shard
    shards[0].write_bytes(b"cut off")
    job("--shots", 2, "--out", "b", verb=("rank",))
    done = report("b")
    assert done.technique["ranking"]["searched_now"] in (28, 32)
    assert any("damaged cache file" in text for text in done.warnings)


def test_a_users_folder_and_weights_of_theirs(job, effvl, image_folder, report, workdir, miniature):
    from effvl_cli.models import network

    torch.save({"model": network.build("tiny:clip-32px", seed=1).module.state_dict()}, "mine.pt")
    outcome = effvl(
        *("prune-tokens", "--data", f"folder:{image_folder}", "--model", "tiny:clip-32px", "--weights", "mine.pt"),
        *(*miniature[2:], "--shots", 8, "--force", "--out", "run"),
    )
    assert outcome.code == 0, outcome.err
    done = report("run")
    assert done.model.source == "mine.pt" and done.metrics["top1_dense"].n == 12
    assert {row.name for row in done.data} == {"folder:pictures"}
    torch.save(network.build("tiny:clip-32px", seed=2).module.state_dict(), "mine.pt")
    again = effvl("prune-tokens", "--recipe", "run/config.yaml", "--out", "run")
    assert again.code == 2 and "the content of --weights has changed" in again.error


def test_skipped_images_are_counted(job, effvl, image_folder, report, miniature):
    for number in range(200):
        target = image_folder / "test" / "red_thing" / f"more{number}.jpg"
        target.write_bytes((image_folder / "test" / "red_thing" / "img0.jpg").read_bytes())
    (image_folder / "test" / "red_thing" / "more7.jpg").write_bytes(b"broken")
    outcome = effvl(
        *("prune-tokens", "--data", f"folder:{image_folder}", "--on-bad", "skip", *miniature[2:], "--shots", 8),
        *("--out", "run", "--prompts", "none"),
    )
    assert outcome.code == 0, outcome.err
    test = next(row for row in report("run").data if row.split == "test")
    assert (test.num_samples, test.bad_files) == (211, 1)


def test_the_manifest_says_what_it_belongs_to(tokens_run):
    manifest = read_manifest(tokens_run)
    assert manifest["kind"] == "prune-tokens" and manifest["keep"] == 0.6
    assert manifest["fields"] | {"weights": ""} == {
        "model": "tiny:clip",
        "weights": "",
        "layer": 0,
        "patches": 64,
        "prefix": 1,
        "width": 64,
    }
    assert manifest["predictor"] == {"kind": "mixer", "width": 64, "prompted": False}
    assert manifest["prompts"] == {
        # as deep as the text tower that they are mapped from
        "visual": {"num_tokens": 2, "depth": 2, "start": 0, "pre_norm": False},
        "text": {"num_tokens": 2, "depth": 2, "width": 64, "first": 1, "template": "a photo of a {}."},
        "coupled": True,
        "any_keep": False,
    }
