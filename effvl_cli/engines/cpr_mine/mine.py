"""`effvl cpr-mine mine`: positives of saved embeddings, by a cascade over their views."""

import resource
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from effvl_cli.config.cpr_mine_mine import MineConfig, size_of
from effvl_cli.core import distributed
from effvl_cli.core.errors import UsageError
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table, percent
from effvl_cli.engines.cpr_mine.cascades import keys_of
from effvl_cli.engines.cpr_mine.embeddings import Items, forbid_of, open_items, open_queries
from effvl_cli.engines.cpr_mine.first_stage import by_index, index_of, pool, recall_of, require_faiss
from effvl_cli.engines.cpr_mine.mine_pictures import draw_pictures
from effvl_cli.engines.cpr_mine.mine_sheets import draw_item_sheets
from effvl_cli.engines.cpr_mine.mine_stages import stages_of_options
from effvl_cli.engines.cpr_mine.mining import Found, Settings, Verdict, duplicates, mine_all, shape_of, verdict
from effvl_cli.engines.cpr_mine.positives import GRAPH, LINES, POSITIVES, write_graph, write_lines, write_positives
from effvl_cli.techniques.cpr_mine.forbid import Forbid, Forbidden
from effvl_cli.techniques.cpr_mine.mining_plan import MemoryLimitError, Plan, Problem, plan
from effvl_cli.techniques.cpr_mine.stages import Stage, described

SLOW = 4e10  # pairs of whole rows above which a CPU needs --force: 200,000 squared
MANY_ALIKE = 64  # nearest items of each view that --dedupe looks at
FIGURES = ("precision", "recall", "true_recall", "hit", "coverage")


@dataclass(frozen=True)
class Task:
    """What is mined: items, queries (the same object where they are the items), stages."""

    items: Items
    queries: Items
    stages: tuple[Stage, ...]

    @property
    def same(self) -> bool:
        """Whether the queries are the items."""
        return self.queries is self.items

    @property
    def labels(self) -> tuple[Tensor, Tensor] | None:
        """Of queries and items."""
        asked, known = self.queries.labels, self.items.labels
        return None if asked is None or known is None else (asked, known)


