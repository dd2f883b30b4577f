"""The generator of task lists: what it writes is what `--tasks FILE` reads."""

from pathlib import Path

import pytest

from effvl_cli.config.continual_learn import ContinualConfig
from effvl_cli.engines.continual.tasks import read_tasks
from tests.engines.test_continual_tasks import CIFAR100_NAMES, table


def listed(folder, **options):
    return read_tasks(ContinualConfig(tasks=f"{folder}/tasks.yaml", **options))


def without_origin(tasks):
    return [task.to_dict() for task in tasks]


def test_the_default_is_the_jobs(here, report):
    outcome = here("continual", "list-tasks", "--out", "list")
    assert "two-three" in outcome.out
    assert "`effvl continual --tasks` takes it" in outcome.out
    assert without_origin(listed("list")) == without_origin(read_tasks(ContinualConfig()))
    found = report("list")
    assert found.metrics["tasks"].value == 5
    # 178 zeros as 107, 27, 44 and 182 ones as 109, 27, 46
    assert [found.technique["tasks"][0][split] for split in ("train", "val", "test")] == [216, 54, 90]
    preview = here("continual", "list-tasks", "--dry-run")
    assert "two-three" in preview.out + preview.err


def test_coarse_labels_of_a_table(here, workdir):
    data = table(
        workdir, [("tabby_cat", "cats"), ("Persian_cat", "cats"), ("pug", "dogs"), ("it's, a: beagle", "dogs")]
    )
    here("continual", "list-tasks", "--data", data, "--by", "coarse", "--out", "list")
    tasks = listed("list")
    assert [(task.name, task.classes) for task in tasks] == [
        ("cats", ("Persian cat", "tabby cat")),
        ("dogs", ("it's, a: beagle", "pug")),
    ]
    assert without_origin(tasks) == without_origin(read_tasks(ContinualConfig(data=data, tasks="coarse")))


def test_classes_without_images_and_long_names(here, workdir, report):
    long = "a" * 200
    rows = [("train", long), ("val", long), ("test", long), ("train", "b"), ("test", "b"), ("val", "c"), ("test", "c")]
    Path("t.csv").write_text("path,split,label\n" + "".join(f"{s}/{n[:3]}.png,{s},{n}\n" for s, n in rows))
    line = ("continual", "list-tasks", "--data", "csv:t.csv", "--num-classes-per-task", 3)
    outcome = here(*line, "--out", "list")
    assert long[:21] + "..." in outcome.out and "a" * 34 not in outcome.out
    warnings = report("list").warnings
    [text] = [text for text in warnings if "no train image" in text]
    assert text.startswith("1 class has no train image, in 1 task; the first: 'c' of task") and "Add some" in text
    [text] = [text for text in warnings if "no val image" in text]
    assert text.startswith("1 class has no val image, in 1 task; the first: 'b' of task '001-")
    assert "--val-fraction" in text and "--val-fraction" in here(*line, "--dry-run").out


def test_a_folder_of_data_sets(here, effvl, workdir):
    for name in ("birds", "cars 2"):
        for split in ("train", "test"):
            for kind in ("a", "b", "c"):
                folder = Path("all") / name / split / kind
                folder.mkdir(parents=True)
                for number in range(12):
                    (folder / f"{number}.jpg").touch()
    here("continual", "list-tasks", "--data", "folder:all", "--by", "folders", "--out", "list")
    assert [(task.name, task.data, task.classes) for task in listed("list")] == [
        ("birds", "folder:all/birds", ("a", "b", "c")),
        ("cars_2", "folder:all/cars 2", ("a", "b", "c")),
    ]
    outcome = effvl("continual", "list-tasks", "--by", "folders")
    assert outcome.code == 2
    assert "--by folders with --data digits. Give folder:PATH" in outcome.error
    outcome = effvl("continual", "list-tasks", "--by", "folders", "--data", "folder:all/birds")
    assert outcome.code == 2
    assert "--data folder:all/birds, which is one data set: it holds test, train. Give the folder" in outcome.error


@pytest.mark.parametrize(("more", "names"), [([], 100), (["--num-tasks", 3], 6)])
def test_groups_of_many_classes(here, workdir, more, names):
    lines = [f"{split}/{name}.png,{split},{name}\n" for name in CIFAR100_NAMES for split in ("train", "test")]
    Path("t.csv").write_text("path,split,label\n" + "".join(lines))
    here("continual", "list-tasks", "--data", "csv:t.csv", "--class-order", "seed", *more, "--out", "list")
    assert len({name for task in listed("list") for name in task.classes}) == names
