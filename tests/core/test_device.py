"""Which device a process takes."""

import pytest
import torch

from effvl_cli.core import run
from effvl_cli.core.devices import resolve_device, slow_precision


@pytest.mark.parametrize(("visible", "index"), [(1, 0), (4, 3)])
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_task_takes_the_gpu_that_it_alone_sees_or_that_of_its_place(monkeypatch, name, visible, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    for key, value in (("SLURM_NTASKS", "4"), ("SLURM_PROCID", "3"), ("SLURM_LOCALID", "3")):
        monkeypatch.setenv(key, value)
    assert resolve_device(name) == torch.device("cuda", index)


def test_a_precision_that_the_processor_lacks_is_said(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: True, raising=False)
    cpu = torch.device("cpu")
    assert "--precision bf16 is slower than fp32" in slow_precision(cpu, "bf16")
    assert not slow_precision(cpu, "fp16") and not slow_precision(cpu, "fp32")
    assert not slow_precision(torch.device("cuda", 0), "bf16")


def test_a_run_warns_of_it(effvl, report, monkeypatch):
    monkeypatch.setattr(run, "slow_precision", lambda device, precision: f"{precision} is slow on a {device.type}")
    line = ("pretrain", "--method", "supervised", "--data", "digits", "--model", "tiny:resnet", "--steps", 1)
    assert effvl(*line, "--batch-size", 8, "--out", "r").code == 0
    assert "fp32 is slow on a cpu" in report("r").warnings