def run(config: MineConfig, run: Run) -> None:
    """Mine, judge by the labels where there are some, write the positives, draw."""
    task = _open(config)
    _refuse_slow(config, run.device.type, task)
    _describe(run, config, task)
    forbid = _forbid(config, run, task)
    settings = _settings(config, run, task, forbid)
    started = time.perf_counter()
    found = mine_all(
        run,
        task.queries.views,
        task.items.views,
        task.stages,
        forbid=forbid,
        labels=task.labels,
        settings=settings,
    )
    run.report.efficiency.update(
        mining_s=time.perf_counter() - started,
        gemm_s=found.seconds["gemm"],
        select_s=found.seconds["select"],
        peak_rss_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    _warn(run, config, task, found)
    judged = None
    if task.labels is not None:
        judged = verdict(found, task.labels, forbid, drawn=config.pool is not None)
        _figures(run, judged, task)
    _record(run, config, task, found, judged)
    _write(run, config, task, found)
    if judged is not None:
        draw_pictures(run, judged, task.stages, task.items.classes)
    if task.same and not config.pool:
        draw_item_sheets(run, task.items, task.stages, forbid, config.seed)


def _open(config: MineConfig) -> Task:
    if config.stage1_index:
        require_faiss()
    items = open_items(config)
    stages = stages_of_options(config, tuple(items.views), len(items))
    return Task(items, open_queries(config, items), stages)


def _plan(config: MineConfig, task: Task) -> Plan:
    """How it will be computed.

    Raises:
        UsageError: a query does not fit into the memory.
    """
    problem = Problem(
        task.stages,
        {view: rows.shape[1] for view, rows in task.items.views.items()},
        len(task.items),
        -(-len(task.queries) // distributed.world().size),
        candidates=config.pool or 0,
        alone=config.top_k,
    )
    try:
        return plan(problem, mem_bytes=size_of(config.mem), method=config.method, block_q=config.block_size)
    except MemoryLimitError as error:
        raise UsageError(str(error), f"Give --mem {-(-error.needed // 2**20)}M") from error


def _refuse_slow(config: MineConfig, device: str, task: Task) -> None:
    """Whole rows for very many queries on a CPU.

    Raises:
        UsageError: they were not asked for by --force.
    """
    pairs = len(task.queries) * len(task.items)
    slow = pairs > SLOW and task.stages[0].n > len(task.items) // 20 and not config.pool
    if slow and device == "cpu" and not config.force:
        raise UsageError(
            f"{len(task.queries)} queries by {len(task.items)} items take hours on a CPU while the first stage keeps "
            f"{task.stages[0].n}",
            "Give --pool 2048, or a small first stage (--first-stage 1024), or --force",
        )


def _describe(run: Run, config: MineConfig, task: Task) -> None:
    run.log(f"cascade {described(task.stages)} over {len(task.items)} items, {len(task.queries)} queries")
    about = {key: value for key, value in task.items.about.items() if key != "classes"}
    run.report.technique.update(
        views=list(task.items.views),
        dims={view: rows.shape[1] for view, rows in task.items.views.items()},
        items=len(task.items),
        queries=len(task.queries),
        embeddings=about,
        pool=config.pool,
        pool_seed=config.seed if config.pool else None,
    )


def _forbid(config: MineConfig, run: Run, task: Task) -> Forbid:
    """What may not be found; with --dedupe a first search finds the duplicates."""
    forbid = forbid_of(task.items, task.queries)
    if not config.dedupe:
        return forbid
    view = task.stages[0].view
    most = min(MANY_ALIKE, len(task.items) - 1)
    settings = Settings(size_of(config.mem), "auto", config.block_size)
    stages = (Stage(view, most),)
    looked = mine_all(run, task.queries.views, task.items.views, stages, forbid=forbid, settings=settings)
    pairs = duplicates(looked.alone, len(task.items))
    most_of_one = int(pairs[:, 0].bincount().max()) if len(pairs) else 0
    if most_of_one >= most:
        run.warn(f"some items have {most} duplicates or more: only the first {most} of them are left out")
    run.report.technique["duplicates_left_out"] = len(pairs)
    return forbid_of(task.items, task.queries, pairs)


def _settings(config: MineConfig, run: Run, task: Task, forbid: Forbid) -> Settings:
    """How to compute; builds the index of --stage1-index and measures its recall."""
    candidates = None
    if config.pool:
        candidates = pool(len(task.items), config.pool, config.seed)
    elif config.stage1_index:
        first = task.stages[0]
        index = index_of(config.stage1_index, task.items.views[first.view], config.seed)
        candidates = by_index(index, first.view, first.n)
        recall = recall_of(candidates, task.queries.views, task.items.views, first, forbid, config.seed)
        run.report.metric("stage1_recall", recall, unit="fraction", higher_is_better=True)
        run.report.technique["stage1_index"] = config.stage1_index
    run.report.technique["approx"] = bool(config.stage1_index and config.stage1_index != "faiss-flat")
    return Settings(size_of(config.mem), config.method, config.block_size, config.tf32, candidates)


def _warn(run: Run, config: MineConfig, task: Task, found: Found) -> None:
    """Of rows of zeros, of queries with few candidates, of duplicates."""
    for view, count in found.zero_rows.items():
        if count:
            run.warn(f"{count} rows of {view} have norm zero: their similarity to everything is 0")
    short = int((found.indices < 0).any(1).sum())
    if short:
        run.warn(f"{short} queries have fewer than {config.top_k} candidates: the rest of their positives is -1")
    pairs = duplicates(found.alone, len(task.items))
    alike = len(pairs.sort(1).values.unique(dim=0)) if task.same else len(pairs)
    run.report.technique["duplicates"] = alike
    if alike and not config.dedupe:
        run.warn(
            f"{alike} or more pairs of different items are alike in every view (cosine above 0.9999); "
            "--dedupe keeps them from being positives"
        )


def _figures(run: Run, judged: Verdict, task: Task) -> None:
    """Figures of the report; null where no query has an item of its class to find."""
    whole, count = judged.cascade, judged.cascade.queries
    if not count:
        run.warn("no item has another one of its class to find: there are no figures of quality")
    elif len(whole.per_class) == 1:
        run.warn("there is only one class: figures of quality say nothing")
    blank = len(whole.per_class) < 2

    def metric(name: str, value: float | None) -> None:
        run.report.metric(name, None if blank else value, unit="fraction", higher_is_better=True, n=count)

    metric("class_mining_recall_median", whole.median["recall"])
    for name in FIGURES:
        metric(f"mining_{name}_mean", whole.mean[name])
        metric(f"mining_{name}_median", whole.median[name])
    keys = keys_of(list(task.items.views))
    for view, quality in judged.alone.items():
        metric(f"mining_precision_{keys[view]}", quality.mean["precision"])
    for rank, value in judged.recall_at.items():
        metric(f"retrieval_r{rank}", value)


def _record(run: Run, config: MineConfig, task: Task, found: Found, judged: Verdict | None) -> None:
    """What the cascade did, for the report."""
    stages: list[dict[str, object]] = [{"view": stage.view, "n": stage.n} for stage in task.stages]
    shape = shape_of(found, len(task.items), same=task.same)
    new = shape.pop("new")
    assert isinstance(new, dict)
    baselines: dict[str, dict[str, object]] = {view: {"new_positives": share} for view, share in new.items()}
    if judged is not None:
        for row, quality in zip(stages, judged.stages, strict=True):
            row.update(kept=quality.kept, purity=quality.purity)
        for view, found_alone in judged.alone.items():
            baselines[view].update(mean=found_alone.mean, median=found_alone.median)
        run.report.technique["per_class"] = {
            _class_name(label, task.items.classes): row for label, row in judged.cascade.per_class.items()
        }
    run.report.technique.update(
        stages=stages,
        cascade=described(task.stages),
        baselines=baselines,
        method=found.plan.method,
        block=found.plan.block,
        forbidden_pairs=_forbidden_pairs(task),
        dropped=shape.pop("short_queries"),
        **shape,
    )


def _class_name(label: int, classes: tuple[str, ...]) -> str:
    return classes[label] if label < len(classes) else str(label)


def _forbidden_pairs(task: Task) -> int:
    """Pairs of a query and an item of one name, and of one source."""
    return Forbidden(forbid_of(task.items, task.queries), torch.device("cpu")).total


def _write(run: Run, config: MineConfig, task: Task, found: Found) -> None:
    ids = task.items.names
    query_ids = ids if task.same else task.queries.names
    run.write(POSITIVES, write_positives, found.indices, found.scores, ids, query_ids)
    if config.jsonl:
        run.write(LINES, write_lines, found.indices, found.scores, ids, query_ids)
    if config.graph:
        run.write(GRAPH, write_graph, found.indices)


def preview(config: MineConfig) -> list[Table]:
    """Stages with their sizes, and what they cost."""
    task = _open(config)
    chosen = _plan(config, task)
    whole = config.pool or len(task.items)
    rows = tuple(
        (number, stage.view, stage.n, percent(stage.n / whole, 2)) for number, stage in enumerate(task.stages, 1)
    )
    macs = chosen.macs * len(task.queries)
    notes = (
        f"{len(task.queries)} queries, {len(task.items)} items"
        + (f", each query sees {config.pool} of them" if config.pool else ""),
        f"{macs / 1e9:.1f} G multiply-adds, the views alone included; method {chosen.method}, {chosen.block} queries "
        f"at a time, within {config.mem} of working memory",
    )
    return [Table(f"cascade {described(task.stages)}", ("stage", "view", "keeps", "% of the items"), rows, notes)]


def table(report: Report) -> Table:
    """The cascade beside each view alone."""
    about = report.technique
    title = f"{about['queries']} queries, {about['items']} items, cascade {about['cascade']}"
    seconds = report.efficiency["mining_s"]
    notes = [f"mined in {seconds:.1f} s by {about['method']}; positives in {POSITIVES}"]
    if about["dropped"]:
        notes.append(f"{about['dropped']} queries have fewer positives than were asked for")
    if "per_class" not in about:
        rows: list[tuple[Cell, ...]] = [
            (row["view"], row["n"], percent(about["baselines"][row["view"]]["new_positives"]))
            for row in about["stages"]
        ]
        return Table(title, ("stage", "keeps", "positives new to the view %"), tuple(rows), tuple(notes))
    rows = [
        (f"{view} alone", *(_cells(row["mean"], row["median"])), percent(row["new_positives"]))
        for view, row in about["baselines"].items()
    ]
    own = {name: {key: report.metrics[f"mining_{key}_{name}"].value for key in FIGURES} for name in ("mean", "median")}
    rows.append(("cascade", *_cells(own["mean"], own["median"]), None))
    columns = ("mining", "precision", "recall", "true recall", "hit", "coverage", "recall, median class", "new %")
    shares = [
        f"{row['view']}:{row['n']} {percent(row['purity'])}" for row in about["stages"] if row["purity"] is not None
    ]
    notes += [
        "mean over queries in %, of coverage over classes; recall: of min(k, class size); new: positives of the "
        "cascade that are not among the view's own",
        *([f"purity of the stages in %: {', '.join(shares)}"] if shares else []),
    ]
    return Table(title, columns, tuple(rows), tuple(notes))


def _cells(mean: dict[str, float | None], median: dict[str, float | None]) -> tuple[Cell, ...]:
    return (*(percent(mean[name]) for name in FIGURES), percent(median["recall"]))
