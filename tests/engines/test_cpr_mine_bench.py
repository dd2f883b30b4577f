"""`effvl cpr-mine bench`, and the first stage by an index of faiss where that is installed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

SMALL = ("--num-items", 300, "--num-queries", 8, "--dim", 8, "--first-stage", 40, "--top-k", "5,20", "--seconds", 0.01)


def test_rows_of_a_small_bank(here, report, monkeypatch):
    from effvl_cli.engines.cpr_mine import bench

    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    outcome = here("cpr-mine", "bench", *SMALL, "--out", "r")
    assert "faiss is not installed" in outcome.err and "a:40,b:20,a:10,a:5" in outcome.out
    done = report("r")
    assert {"top5_ms", "top20_ms", "cascade_ms"} == set(done.metrics)
    assert done.efficiency["peak_rss_bytes"] > 0


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
@pytest.mark.parametrize("kind", ["faiss-flat", "faiss-ivf", "faiss-hnsw"])
def test_a_first_stage_by_faiss(here, report, workdir, kind):
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(f"{name}.npy", generator.normal(size=(400, 8)).astype(np.float32))
    line = ("cpr-mine", "mine", "--features", "a.npy,b.npy", "--cascade", "b:50,a:20,b:5")
    here(*line, "--out", "exact")
    here(*line, "--stage1-index", kind, "--out", "index")
    done = report("index")
    recall = done.metrics["stage1_recall"].value
    assert recall == 1 if kind != "faiss-ivf" else 0.5 < recall <= 1
    assert done.technique["approx"] is (kind != "faiss-flat") and done.technique["stage1_index"] == kind
    exact, found = (np.load(Path(name, "positives.npz"))["indices"] for name in ("exact", "index"))
    assert (exact == found).mean() >= (1 if kind != "faiss-ivf" else 0.5)
    here(*line[:4], "--stage1-index", kind, "--out", "default")
    assert [row["n"] for row in report("default").technique["stages"]] == [400, 200, 100, 50, 25, 12, 5]
