"""Which device a process takes."""

import pytest
import torch

from effvl_cli.core.devices import resolve_device


@pytest.mark.parametrize(("visible", "index"), [(1, 0), (4, 3)])
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_task_takes_the_gpu_that_it_alone_sees_or_that_of_its_place(monkeypatch, name, visible, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    for key, value in (("SLURM_NTASKS", "4"), ("SLURM_PROCID", "3"), ("SLURM_LOCALID", "3")):
        monkeypatch.setenv(key, value)
    assert resolve_device(name) == torch.device("cuda", index)
