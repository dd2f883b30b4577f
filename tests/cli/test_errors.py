"""Wrong input: one line that names the key, the value and the fix, and its exit code."""

import pytest
from PIL import Image


@pytest.mark.parametrize(
    ("line", "code", "parts"),
    [
        ("prune-tokens --keep 0", 2, ["--keep is 0", "above 0"]),
        ("prune-tokens --diversity 0.05", 2, ["--diversity is 0.05", "0, or 0.1 and more"]),
        ("prune-tokens --diversity inf", 2, ["--diversity is inf"]),
        ("prune-tokens --keep 1.5", 2, ["--keep is 1.5", "at most 1"]),
        ("prune-tokens --keep half", 2, ["--keep is half", "a number"]),
        (
            "prune-tokens --predictor-keeps 0.5,half",
            2,
            ["--predictor-keeps is half", "It must be numbers, comma separated"],
        ),
        ("prune-tokens --keep=-1", 2, ["--keep is -1", "above 0"]),
        ("prune-tokens --keep 0.5 eval", 2, ["--keep comes before 'eval'", "Put --keep after 'eval'"]),
        ("prune-tokens --keep 0.5 --keep 0.6", 2, ["--keep is given twice"]),
        ("prune-tokens --kep 0.5", 2, ["--kep", "Did you mean 'keep'"]),
        ("pretrain --learning_rate 1", 2, ["--learning_rate", "Did you mean 'lr'"]),
        ("pretrain --method clip --steps 1 --batch 4", 2, ["--batch", "Did you mean 'batch-size'"]),
        ("prune-tokens --download --no-download", 2, ["--download is given twice"]),
        ("sweep a.yaml --out x --out y", 2, ["--out is given twice"]),
        ("prune-tokens --keep=", 2, ["--keep is empty", "a number"]),
        ("prune-tokens --no-keep 0.4", 2, ["--no-keep", "Did you mean 'num-keep' or 'keep'?"]),
        ("prune-tokens -k 0.4", 2, ["option -k"]),
        ("detect train --arms single", 2, ["`effvl detect train` has no --arms", "It belongs to `effvl detect`"]),
        ("detect eval --epochs 3", 2, ["has no --epochs", "`effvl detect` and `effvl detect train`"]),
        ("prune-tokens --keep", 2, ["--keep", "requires an argument"]),
        ("pretrain clip", 2, ["unknown verb 'clip'", "search, eval"]),
        ("prune-tokens evl", 2, ["unknown verb 'evl'", "'eval'"]),
        ("prune", 2, ["unknown command 'prune'", "Did you mean 'prune-tokens'"]),
        (
            "help",
            2,
            [
                "unknown command 'help'",
                "pretrain, prune-tokens, prune-blocks, prompt-tune, cpr-mine, continual, detect, list",
            ],
        ),
        ("predict", 2, ["unknown command 'predict'", "It is a verb: effvl prune-tokens predict"]),
        ("export", 2, ["It is a verb: effvl prune-tokens export or effvl prune-blocks export"]),
        ("prune-token", 2, ["unknown command 'prune-token'", "'prune-tokens'"]),
        ("--keep 1", 2, ["--keep", "before"]),
        ("prune-tokens --model ViT-B-17", 2, ["unknown --model 'ViT-B-17'", "ViT-B-1"]),
        ("prune-tokens --model openclip:ViT-B-17", 2, ["ViT-B-17", "Did you mean"]),
        ("prune-tokens --data digit --weights none", 2, ["unknown data set 'digit'", "'digits'"]),
        ("prune-tokens --data shape-captions:oil", 2, ["'oil'", "photo, sketch"]),
        ("prune-tokens --layer 4", 2, ["--layer is 4", "0 to 3"]),
        ("prune-tokens --device cuda:99", 2, ["cuda:99", "--device cpu"]),
        ("prune-tokens --templates photo", 2, ["'photo'", "{}"]),
        ("prune-tokens --model RN50 --weights none", 4, ["ModifiedResNet", "supported:", "ViT-"]),
        ("prune-tokens --model ViT-B-32", 4, ["comes without weights", "--weights"]),
        ("prune-tokens --model ViT-B-32 --weights opena", 4, ["opena", "openai"]),
        ("prune-tokens --model ViT-B-32 --weights openai", 4, ["not in the local cache", "--download"]),
        ("prune-tokens --weights nowhere.safetensors", 4, ["nowhere.safetensors"]),
        ("prune-tokens --model tiny:resnet --weights none", 4, ["classifier", "clip"]),
        ("prune-tokens --data folder:nowhere", 3, ["no folder at nowhere", "PATH/train/CLASS"]),
        ("prune-tokens --data csv:nowhere.csv", 3, ["nowhere.csv"]),
        ("prune-tokens eval", 3, ["no completed run", "effvl prune-tokens"]),
        ("prune-tokens eval nowhere", 4, ["nowhere"]),
        ("pretrain --method clip", 2, ["--steps or --epochs"]),
        ("pretrain --method clip --epochs 1", 2, ["endless", "--steps"]),
        ("pretrain --method simclr --steps 1", 2, ["--steps belongs to --method clip, supervised"]),
        ("pretrain --method clip --steps 1 --batch-size 5 --accumulate 2", 2, ["--batch-size 5", "--batch-size 6"]),
        ("prune-tokens --recipe nowhere.yaml", 2, ["nowhere.yaml"]),
        ("sweep nowhere.yaml", 2, ["nowhere.yaml"]),
        ("table nowhere", 3, ["nowhere", "report.json"]),
        ("list models zebra", 2, ["zebra"]),
    ],
)
def test_one_line_and_its_code(unfilled, effvl, line, code, parts):
    outcome = effvl(*line.split())
    assert outcome.code == code, outcome.err
    for part in parts:
        assert part in outcome.error
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("effvl: 1\ncommand: prune-tokens\nconfig: {kep: 0.5}\n", ["'kep'", "Did you mean 'keep'"]),
        ("effvl: 1\ncommand: prune-tokens\nconfig: {keep: 2}\n", ["keep is 2 in recipe", "at most 1"]),
        ("effvl: 1\ncommand: prune-tokens\nconfig:\n  keep: 0.5\n  keep: 0.6\n", ["line 5", "second time"]),
        ("effvl: 1\ncommand: prune-tokens\nconfig: {keep: }\n", ["keep is empty in recipe"]),
        ("effvl: 1\ncommand: prune-tokens\nconfig: {download: perhaps}\n", ["download is perhaps", "true or false"]),
        ("effvl: 1\ncommand: prune-tokens\nconfig: {tune_lr: 1, tune-lr: 2}\n", ["'tune-lr' a second time"]),
        ("effvl: 1\ncommand: prune-tokens\nconfig: {keep: [[1]]}\n", ["keep in r.yaml is nested"]),
        ("effvl: 1\ncommand: prune-tokens\nconfig: [keep]\n", ["config in r.yaml is not a mapping"]),
        ("effvl: 1\ncommand: prune-tokens\narms: {a: b}\n", ["arm 'a' in r.yaml is not a mapping"]),
        ("effvl: 1\ncommand: prune-tokens\nseeds: {a: 1}\n", ["seeds in r.yaml"]),
        ("effvl: 1\ncommand: [a]\n", ["command in r.yaml is not text"]),
        ("effvl: 1\n? [a]\n: b\n", ["line 2", "not a word"]),
        ("!!python/object/apply:os.mkdir [made]\n", ["line 1 has the tag"]),
        ("effvl: 1\ncommand: pretrain\nconfig: {}\n", ["recipe for `effvl pretrain`"]),
        ("effvl: 1\ncommand: prune-tokens\nconfg: {}\n", ["'confg'", "'config'"]),
        ("command: prune-tokens\n", ["not a recipe", "effvl: 1"]),
        ("effvl: 1\n  command: x\n", ["not YAML"]),
        ("effvl: 1\ncommand: prune-tokens\narms: {a: {}}\n", ["is a sweep", "effvl sweep"]),
    ],
)
def test_recipes_are_read_strictly(effvl, workdir, text, parts):
    (workdir / "r.yaml").write_text(text)
    outcome = effvl("prune-tokens", "--recipe", "r.yaml")
    assert outcome.code == 2
    for part in parts:
        assert part in outcome.error
    assert not (workdir / "made").exists()


