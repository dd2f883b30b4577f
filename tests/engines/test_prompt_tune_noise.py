"""Training images with given labels: the same in every method, run and process."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from effvl_cli.config.prompt_tune import PromptTuneConfig
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data import load
from effvl_cli.data.fewshot import few_shot
from effvl_cli.engines.prompt_tune.label_sets import label_sets, noise_rates
from effvl_cli.engines.prompt_tune.noise_files import noise_document
from effvl_cli.engines.prompt_tune.noise_records import noisy_shots

CLASSES = ("ant", "bee", "red cat")
SIZES = (80, 60, 100)
MODELS = ("fp", "symmetric", "pair", "confusion", "global-symmetric", "global-pair")


def make_source(sizes=SIZES):
    """Images of three classes, in mixed order."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), sizes))
    ids = [f"train/{CLASSES[label]}/{place:03d}.jpg" for place, label in enumerate(labels)]
    return SimpleNamespace(
        name="toy", split="train", classes=CLASSES, labels=labels, ids=ids, endless=False, __len__=lambda: len(ids)
    )


class Source(SimpleNamespace):
    def __len__(self):
        return len(self.ids)


@pytest.fixture
def source():
    return Source(**vars(make_source()))


def zero_shot(indices):
    return torch.randn(len(indices), 3, generator=torch.Generator().manual_seed(int(indices.sum())))


def options(**given):
    return PromptTuneConfig(**{"shots": 16, "seed": 1, **given})


def document(config, source, rates=(0.0, 0.125, 0.5)):
    sets = [noisy_shots(config, source, rate, zero_shot) for rate in rates]
    return noise_document(source, sets, classes=source.classes, seed=config.seed, shots=config.shots)


@pytest.mark.parametrize("model", MODELS)
def test_equal_options_give_equal_bytes(source, model):
    first = json.dumps(document(options(noise=model), source))
    torch.manual_seed(5)
    np.random.seed(5)
    torch.rand(3)
    assert json.dumps(document(options(noise=model, workers=3, method=("prompt",)), source)) == first
    assert json.dumps(document(options(noise=model, seed=2), source)) != first


def test_the_draws_of_any_machine():
    found = noisy_shots(options(shots=2, seed=4), load("shape-captions", "train"), 0.5)
    assert found.indices[:8].tolist() == [21, 110, 115, 119, 129, 274, 281, 347]
    assert found.given[:8].tolist() == [14, 25, 15, 20, 1, 11, 12, 27]


@pytest.mark.parametrize("model", ["symmetric", "pair", "confusion"])
def test_the_same_few_shots_at_every_rate(source, model):
    for rate, count in ((0, 0), (0.125, 2), (0.25, 4), (0.5, 8)):
        found = noisy_shots(options(noise=model), source, rate, zero_shot)
        assert np.array_equal(found.indices, few_shot(source, 16, 1))
        assert np.array_equal(found.clean, source.labels[found.indices])
        assert np.bincount(found.clean[found.flipped], minlength=3).tolist() == [count] * 3
        assert found.rate_realised == count / 16 and not found.remark
        np.testing.assert_allclose(found.transition(3).sum(1), 1, atol=1e-12)
        assert np.diag(found.transition(3)).tolist() == [1 - count / 16] * 3


