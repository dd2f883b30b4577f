"""`continual eval` through the command line: accuracies of the networks that were committed."""

import numpy as np
import pytest
import torch
from PIL import Image

from effvl_cli.data import load
from effvl_cli.engines.continual.materialised import materialised
from effvl_cli.engines.continual.state import State
from effvl_cli.engines.continual.tasks import Task
from tests.engines.continual_states import MODEL, add_task, save_run

PAIRS = (("zero", "one"), ("two", "three"))


@pytest.fixture
def digits(workdir):
    """Two tasks of two digits each."""
    state = State.empty(MODEL)
    for number, classes in enumerate(PAIRS, 1):
        data = Task(f"t{number}", "digits", None, classes).to_dict()
        state = add_task(state, number, classes=classes, data=data)
    return state, save_run(state, workdir / "learned")


def accuracy(state, number, classes):
    """Of the images one by one."""
    source, plain = load("digits", "test"), materialised(state, number)
    preprocess, right, count = plain.network.preprocess, 0, 0
    for place in np.flatnonzero(np.isin(source.labels, [source.classes.index(name) for name in classes])):
        image = preprocess.normalise(preprocess.to_uint8(source.image(int(place)))[None])
        found = classes[int(plain.logits(image).argmax())]
        right, count = right + (found == source.classes[source.labels[place]]), count + 1
    return right / count, count


def test_every_task_is_measured_on_its_own_classes(effvl, digits, report):
    state, folder = digits
    done = effvl("continual", "eval", folder, "--out", "e")
    assert done.code == 0, done.err
    found = report("e")
    expected = [accuracy(state, number, classes) for number, classes in enumerate(PAIRS, 1)]
    assert [(row["top1"], row["n"]) for row in found.technique["tasks"]] == expected
    assert found.metrics["avg_acc"].value == pytest.approx(sum(value for value, _ in expected) / 2)
    assert found.metrics["top1_t2"].n == expected[1][1]
    assert found.metrics["avg_acc"].n == expected[0][1] + expected[1][1]  # as in the job
    variance = sum(value * (1 - value) / (count - 1) for value, count in expected)
    assert found.metrics["avg_acc"].se == pytest.approx(variance**0.5 / 2)
    row = found.technique["tasks"][0]
    shares = [row["acc_per_class"][name] for name in PAIRS[0]]
    assert min(shares) <= row["top1"] <= max(shares) and row["images_per_s"] > 0 and row["load_ms"] > 0
    done = effvl("continual", "eval", folder, "--task", "t2", "--out", "e2")
    assert done.code == 0 and [row["task"] for row in report("e2").technique["tasks"]] == ["t2"]


def folder_of(path, classes):
    draw = np.random.default_rng(0)
    for name in classes:
        for split in ("train", "test"):
            (path / split / name).mkdir(parents=True)
            for k in range(3):
                pixels = draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / split / name / f"{k}.png")
    return path


def test_other_images_of_the_same_classes_are_labelled_by_name(effvl, workdir, report):
    """The folder's classes are sorted, and the task's are not."""
    state = add_task(State.empty(MODEL), 1, classes=("b", "a"))
    folder = save_run(state, workdir / "learned")
    pictures = folder_of(workdir / "pictures", ("a", "b"))
    done = effvl("continual", "eval", folder, "--task", "t1", "--data", f"folder:{pictures}", "--out", "e")
    assert done.code == 0, done.err
    plain, right = materialised(state, 1), []
    for name in ("a", "b"):
        for path in sorted((pictures / "test" / name).iterdir()):
            with Image.open(path) as image:
                x = plain.network.preprocess.normalise(plain.network.preprocess.to_uint8(image)[None])
            right.append(("b", "a")[int(plain.logits(x).argmax())] == name)
    assert report("e").technique["tasks"][0]["top1"] == pytest.approx(float(torch.tensor(right).double().mean()))


def test_what_does_not_fit_is_refused(effvl, digits, workdir):
    _, folder = digits
    pictures = folder_of(workdir / "pictures", ("zero", "seven"))
    done = effvl("continual", "eval", folder, "--task", "t1", "--data", f"folder:{pictures}")
    assert done.code == 3 and "missing: one" in done.err and "not learned: seven" in done.err
    done = effvl("continual", "eval", folder, "--data", f"folder:{pictures}")
    assert done.code == 2 and "--task NAME" in done.err
    done = effvl("continual", "eval", folder, "--task", "t9")
    assert done.code == 2 and "t1, t2" in done.err


def test_a_state_that_does_not_say_where_its_images_lie(effvl, workdir):
    folder = save_run(add_task(State.empty(MODEL), 1), workdir / "learned")
    done = effvl("continual", "eval", folder)
    assert done.code == 3 and "--data" in done.err
