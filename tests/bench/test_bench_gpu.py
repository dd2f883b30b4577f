"""The script for a GPU, in miniature on the CPU: every line of it runs, and it ends when the time is over."""

import json
from pathlib import Path

from tests.bench import bench_gpu
from tests.conftest import time_few_passes


def test_every_row_and_check_runs(workdir, few_images, monkeypatch):
    time_few_passes(monkeypatch)
    bench_gpu.main(["--miniature", "--out", "found.json"])  # gains of tiny networks on a CPU are not asked for
    found = json.loads(Path("found.json").read_text())
    assert found["left_out"] == [] and set(found["checks"]) == {check.__name__ for check in bench_gpu.CHECKS}
    assert all(text.startswith("PASS") for text in found["checks"].values()), found["checks"]
    names = [row["name"] for row in found["rows"]]
    assert len(names) == len(set(names)) == 2 * 3 + 2 + 2 * 3 + 3 + 1
    assert all(row["value"] > 0 for row in found["rows"])
    gains = [row for row in found["rows"] if row["unit"] == "x"]
    assert len(gains) == 6 and all(0 < row["asked"] < row["bound"] for row in gains)
    assert sum(row["asked"] is None for row in found["rows"]) == 4 + 1 + 4 + 1 + 1


def test_without_time_it_says_what_is_left_out(workdir, capsys):
    assert bench_gpu.main(["--miniature", "--minutes", "0", "--out", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    assert found["rows"] == [] and found["checks"] == {}
    assert found["left_out"] == [part.__name__ for part in (*bench_gpu.PARTS, *bench_gpu.CHECKS)]
    assert "out of time: towers, search" in capsys.readouterr().out


def test_it_ends_between_two_rows(workdir, monkeypatch):
    bench = bench_gpu.Bench(bench_gpu.torch.device("cpu"), bench_gpu.MINIATURE, deadline=0.0)
    monkeypatch.setattr(bench, "left", lambda: 0.0 if Path("found.json").exists() else 1.0)
    monkeypatch.setattr(
        bench_gpu, "PARTS", (lambda bench: iter([bench_gpu.Row("a", 1.0, "x"), bench_gpu.Row("b", 1.0, "x")]),)
    )
    found = bench_gpu.run(bench, Path("found.json"))
    assert [row["name"] for row in found["rows"]] == ["a"] and "<lambda>" in found["left_out"]


def test_kept_counts_are_those_of_the_search():
    """64 patches by 10 a round until 20 are left: 64, 54, 44, 34, 24 candidates, and the 20 once more."""
    counts = bench_gpu.kept_counts(64)
    assert sorted(set(counts), reverse=True) == [63, 53, 43, 33, 23, 19]
    assert len(counts) == 64 + 54 + 44 + 34 + 24 + 20
