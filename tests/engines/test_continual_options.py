"""Options of continual that depend on one another, on the data and on the number of images."""

import pytest

from effvl_cli.config.continual import ContinualConfig
from effvl_cli.config.validate import validate
from effvl_cli.core.distributed import World
from effvl_cli.core.errors import UsageError
from effvl_cli.engines.continual import phase_training


@pytest.mark.parametrize(("data", "usual"), [("cifar100", 4), ("digits", 1)])
def test_a_ramp_is_no_longer_than_its_stage(data, usual):
    def ramp(**options):
        return validate(ContinualConfig, {"data": data, **options}).prune_ramp_epochs

    assert [ramp(), ramp(prune_epochs=1), ramp(prune_epochs=30)] == [usual, 1, usual]
    with pytest.raises(UsageError, match="--prune-ramp-epochs is 3 and --prune-epochs 2"):
        ramp(prune_epochs=2, prune_ramp_epochs=3)


def test_a_task_keeps_some_weights():
    assert validate(ContinualConfig, {"packnet_ratio": "0.99"}).packnet_ratio == 0.99
    with pytest.raises(UsageError, match=r"--packnet-ratio is 1\. It must be a number, above 0, below 1"):
        validate(ContinualConfig, {"packnet_ratio": "1"})


def test_batches_of_a_small_task(monkeypatch):
    config = ContinualConfig(batch_size=64)
    assert [phase_training.batch_size(config, count) for count in (8, 64, 100)] == [8, 64, 64]
    monkeypatch.setattr(phase_training.distributed, "world", lambda: World(0, 3))
    assert [phase_training.batch_size(config, count) for count in (8, 3, 2)] == [6, 3, 3]


def test_a_task_with_fewer_images_than_a_batch_is_learned(effvl):
    few = ("--num-tasks", 1, "--method", "finetune", "--model", "smallcnn:width=2", "--shots", 4, "--epochs", 1)
    outcome = effvl("continual", *few, "--batch-size", 64, "--out", "small")
    assert outcome.code == 0, outcome.err
    assert "--batch-size is 8, not 64, for task zero-one: 8 training images" in outcome.err