def test_an_empty_list_is_refused_where_the_default_has_items():
    from effvl_cli.config.prune_tokens import EvalConfig
    from effvl_cli.config.validate import validate
    from effvl_cli.core.errors import UsageError

    with pytest.raises(UsageError, match="--selector is empty"):
        validate(EvalConfig, {"selector": ","})


def test_without_a_word_it_shows_help(effvl):
    outcome = effvl()
    assert outcome.code == 0 and outcome.err == "" and "Techniques" in outcome.out


def test_out_of_memory_names_the_options_of_the_command(effvl, monkeypatch):
    import torch

    from effvl_cli.engines.prune_tokens import rank

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rank, "run", full)
    outcome = effvl("prune-tokens", "rank", "--out", "r")
    assert outcome.code == 6 and "--candidate-tokens" in outcome.error
    outcome = _run_out_of_memory(effvl, monkeypatch)
    assert outcome.code == 6 and "--finetune-batch-size" in outcome.error
    assert "--candidate-tokens" not in outcome.error  # which that command does not have


def _run_out_of_memory(effvl, monkeypatch):
    import torch

    from effvl_cli.engines.prune_blocks import job

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(job, "run", full)
    return effvl("prune-blocks", "--out", "b")


def test_an_unexpected_failure_is_one_line_and_a_traceback_on_request(effvl, monkeypatch):
    def broken(*_):
        raise KeyError("gone")

    monkeypatch.setattr("effvl_cli.cli.execute.execute", broken)
    outcome = effvl("prune-tokens")
    assert outcome.code == 1
    assert "internal error: KeyError: 'gone'" in outcome.error
    with pytest.raises(KeyError):
        effvl("prune-tokens", "--debug")


