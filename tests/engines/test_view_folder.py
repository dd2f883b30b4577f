"""Folders of embeddings come back as they were written; damaged ones are refused."""

import json

import numpy as np
import pytest
import torch

from effvl_cli.core.cache import Cache
from effvl_cli.core.errors import DataError, ModelError
from effvl_cli.core.report import ReportBuilder
from effvl_cli.core.run import Run
from effvl_cli.engines.common.view_folder import digest_beside, read_about, read_views, write_views


@pytest.fixture
def folder(tmp_path):
    device = torch.device("cpu")
    report = ReportBuilder(command="x", run_id="", seed=0, config_sha256="", recipe=None, device=device)
    run = Run(tmp_path / "run", "x", device, Cache(tmp_path), report)
    arrays = {"rgb": np.arange(6, dtype=np.float32).reshape(3, 2), "flow:dis": np.ones((3, 4), np.float32)}
    write_views(run, arrays, ["a", "b é", "c#3"], labels=np.array([1, -1, 0]), about={"data": "x", "of": {"rgb": 1}})
    return run.folder


def test_views_come_back(folder):
    found = read_views(folder)
    assert list(found.views) == ["rgb", "flow:dis"] and found.ids == ("a", "b é", "c#3")
    assert np.load(found.views["rgb"], allow_pickle=False).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found.views["flow:dis"].name == "flow-dis.npy"
    assert np.load(found.labels).tolist() == [1, -1, 0] and found.groups is None
    assert found.about == {"data": "x", "of": {"rgb": 1}}
    assert digest_beside(folder / "rgb.npy") == found.ids_digest == digest_beside(folder / "flow-dis.npy")
    assert digest_beside(folder / "labels.npy") is None and digest_beside(folder.parent / "x.npy") is None


def test_damaged_folders_are_refused(folder, tmp_path):
    with pytest.raises(ModelError, match=r"holds no views\.json"):
        read_views(tmp_path)
    about = json.loads((folder / "views.json").read_text())
    for wrong in ({**about, "files": {}}, {**about, "files": {"rgb": "../x.npy"}}, [1], {**about, "ids_digest": 3}):
        (folder / "views.json").write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match="cannot be used"):
            read_about(folder)
    (folder / "views.json").write_text(json.dumps(about))
    (folder / "ids.txt").write_text("a\nc#3\nb é\n")
    with pytest.raises(DataError, match=r"is not the file that views\.json describes"):
        read_views(folder)
    (folder / "flow-dis.npy").unlink()
    with pytest.raises(DataError, match=r"flow-dis\.npy is missing"):
        read_views(folder)
