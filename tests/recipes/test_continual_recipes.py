"""Recipes of `continual`: data in their true layouts, and each kind of run in miniature."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from effvl_cli.config.continual_learn import ContinualConfig
from effvl_cli.config.recipe_file import read_recipe
from effvl_cli.config.resolve import resolve
from effvl_cli.engines.continual.coarse import CIFAR100
from effvl_cli.engines.continual.tasks import read_tasks
from effvl_cli.models.network import build
from tests.data import layouts
from tests.engines.test_continual_tasks import CIFAR100_NAMES

RECIPES = Path(__file__).parents[2] / "recipes"
OF_CIFAR100 = sorted(path.stem for path in (RECIPES / "continual").glob("cifar100-*.yaml"))
SIX = ("imagenet", "cubs_cropped", "stanford_cars_cropped", "flowers", "wikiart", "sketches")
LITTLE = (
    *("--num-tasks", 2, "--model", "vgg:11,width=2,hidden=4", "--epochs", 1, "--batch-size", 8, "--device", "cpu"),
    *("--prune-ratios", 0.5, "--prune-epochs", 1, "--prune-ramp-epochs", 1, "--retrain-epochs", 1),
)


@pytest.fixture
def cifar100(workdir):
    """The binary archive, four training images and one test image of each class."""
    layouts.cifar(
        Path("cifar-100-binary"), {"train.bin": 400, "test.bin": 100}, "fine_label_names.txt", CIFAR100_NAMES, 2
    )
    shutil.copytree(RECIPES, "recipes")


@pytest.fixture
def six(workdir):
    """The six data sets in class folders, two classes each; words with spaces and numbers, as WikiArt and CUB have."""
    draw = np.random.default_rng(0)
    for name in SIX:
        for split, count in (("train", 6), ("test", 3)):
            for kind in ("001.Black_footed_Albatross", "002.Laysan_Albatross"):
                folder = Path("data") / name / split / kind
                folder.mkdir(parents=True)
                for number in range(count):
                    Image.fromarray(draw.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    shutil.copytree(RECIPES, "recipes")


def config_of(name, **options):
    return resolve(ContinualConfig, options, command="continual", recipe=str(RECIPES / f"{name}.yaml")).config


@pytest.mark.parametrize("name", OF_CIFAR100)
def test_twenty_tasks_of_cifar100(cifar100, name):
    tasks = read_tasks(config_of(f"continual/{name}"))
    assert len(tasks) == 20
    assert all(len(task.classes) == 5 for task in tasks)


def test_goals_of_the_top_row_are_those_of_its_tasks(cifar100):
    goals = json.loads((RECIPES / "continual" / "cifar100-top-goals.json").read_text())
    assert list(goals) == [re.sub(" ", "_", name) for name in sorted(CIFAR100)]
    # half a point above the better of 78.6 (fine-avg) and 80.2 (fine-max), means of the published rows
    assert sum(goals.values()) / 20 == pytest.approx(0.8020 + 0.005, abs=2e-3)
    assert (goals["aquatic_mammals"], goals["people"]) == (0.663, 0.541)


@pytest.mark.parametrize("name", ["cifar100-cpg-top", "cifar100-packnet", "cifar100-scratch"])
def test_a_recipe_of_cifar100_runs_in_miniature(effvl, cifar100, quick_figures, report, name):
    outcome = effvl("continual", "--recipe", f"recipes/continual/{name}.yaml", *LITTLE, "--out", "run")
    assert outcome.code == 0, outcome.err
    found = report("run")
    assert [row["name"] for row in found.technique["tasks"]] == ["aquatic_mammals", "fish"]
    assert found.technique["selection_split"] == "test"
    published = read_recipe(RECIPES / "continual" / f"{name}.yaml").reference["expected"]
    assert len(found.comparison) == len(published)


def test_six_fine_grained_tasks(six):
    options = config_of("continual/fine-grained-cpg")
    tasks = read_tasks(options)
    assert [task.name for task in tasks] == list(SIX)
    assert tasks[1].classes == ("001.Black footed Albatross", "002.Laysan Albatross")
    own = [task.options(options) for task in tasks]
    assert [row.epochs for row in own] == [0, 300, 300, 300, 300, 300]
    assert [row.goal_value for row in own] == [0.7616, 0.8283, 0.9183, 0.9656, 0.756, 0.8078]
    assert [(row.prune_every, row.prune_lr) for row in own[:2]] == [(1000, 3e-4), (50, 1e-3)]
    assert [row.lr for row in own] == [1e-3, 1e-3, 1e-2, 1e-3, 1e-3, 1e-3]


def test_six_fine_grained_tasks_run_in_miniature(effvl, six, quick_figures, report):
    save_file(build("smallcnn:width=4", seed=0, num_classes=2).module.state_dict(), "two.safetensors")
    more = ("--model", "smallcnn:width=4", "--weights", "two.safetensors", "--num-tasks", 2, "--batch-size", 4)
    listed = Path("recipes/continual/fine-grained-tasks.yml")
    listed.write_text(re.sub("prune-epochs: 10", "prune-epochs: 4", listed.read_text()))
    outcome = effvl(
        *("continual", "--recipe", "recipes/continual/fine-grained-cpg.yaml", *more, "--prune-ratios", 0.5),
        *("--epochs", 1, "--prune-epochs", 4, "--device", "cpu", "--out", "run"),
    )
    assert outcome.code == 0, outcome.err
    rows = report("run").technique["tasks"]
    assert [row["name"] for row in rows] == ["imagenet", "cubs_cropped"]
    assert rows[0]["attempts"][0]["width"] == 1
    assert report("run").metrics["bwt"].value == 0.0


def test_the_list_of_tiny_imagenet_is_made_from_its_table(here, test_data, workdir):
    """`make mini-continual-tinyimagenet` unpacks the archive and divides it so; here only the table is there."""
    import tarfile

    folder = Path("runs/data/tinyimagenet60")
    folder.mkdir(parents=True)
    with tarfile.open(test_data / "tinyimagenet60.tar.gz") as archive:
        archive.extract("index.csv", folder, filter="data")
    here(
        *("continual", "list-tasks", "--data", f"csv:{folder}/index.csv", "--by", "coarse"),
        *("--out", "runs/data/tinyimagenet60-tasks"),
    )
    options = read_recipe(RECIPES / "mini" / "continual-tinyimagenet.yaml")
    assert options.config["data"] == f"csv:{folder}/index.csv"
    tasks = read_tasks(ContinualConfig(data=options.config["data"], tasks=options.config["tasks"]))
    assert len(tasks) == 12
    assert all(len(task.classes) == 5 for task in tasks)
