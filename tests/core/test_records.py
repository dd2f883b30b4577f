"""metrics.jsonl and its copies."""

import sys
import types
from typing import ClassVar

import pytest

from effvl_cli.core import records
from effvl_cli.core.errors import MissingPackageError
from effvl_cli.core.records import Records
from effvl_cli.core.tensorboard import EventFile


class Summary:
    """Stands for torch's SummaryWriter, which needs a package."""

    made: ClassVar[list] = []

    def __init__(self, folder):
        self.scalars = []
        Summary.made.append(self)

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def flush(self):
        pass

    def close(self):
        pass


def test_a_resume_repeats_no_line_and_no_event(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Summary))
    path = tmp_path / "metrics.jsonl"
    first = Records(path, writers=(EventFile(tmp_path / "tensorboard"),))
    first.write("train", {"phase": "tuning", "step": 1, "loss": 2.0})
    kept = first.offset()
    first.write("train", {"phase": "tuning", "step": 2, "loss": 1.0})  # after the last checkpoint, then a kill
    with path.open("a") as file:
        file.write('{"event": "train", "st')
    again = Records(path, resumed=True, writers=(EventFile(tmp_path / "tensorboard"),))
    again.settle(kept)
    assert again.offset() == kept
    again.write("train", {"phase": "tuning", "step": 2, "loss": 0.5, "note": "x"})
    again.write("step", {"k": 1, "removed": ["a"], "before": {"top1": 0.5}})
    again.close()
    found = records.read(path)
    assert [row.get("loss") for row in found] == [2.0, 0.5, None]
    assert Summary.made[-1].scalars == [("tuning/loss", 2.0, 1), ("tuning/loss", 0.5, 2)]
    records.write_table(tmp_path / "metrics.csv", found)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "event,phase,step,loss,note,k,removed,before",
        "train,tuning,1,2.0,,,,",
        "train,tuning,2,0.5,x,,,",
        'step,,,,,1,"[""a""]","{""top1"": 0.5}"',
    ]


def test_without_the_package_the_line_to_install_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'effvl\[tensorboard\]'"):
        EventFile(tmp_path)