def test_false_positives(source):
    """Given quotas hold, wrong images are of the second halves, and what is left of the right ones is nested."""
    found = {rate: noisy_shots(options(), source, rate) for rate in (0, 0.125, 0.25, 0.5)}
    first = {place for c in range(3) for place in np.flatnonzero(source.labels == c)[: SIZES[c] // 2].tolist()}
    for rate, shots in found.items():
        assert np.bincount(shots.given).tolist() == [16] * 3 and len(set(shots.indices.tolist())) == 48
        assert np.bincount(shots.given[shots.flipped], minlength=3).tolist() == [round(16 * rate)] * 3
        assert np.array_equal(shots.flipped, [place not in first for place in shots.indices.tolist()])
        assert np.array_equal(shots.clean, source.labels[shots.indices])
    clean = [set(shots.indices[~shots.flipped].tolist()) for shots in found.values()]
    assert clean[3] < clean[2] < clean[1] < clean[0]


def test_false_positives_of_a_small_class():
    source = Source(**vars(make_source((9, 60, 100))))
    shots = noisy_shots(options(), source, 0.5)
    assert np.bincount(shots.given).tolist() == [5, 16, 16]  # half of nine, rounded up
    assert np.bincount(shots.given[shots.flipped]).tolist() == [3, 8, 8]


def test_false_positives_of_endless_data():
    source = load("shape-captions:sketch", "train")
    low, high = (noisy_shots(options(shots=4), source, rate) for rate in (0, 0.5))
    assert high.indices.max() < 60 * 4 * 30 and np.bincount(high.given).tolist() == [4] * 30
    assert high.flipped.sum() == 60 and not low.flipped.any()
    assert not np.array_equal(low.indices, noisy_shots(options(shots=4, seed=2), source, 0).indices)


def test_all_shots(source):
    shots = noisy_shots(options(shots="all", noise="pair"), source, 0.25)
    assert len(shots) == sum(SIZES) and np.bincount(shots.clean[shots.flipped]).tolist() == [20, 15, 25]


def test_too_few_donors_are_an_error():
    source = Source(**vars(make_source((60, 4, 4))))
    with pytest.raises(DataError, match="class 'ant' needs 27 of the images of other classes, and 4 are left"):
        noisy_shots(options(shots="all"), source, 0.9)


def test_confusion_takes_the_likeliest_other_class(source):
    shots = noisy_shots(options(noise="confusion"), source, 0.5, zero_shot)
    logits = zero_shot(shots.indices)
    logits[torch.arange(48), torch.from_numpy(shots.clean)] = -1e9
    assert np.array_equal(shots.given[shots.flipped], logits.argmax(1).numpy()[shots.flipped])


def test_matrix_files(source, tmp_path):
    matrix = [[0.5, 0.25, 0.25], [0, 1, 0], [1, 0, 0]]
    (tmp_path / "m.json").write_text(json.dumps(matrix))
    (tmp_path / "m.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in matrix))
    found = [
        noisy_shots(options(noise="matrix", noise_matrix=str(tmp_path / name)), source, 0.5)
        for name in ("m.json", "m.csv")
    ]
    assert found[0].transition(3).tolist() == matrix and np.array_equal(found[0].given, found[1].given)
    config = options(noise="matrix", noise_matrix=str(tmp_path / "m.json"))
    assert not noisy_shots(config, source, 0).flipped.any()


WRONG = {
    "[[1, 0], [0, 1]]": "row 0 has 2 entries",
    "[[1, 0, 0], [0, 1, 0]]": "has 2 rows",
    "[]": "has 0 rows",
    "[[1, 0, 0], [0, 0.9, 0], [0, 0, 1]]": "row 1 sums to 0.9",
    "[[2, -1, 0], [0, 1, 0], [0, 0, 1]]": "below 0",
    "[[1, NaN, 0], [0, 1, 0], [0, 0, 1]]": "not finite",
    "[[1, 0], [0, 1, 0], [0, 0, 1]]": "row 0 has 2 entries. Give 3 rows of 3 shares",
    "[[1, 0, 0], [0, 1, 0], [0, 0, 1, 0]]": "row 2 has 4 entries",
    '[[1, 0, 0], [0, "x", 0], [0, 0, 1]]': "row 1 holds 'x', which is no number",
    "[[1, 0, 0], [0, null, 0], [0, 0, 1]]": "row 1 holds None, which is no number",
    "[[1, 0, 0], 4, [0, 0, 1]]": "row 1 is 4, not a list of numbers",
    "{": "cannot be read",
    "3": "cannot be read",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_matrices_are_named(source, tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match=WRONG[text]):
        noisy_shots(options(noise="matrix", noise_matrix=str(tmp_path / "m.json")), source, 0.5)


def test_records_are_taken_from_another_run(source, tmp_path):
    path = tmp_path / "noise.json"
    written = document(options(noise="symmetric"), source)
    path.write_text(json.dumps(written))
    taken = options(noise_from=str(path), seed=9)
    again = document(taken, source)
    assert again["sets"] == written["sets"]
    with pytest.raises(UsageError, match=r"--noise-rate is 0.25, and --noise-from .* has 0, 0.125, 0.5"):
        noisy_shots(taken, source, 0.25)
    # An image was added: the others are found by name.
    source.ids.insert(0, "train/ant/new.jpg")
    source.labels = np.insert(source.labels, 0, 0)
    moved = noisy_shots(taken, source, 0.5)
    before = written["sets"][2]["records"]
    assert moved.indices.tolist() == [row["sample_id"] + 1 for row in before]
    assert moved.given.tolist() == [row["given_label"] for row in before]
    source.ids = [name.replace("ant", "anteater") for name in source.ids]
    with pytest.raises(DataError, match=r"train/ant/.* is not in toy train"):
        noisy_shots(taken, source, 0.5)
    source.classes = ("x", *CLASSES[1:])
    with pytest.raises(DataError, match="of other classes than toy"):
        noisy_shots(taken, source, 0.5)


def test_the_rates_of_real_labels_are_taken_up_again(source, tmp_path):
    """They are odd numbers, which nobody has to write in full."""
    table, path = tmp_path / "labels.csv", tmp_path / "noise.json"
    rows = [f"{name},{'ant' if place % 7 else 'bee'}" for place, name in enumerate(source.ids)]
    table.write_text("\n".join(["path,label", *rows]))
    labelled = options(labels=str(table), shots=21, allow_empty_class=True)
    written = document(labelled, source, (0, 0.5))
    path.write_text(json.dumps(written))
    rate = written["sets"][1]["rate"]
    assert rate not in (0.5, float(f"{rate:g}"))
    taken = options(noise_from=str(path))
    assert noise_rates(taken) == (0, rate) and noise_rates(options(labels=str(table))) == (0, 0.5)
    assert document(taken, source, (0, float(f"{rate:g}")))["sets"] == written["sets"]


def test_the_rate_of_a_matrix_is_what_it_does(source, tmp_path):
    (tmp_path / "m.json").write_text("[[0.75, 0.25, 0], [0, 1, 0], [0.5, 0.5, 0]]")
    matrix = options(noise="matrix", noise_matrix=str(tmp_path / "m.json"))
    assert noisy_shots(matrix, source, 0.3).rate == (4 + 16) / 48
    assert noisy_shots(matrix, source, 0).rate == 0


def test_rates_that_whole_images_do_not_reach_are_said(source):
    said = []
    run = SimpleNamespace(warn=said.append)
    for shots, rates in ((1, (0.0, 0.25, 0.5)), (16, (0.0, 0.25, 0.28))):  # 4 of 16 are a little less than 28 %
        label_sets(SimpleNamespace(config=options(noise="pair", shots=shots, noise_rate=rates), run=run), source)
    assert said == [
        "no label is wrong at --noise-rate 0.25: too few images of each class",
        "100 % of the labels are wrong at --noise-rate 0.5: too few images of each class",
    ]


def test_records_of_endless_data(tmp_path):
    source, path = load("shape-captions", "train"), tmp_path / "noise.json"
    path.write_text(json.dumps(document(options(shots=2), source, (0.5,))))
    assert noisy_shots(options(noise_from=str(path)), source, 0.5).rate_realised == 0.5


@pytest.mark.parametrize("change", [{"given_label": 3}, {"given_label": -1}, {"sample_id": "x"}, {"clean_label": 9}])
def test_damaged_records_are_refused(source, tmp_path, change):
    content = document(options(), source, (0.5,))
    content["sets"][0]["records"][7] |= change
    (tmp_path / "noise.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="cannot be read"):
        noisy_shots(options(noise_from=str(tmp_path / "noise.json")), source, 0.5)
    (tmp_path / "noise.json").write_text("[]")
    with pytest.raises(DataError, match="cannot be read"):
        noisy_shots(options(noise_from=str(tmp_path / "noise.json")), source, 0.5)


def test_real_labels_from_a_table(source, tmp_path):
    table = tmp_path / "labels.csv"
    names = ["red_cat", "1", "ant"]
    rows = [f"{name},{names[place % 3]}" for place, name in enumerate(source.ids)]
    table.write_text("\n".join(["path,label", *rows, "elsewhere/x.jpg,ant"]))
    shots = noisy_shots(options(labels=str(table), shots=5), source, 0.5)
    assert np.bincount(shots.given).tolist() == [5] * 3 and shots.model == "file"
    assert [(2, 1, 0)[place % 3] for place in shots.indices.tolist()] == shots.given.tolist()
    assert np.array_equal(shots.clean, source.labels[shots.indices]) and shots.flipped.any()
    assert shots.remark == "1 of 241 images of --labels are not in train"
    assert shots.rate == float((shots.given != source.labels[shots.indices]).mean())  # nobody gave one
    right = noisy_shots(options(labels=str(table), shots=5), source, 0)
    assert np.array_equal(right.indices, shots.indices) and not right.flipped.any()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("{0},dog", "row 1: label 'dog' is no class of toy"),
        ("{0},ant\n{0},bee", "row 2: .* stands there twice"),
        ("x.jpg,ant", "none of its 1 images is in toy train"),
        ("{0},ant\nroot/{0},ant", "two of its paths mean the same image"),
        ("{0},", "line 2 has no label"),
    ],
)
def test_wrong_tables_of_labels_are_named(source, tmp_path, rows, expected):
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + rows.format(source.ids[0]))
    with pytest.raises(DataError, match=expected):
        noisy_shots(options(labels=str(table)), source, 0.5)


def test_fewshot_files_and_false_positives_exclude_one_another(source, tmp_path):
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"train": [f"/data/toy/{name}" for name in source.ids[:30]], "val": []}))
    shots = noisy_shots(options(noise="pair", fewshot_file=str(path)), source, 0.5)
    assert shots.indices.tolist() == list(range(30))
    with pytest.raises(UsageError, match="--noise fp draws its own images"):
        noisy_shots(options(fewshot_file=str(path)), source, 0.5)
    assert noisy_shots(options(fewshot_file=str(path)), source, 0).indices.tolist() == list(range(30))


@pytest.mark.parametrize("given", [{"shots": "all", "noise": "pair"}, {"fewshot_file": "few.json", "noise": "pair"}])
def test_a_class_without_images_is_refused_however_they_are_chosen(source, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    source.labels = np.where(source.labels == 2, 1, source.labels)
    (tmp_path / "few.json").write_text(json.dumps({"train": source.ids[:30]}))
    with pytest.raises(DataError, match=r"no train image of class 'red cat'.*give --allow-empty-class"):
        noisy_shots(options(**given), source, 0.5)
    assert set(noisy_shots(options(**given, allow_empty_class=True), source, 0).clean.tolist()) == {0, 1}
