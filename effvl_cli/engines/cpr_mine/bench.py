"""`effvl cpr-mine bench`: how fast a stage and a cascade are on this machine, beside the flat index of faiss."""

import importlib.util
import resource
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effvl_cli.config.cpr_mine_bench import BenchConfig
from effvl_cli.config.cpr_mine_mine import size_of
from effvl_cli.core import seeds
from effvl_cli.core.bench import Latency, Ratio, ratio, span, timed
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table, percent, times
from effvl_cli.engines.cpr_mine.first_stage import index_of
from effvl_cli.techniques.cpr_mine.cascade import Mined, mine, unit_rows
from effvl_cli.techniques.cpr_mine.mining_plan import Problem, plan
from effvl_cli.techniques.cpr_mine.stages import Stage, described, official

VIEWS = ("a", "b")
HALVINGS = 4  # stages of the cascade


def run(config: BenchConfig, run: Run) -> None:
    """Time each size in turn with faiss, then a cascade."""
    started = _peak_rss()
    generator = seeds.generator(config.seed, "bench")
    queries, bank = (
        {view: torch.randn(count, config.dim, generator=generator) for view in VIEWS}
        for count in (config.num_queries, config.num_items)
    )
    index = None
    if importlib.util.find_spec("faiss") is None:
        run.warn("faiss is not installed, so there is nothing to compare with: pip install 'effvl[faiss]'")
    else:
        index = index_of("faiss-flat", bank[VIEWS[0]], 0)
    before = _peak_rss()
    rows = [_row(config, run, (Stage(VIEWS[0], k),), queries, bank, index) for k in config.top_k]
    rows.append(_row(config, run, _cascade(config), queries, bank, None))
    run.report.technique.update(rows=rows, threads=torch.get_num_threads(), device=run.device.type)
    run.report.efficiency.update(peak_rss_bytes=_peak_rss(), growth_bytes=_peak_rss() - before, start_bytes=started)
    for row in rows:
        name = "cascade" if row["k"] is None else f"top{row['k']}"
        run.report.metric(f"{name}_ms", row["ms"], unit="ms", higher_is_better=False)
        if row["speedup"] is not None:
            run.report.metric(f"{name}_speedup", row["speedup"], unit="ratio")
            run.report.metric(f"{name}_agreement", row["agreement"])


def _cascade(config: BenchConfig) -> tuple[Stage, ...]:
    k = min(5, config.num_items)
    return official(
        config.num_items, VIEWS, num_stages=HALVINGS, ratio=0.5, top_k=k, first=max(config.first_stage, 4 * k)
    )


def _row(
    config: BenchConfig,
    run: Run,
    stages: tuple[Stage, ...],
    queries: Mapping[str, Tensor],
    bank: Mapping[str, Tensor],
    index: Any,
) -> dict[str, Any]:
    """Times of ours and, with an index, of faiss, and how far both find the same."""
    on_device = {view: rows.to(run.device) for view, rows in queries.items()}
    held = {view: rows.to(run.device) for view, rows in bank.items()}

    def ours() -> Mined:
        return mine(on_device, held, stages, mem_bytes=size_of(config.mem))

    functions: dict[str, Callable[[], Any]] = {"ours": ours}
    asked = np.ascontiguousarray(unit_rows(queries[VIEWS[0]]).numpy())
    if index is not None:
        functions["faiss"] = lambda: index.search(asked, stages[0].n)
    run.log(f"timing {described(stages)}")
    found = timed(functions, run.device, seconds=config.seconds)
    mined = ours()
    speed: Ratio | None = ratio(found["faiss"], found["ours"]) if index is not None else None
    return {
        "cascade": described(stages),
        "k": stages[0].n if len(stages) == 1 else None,
        "method": mined.plan.method,
        "block": mined.plan.block,
        **_latency("", found["ours"]),
        **(_latency("faiss_", found["faiss"]) if index is not None else {"faiss_ms": None}),
        "speedup": None if speed is None else speed.value,
        "speedup_ci95": None if speed is None else [speed.low, speed.high],
        "agreement": None if index is None else _agreement(mined.indices, index.search(asked, stages[0].n)[1]),
    }


def _latency(prefix: str, found: Latency) -> dict[str, float]:
    return {f"{prefix}ms": found.median_ms, f"{prefix}p10_ms": found.p10_ms, f"{prefix}p90_ms": found.p90_ms}


def _agreement(ours: Tensor, theirs: Any) -> float:
    """Share of what one finds that the other finds too: their recall, as both are exact."""
    shared = sum(len(np.intersect1d(one, other)) for one, other in zip(ours.cpu().numpy(), theirs, strict=True))
    return shared / ours.numel()


def _peak_rss() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def preview(config: BenchConfig) -> list[Table]:
    """What is timed."""
    rows = []
    for stages in (*((Stage(VIEWS[0], k),) for k in config.top_k), _cascade(config)):
        problem = Problem(stages, dict.fromkeys(VIEWS, config.dim), config.num_items, config.num_queries)
        chosen = plan(problem, mem_bytes=size_of(config.mem))
        rows.append((described(stages), chosen.method, f"{chosen.macs * config.num_queries / 1e9:.1f}"))
    return [Table("what is timed", ("stages", "method", "G multiply-adds"), tuple(rows))]


def table(report: Report) -> Table:
    """Ours beside faiss."""
    about = report.technique
    rows = tuple(
        (
            row["cascade"],
            row["method"],
            f"{row['ms']:.0f}",
            None if row["faiss_ms"] is None else f"{row['faiss_ms']:.0f}",
            times(row["speedup"]),
            None if row["speedup_ci95"] is None else span(tuple(row["speedup_ci95"])),
            percent(row["agreement"], 2),
        )
        for row in about["rows"]
    )
    peak, growth = (report.efficiency[name] / 2**20 for name in ("peak_rss_bytes", "growth_bytes"))
    notes = (
        f"on {about['device']}, threads: {about['threads']}; the same: share of the neighbours that both find",
        f"peak memory of the process {peak:.0f} MiB, {growth:.0f} MiB of it since the embeddings were made",
    )
    return Table(report.command, ("stages", "method", "ms", "faiss ms", "speed-up", "95 %", "the same %"), rows, notes)
