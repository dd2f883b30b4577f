import json
from types import SimpleNamespace

import pytest

from effvl_cli.core.records import RECORDS
from effvl_cli.engines.pretrain.pictures import accuracy_over_budget


def test_accuracy_over_the_budget_has_error_bars(tmp_path):
    record = {"event": "eval", "phase": "train", "step": 5, "knn20_val": 0.8}
    (tmp_path / RECORDS).write_text(json.dumps(record) + "\n")
    clock = SimpleNamespace(spent=lambda step: 1000.0 * step)
    found = accuracy_over_budget(SimpleNamespace(folder=tmp_path), {"train": clock}, 77)
    assert found == {"train": [(5.0, 0.8, pytest.approx((0.8 * 0.2 / 76) ** 0.5))]}
