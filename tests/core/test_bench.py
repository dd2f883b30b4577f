"""The one comparison of latencies: turns, rows, intervals, memory, table and picture."""

import json
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from effvl_cli.core import bench, signals
from effvl_cli.core.cache import Cache
from effvl_cli.core.errors import Preempted
from effvl_cli.core.report import Report, ReportBuilder
from effvl_cli.core.run import Run

CPU = torch.device("cpu")


@pytest.fixture
def opened(tmp_path):
    report = ReportBuilder(command="toy bench", run_id="x", seed=0, config_sha256="", recipe=None, device=CPU)
    return Run(tmp_path, "toy bench", CPU, Cache(tmp_path), report)


@pytest.fixture
def canned(monkeypatch):
    """Every pass takes as long as its arm says: the function's own return value, in ms."""
    monkeypatch.setattr(bench, "_one_pass", lambda function, device: float(function()))


def arm(name, ms, **more):
    return bench.Arm(name, lambda batch: lambda: ms * batch, **more)


def finished(opened) -> Report:
    return Report(**{**vars(opened.report.finish("completed"))})


def test_arms_take_turns_and_stop_where_the_protocol_says():
    order = []

    def function(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)

        return run

    times = bench.timed({"slow": function("s", 0.004), "fast": function("f", 0.001)}, CPU, seconds=0.05)
    assert order == ["s", "f"] * (len(order) // 2)
    counts = {len(latency.samples) for latency in times.values()}
    assert len(counts) == 1 and counts.pop() == len(order) // 2 - bench.WARM_UPS >= bench.MIN_PASSES
    gain = bench.ratio(times["slow"], times["fast"])
    assert gain.low <= gain.value <= gain.high and gain.value > 1.5
    order.clear()
    bench.timed({"fast": function("f", 0.0)}, CPU, passes=3)
    assert len(order) == bench.WARM_UPS + 3


def test_percentiles():
    latency = bench.Latency(tuple(float(k) for k in range(11)))
    assert (latency.p10_ms, latency.median_ms, latency.p90_ms) == (1, 5, 9)


def test_rows_say_what_was_timed_and_against_what(opened, canned):
    arms = [arm("dense", 4.0), arm("pruned", 2.0, macs=0.4, about={"patches": 38})]
    rows = bench.compare(arms, [1, 8], opened, precision="bf16")
    assert [(row.arm, row.batch) for row in rows] == [(name, b) for b in (1, 8) for name in ("dense", "pruned")]
    dense, pruned = rows[:2]
    assert (dense.ratio, dense.ratio_ci95, dense.mac_ratio) == (1.0, (1.0, 1.0), 1.0)
    assert (pruned.median_ms, pruned.p10_ms, pruned.p90_ms, pruned.ratio, pruned.speedup) == (2.0, 2.0, 2.0, 0.5, 2.0)
    assert pruned.images_per_s == 500.0 and rows[3].images_per_s == 500.0
    assert pruned.passes == bench.MAX_PASSES and pruned.peak_mb is None
    assert (pruned.precision, pruned.device, pruned.threads) == ("bf16", "cpu", torch.get_num_threads())
    assert bench.rows_from(json.loads(json.dumps([row.to_dict() for row in rows]))) == rows


def test_the_interval_of_a_ratio_holds_the_ratio_and_turns_over_with_it(opened, monkeypatch):
    drawn = iter(np.random.default_rng(0).gamma(9.0, 1.0, 1000))
    monkeypatch.setattr(bench, "_one_pass", lambda function, device: float(function() * next(drawn)))
    row = bench.compare([arm("a", 1.0), arm("b", 2.0)], [1], opened)[-1]
    low, high = row.ratio_ci95
    assert 1 < low < row.ratio < high and row.speedup_ci95 == (1 / high, 1 / low)


def test_passes_run_at_the_asked_precision_without_gradients(opened, monkeypatch):
    monkeypatch.setattr(bench, "MAX_PASSES", 1)
    seen = []
    layer = torch.nn.Linear(4, 4)

    def prepare(batch):
        x = torch.ones(batch, 4)
        return lambda: seen.append(layer(x))

    bench.compare([bench.Arm("only", prepare)], [3], opened, precision="bf16")
    assert {found.dtype for found in seen} == {torch.bfloat16} and not any(found.requires_grad for found in seen)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_batch_that_does_not_fit_is_left_out_with_a_warning(opened, canned, error):
    def prepare(batch):
        if batch == 4:
            raise error
        return lambda: 1.0

    rows = bench.compare([arm("a", 1.0), bench.Arm("b", prepare)], [1, 4, 8], opened)
    assert [row.batch for row in rows] == [1, 1, 8, 8]
    assert opened.report.warnings == ["latency at batch 4 left out: out of memory"]


def test_other_errors_are_not_taken_for_a_full_memory(opened):
    def prepare(batch):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        bench.compare([bench.Arm("a", prepare)], [1], opened)


def test_a_stop_request_is_heard_between_two_batches(opened, canned, monkeypatch):
    def prepare(batch):
        monkeypatch.setattr(signals, "requested", lambda: signal.SIGTERM)
        batches.append(batch)
        return lambda: 1.0

    batches = []
    with pytest.raises(Preempted):
        bench.compare([bench.Arm("a", prepare)], [1, 2], opened)
    assert batches == [1]


def test_table_and_picture(opened, canned, drawn):
    arms = [arm("dense", 4.0), arm("pruned", 2.0, macs=0.4, about={"patches": 38})]
    bench.record(opened, bench.compare(arms, [1, 2], opened))
    table = bench.table(finished(opened))
    assert table.columns[:4] == ("arm", "patches", "runtime", "batch")
    row = dict(zip(table.columns, table.rows[3], strict=True))
    assert (row["arm"], row["patches"], row["batch"], row["speed-up"]) == ("pruned", 38, 2, "2.00x")
    assert (row["95 %"], row["MACs say"], row["measured / MACs"]) == ("2.00-2.00", "2.50x", "0.80")
    picture = np.asarray(Image.open(opened.folder / "plots" / "latency.png").convert("RGB"))
    assert picture.std() > 10 and [file.path for file in finished(opened).artifacts] == ["plots/latency.png"]


def test_a_table_without_rows_says_so(opened):
    bench.record(opened, [])
    assert bench.table(finished(opened)).notes == ("nothing fitted in memory",)