def test_rank_0_alone_speaks(effvl, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert effvl("prune-tokens", "--keep", 2) == (2, "", "")


def test_a_corrupt_image_is_named_and_can_be_skipped(effvl, image_folder, report):
    bad = image_folder / "train" / "red_thing" / "img3.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    job = ("prune-tokens", "--data", f"folder:{image_folder}", "--shots", 12, "--num-golden", 0)
    outcome = effvl(*job)
    assert outcome.code == 3
    assert "img3.jpg" in outcome.error
    assert "--on-bad skip" in outcome.error


def test_too_many_corrupt_images_stop_a_run_that_skips(effvl, image_folder):
    for bad in (image_folder / "test").rglob("*.jpg"):
        bad.write_bytes(b"no picture")
    line = ("prune-tokens", "--data", f"folder:{image_folder}", "--on-bad", "skip", "--shots", 2)
    outcome = effvl(*line, "--predictor-epochs", 1, "--tune-epochs", 1)
    assert outcome.code == 3
    assert "more than 1%" in outcome.error


def test_a_class_that_training_does_not_have(effvl, image_folder):
    (image_folder / "test" / "green_thing").mkdir()
    Image.new("RGB", (8, 8)).save(image_folder / "test" / "green_thing" / "a.png")
    outcome = effvl("prune-tokens", "--data", f"folder:{image_folder}", "--predictor-epochs", 1, "--tune-epochs", 1)
    assert outcome.code == 3
    assert "green_thing" in outcome.error


def test_weights_of_another_model_name_the_right_one(unfilled, effvl, workdir):
    import open_clip
    import torch

    torch.save(open_clip.create_model("ViT-B-32").state_dict(), "b32.pt")
    outcome = effvl("prune-tokens", "--model", "ViT-B-16", "--weights", "b32.pt")
    assert outcome.code == 4
    assert "misshaped" in outcome.error
    assert "ViT-B-32" in outcome.error


def test_a_folder_with_files_of_others_is_left_alone(effvl, workdir):
    (workdir / "mine").mkdir()
    (workdir / "mine" / "thesis.txt").write_text("years of work")
    outcome = effvl("prune-tokens", "--out", "mine", "--fresh")
    assert outcome.code == 2
    assert "do not belong to a run" in outcome.error
    assert (workdir / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("data", ["folder:none", "csv:none.csv", "digit"])
def test_data_that_are_not_there_fail_before_a_run_folder_is_opened(effvl, workdir, data):
    for line in ("prune-tokens --out run", "prune-blocks --out run", "pretrain --budget 1k --out run"):
        outcome = effvl(*line.split(), "--data", data)
        assert outcome.code == (2 if data == "digit" else 3), outcome.err
        assert not (workdir / "run").exists()


def test_what_cannot_be_skipped_is_not_said_to_be():
    from effvl_cli.core.errors import DataError
    from effvl_cli.data.loader import BadFiles

    with pytest.raises(DataError, match="--on-bad skip"):
        BadFiles("error", 10).meet(DataError("a.jpg is no picture"), 0)
    with pytest.raises(DataError, match="none of these images can be skipped") as error:
        BadFiles("never", 10).meet(DataError("a.jpg is no picture"), 0)
    assert "--on-bad" not in str(error.value)


def test_scored_images_cannot_be_skipped_and_the_advice_is_not_to(effvl, image_folder):
    for bad in (image_folder / "val").rglob("*.jpg"):
        bad.write_bytes(b"no picture")
    job = ("prune-blocks", "--data", f"folder:{image_folder}", "--model", "cifar-resnet:20,width=4")
    outcome = effvl(*job, "--baseline-epochs", 1, "--remove", 1, "--on-bad", "skip")
    assert outcome.code == 3 and "give --on-bad skip" not in outcome.error
