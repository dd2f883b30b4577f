"""A first task that comes with its weights is not trained, only compacted."""

import pytest
import torch
from safetensors.torch import save_file

from effvl_cli.config.continual_learn import ContinualConfig
from effvl_cli.core.run import unopened
from effvl_cli.data.loader import noise_batch
from effvl_cli.engines.continual.task_images import TaskReader
from effvl_cli.engines.continual.tasks import read_tasks
from effvl_cli.models.network import build

LITTLE = (
    *("--model", "smallcnn:width=4", "--epochs", 1, "--prune-ratios", 0.5, "--prune-epochs", 1, "--controls", "none"),
    *("--goal", "value", "--goal-value", 0.01, "--retrain-epochs", 0, "--device", "cpu"),
)


@pytest.fixture
def weights(workdir):
    """A network of two classes with running statistics of its own."""
    network = build("smallcnn:width=4", seed=5, num_classes=2)
    network.module.train()(network.preprocess.normalise(noise_batch((32, 32), 8, torch.device("cpu")).images))
    save_file(network.module.state_dict(), "two.safetensors")
    return network.module.eval()


def test_its_accuracy_before_the_compaction_is_that_of_the_weights(here, weights, workdir, report):
    (workdir / "tasks.yaml").write_text(
        "- {name: a, classes: [zero, one], epochs: 0}\n- {name: b, classes: [two, three]}\n"
    )
    here("continual", "--tasks", "tasks.yaml", "--weights", "two.safetensors", *LITTLE, "--out", "run")
    first, second = report("run").technique["tasks"]
    config = ContinualConfig(tasks="tasks.yaml")
    preprocess = build("smallcnn", seed=0).preprocess
    images = TaskReader(config, unopened("continual", config), preprocess).splits(read_tasks(config)[0]).val
    with torch.no_grad():
        right = weights(preprocess.normalise(images.pixels)).argmax(1) == images.labels
    assert first["attempts"][0]["val"] == float(right.double().mean())
    assert (first["epochs_used"], second["epochs_used"]) == (1, 2)  # the stage alone; learning and the stage
    assert report("run").metrics["bwt"].value == 0.0


@pytest.mark.parametrize(
    ("listed", "more", "code", "message"),
    [
        ("- {name: a, classes: [zero, one], epochs: 0}", (), 2, "--epochs is 0 for task 'a'. Only a first task takes"),
        (
            "- {name: a, classes: [zero, one]}\n- {name: b, classes: [two, three], epochs: 0}",
            ("--weights", "two.safetensors"),
            2,
            "--epochs is 0 for task 'b'",
        ),
        (
            "- {name: a, classes: [zero, one, two], epochs: 0}",
            ("--weights", "two.safetensors"),
            3,
            "smallcnn:width=4 have 2 classes, and the data have 3",
        ),
    ],
)
def test_when_it_cannot_be(effvl, weights, workdir, listed, more, code, message):
    (workdir / "tasks.yaml").write_text(listed)
    outcome = effvl("continual", "--tasks", "tasks.yaml", *LITTLE, *more, "--out", "run")
    assert outcome.code == code, outcome.err
    assert message in outcome.error
