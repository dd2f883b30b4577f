"""The mining core against sets in plain Python, closed forms and hand examples (oracles 1, 2, 5 to 9, 20)."""

import math
import resource

import pytest
import torch

from effvl_cli.techniques.cpr_mine.cascade import NonFiniteError, mine, unit_rows
from effvl_cli.techniques.cpr_mine.forbid import Forbid
from effvl_cli.techniques.cpr_mine.mining_plan import MemoryLimitError, Problem, plan
from effvl_cli.techniques.cpr_mine.selection import top_n
from effvl_cli.techniques.cpr_mine.stages import CascadeError, Stage, official
from tests.alive import Alive

METHODS = ("gather", "mask")


def brute_force(queries, bank, stages, forbidden=frozenset()):
    """Bank rows of each query by sets and sorting."""
    found = []
    for b in range(len(next(iter(queries.values())))):
        rows = [j for j in range(len(next(iter(bank.values())))) if (b, j) not in forbidden]
        for stage in stages:

            def key(j, b=b, view=stage.view):
                return -sum(x * y for x, y in zip(queries[view][b].tolist(), bank[view][j].tolist(), strict=True)), j

            rows = sorted(rows, key=key)[: stage.n]
        found.append(rows)
    return found


def eighths(generator, *shape):
    """Multiples of 1/8 whose products are exact in float32, with many ties."""
    return torch.randint(-4, 5, shape, generator=generator) / 8


def listed(mined):
    return [[j for j in row if j >= 0] for row in mined.indices.tolist()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_equals_brute_force_whatever_the_block_and_tile(method, count):
    generator = torch.Generator().manual_seed(count)
    for draw in range(8):
        queries, bank = (
            {view: eighths(generator, size, dim) for view, dim in (("a", 3), ("b", 2))} for size in (4, 12)
        )
        sizes = sorted(torch.randint(1, 13, (count,), generator=generator).tolist(), reverse=True)
        stages = [Stage("ab"[(number + draw) % 2], size) for number, size in enumerate(sizes)]
        pairs = torch.randint(0, 12, (10, 2), generator=generator) % torch.tensor([4, 12])
        forbid = Forbid(pairs=pairs)
        wanted = brute_force(queries, bank, stages, {tuple(pair) for pair in pairs.tolist()})
        for block, tile in ((1, 1), (2, 5), (3, 12), (4, 7), (None, None)):
            found = mine(queries, bank, stages, forbid=forbid, block_q=block, tile=tile, method=method, normalize=False)
            assert found.plan.method == method and listed(found) == wanted, (sizes, block, tile)
            assert found.valid.sum(1).tolist() == [len(row) for row in wanted]
            assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()


def test_stages_that_change_nothing():
    generator = torch.Generator().manual_seed(0)
    queries, bank = ({view: torch.randn(size, 8, generator=generator) for view in "ab"} for size in (9, 40))
    unit = {
        side: {view: torch.nn.functional.normalize(x) for view, x in rows.items()}
        for side, rows in (("q", queries), ("m", bank))
    }
    plain = {view: (unit["q"][view] @ unit["m"][view].T).topk(5).indices.tolist() for view in "ab"}
    for method in METHODS:
        assert listed(mine(queries, bank, [Stage("a", 5)], method=method)) == plain["a"]
        everything = official(40, ("b", "a"), num_stages=5, ratio=1.0, top_k=5)
        assert listed(mine(queries, bank, everything, method=method)) == plain["b"]
        twins = [{"a": rows["a"], "b": rows["a"]} for rows in (queries, bank)]
        stages = official(40, ("b", "a"), num_stages=3, ratio=0.5, top_k=5)
        assert listed(mine(*twins, stages, method=method)) == plain["a"]


@pytest.mark.parametrize("method", METHODS)
def test_two_stages_and_one_work(method):
    """The released code leaves variables undefined at one and two stages."""
    rows = {"a": torch.eye(6), "b": torch.eye(6)}
    for count in (1, 2):
        stages = official(6, ("a", "b"), num_stages=count, ratio=0.5, top_k=1)
        assert listed(mine(rows, rows, stages, method=method)) == [[i] for i in range(6)]


@pytest.mark.parametrize("method", METHODS)
def test_forbidden_rows_never_return(method):
    """The released code masks stage 1 only: where n_1 is above what is eligible, they come back in stage 2."""
    rows = {"a": torch.eye(6), "b": torch.eye(6)}
    ids = torch.tensor([3, 3, 3, 4, 5, -1])
    stages = [Stage("a", 6), Stage("b", 6), Stage("a", 4)]
    found = mine({v: x[:3] for v, x in rows.items()}, rows, stages, forbid=Forbid(ids[:3], ids), method=method)
    assert listed(found) == [[3, 4]] * 3
    assert found.valid.tolist() == [[True, True, False, False]] * 3
    assert found.scores[:, 2:].eq(-math.inf).all() and found.indices[:, 2:].eq(-1).all()
    nothing = mine(rows, rows, stages, forbid=Forbid(bank_ids=torch.full((6,), -1)), method=method)
    assert nothing.indices.eq(-1).all() and not nothing.valid.any()
    kept = mine(rows, rows, stages, forbid=Forbid(ids, ids), method=method, return_stages=True).stage_stats
    assert [sorted(row[0].tolist()) for row in kept] == [[-1, -1, -1, -1, 3, 4], [-1, -1, -1, -1, 3, 4], [-1, -1, 3, 4]]


@pytest.mark.parametrize("method", METHODS)
def test_more_stages_than_candidates_are_refused(method):
    """The released code does not check that k is within the stage before."""
    rows = {"a": torch.eye(6)}
    with pytest.raises(CascadeError):
        mine(rows, rows, [Stage("a", 2), Stage("a", 3)], method=method)


def test_groups_and_their_unknown_number():
    rows = {"a": torch.ones(4, 2)}
    ids, groups = torch.arange(4), torch.tensor([7, 7, -1, -1])
    forbid = Forbid(ids, ids, groups, groups)
    assert listed(mine(rows, rows, [Stage("a", 4)], forbid=forbid)) == [[2, 3], [2, 3], [0, 1, 3], [0, 1, 2]]
    half = forbid.of_queries(range(2, 4))
    assert listed(mine({"a": rows["a"][2:]}, rows, [Stage("a", 4)], forbid=half)) == [[0, 1, 3], [0, 1, 2]]
    some = Forbid(pairs=torch.tensor([[3, 0], [0, 1], [2, 2]])).of_queries(range(2, 4))
    assert listed(mine({"a": rows["a"][2:]}, rows, [Stage("a", 4)], forbid=some)) == [[0, 1, 3], [1, 2, 3]]


@pytest.mark.parametrize("method", METHODS)
def test_ties_go_to_the_lowest_rows(method):
    rows = {"a": torch.ones(9, 2), "b": torch.ones(9, 2)}
    for tile in (1, 4, 9):
        found = mine(rows, rows, [Stage("a", 6), Stage("b", 4), Stage("a", 3)], method=method, tile=tile)
        assert found.indices.tolist() == [[0, 1, 2]] * 9


def test_top_n_with_ties_in_small_pieces():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 4, (30, 17), generator=generator).float()
    rows = torch.stack([torch.randperm(99, generator=generator)[:17] for _ in range(30)])
    for n in (1, 5, 16, 17, 40):
        for held in (None, rows):
            places = top_n(scores, n, held, tie_bytes=1)
            by = torch.arange(17).expand(30, 17) if held is None else held
            for b in range(30):
                wanted = sorted(range(17), key=lambda j, b=b, by=by: (-float(scores[b, j]), int(by[b, j])))[:n]
                assert sorted(places[b].tolist()) == sorted(wanted)


def test_top_n_of_few_among_many():
    """Groups are looked at first; ties between groups, and scores that are in no group, are none the worse."""
    generator = torch.Generator().manual_seed(2)
    for width, n, spread in ((1000, 3, 10_000), (1003, 3, 40), (997, 20, 5), (640, 19, 3)):
        scores = torch.randint(0, spread, (12, width), generator=generator).float()
        scores[0, -2:] = spread
        scores[1, n - 1 :] = -math.inf
        places = top_n(scores, n)
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :n]
        finite = scores.gather(1, order).isfinite().all(1)
        assert places.sort(1).values[finite].equal(order.sort(1).values[finite]) and not finite[1]
        assert set(places[1].tolist()) >= set(range(n - 1))


def test_permuted_scaled_and_unused():
    generator = torch.Generator().manual_seed(0)
    queries, bank = ({view: torch.randn(size, 8, generator=generator) for view in "ab"} for size in (9, 40))
    stages = official(40, ("a", "b"), num_stages=3, ratio=0.5, top_k=4)
    order = torch.randperm(40, generator=generator)
    for method in METHODS:
        plain = mine(queries, bank, stages, method=method)
        moved = mine(queries, {view: x[order] for view, x in bank.items()}, stages, method=method)
        assert order[moved.indices].equal(plain.indices)
        for factor in (3.0, 1e-30, 1e30):
            scaled = {"a": bank["a"] * factor, "b": bank["b"]}
            found = mine(queries, scaled, stages, method=method)
            assert found.indices.equal(plain.indices)
            torch.testing.assert_close(found.scores, plain.scores)
        more = [{**rows, "c": torch.zeros(len(rows["a"]), 2)} for rows in (queries, bank)]
        assert mine(*more, stages, method=method).indices.equal(plain.indices)
        assert mine(queries, {v: x.half() for v, x in bank.items()}, [Stage("a", 1)], method=method).valid.all()


def test_hand_example():
    bank = {"flow": torch.tensor([[0.9], [0.8], [0.7], [0.1]]), "rgb": torch.tensor([[0.1], [0.9], [0.8], [0.95]])}
    query = {view: torch.ones(1, 1) for view in bank}
    stages = [Stage("flow", 3), Stage("rgb", 2), Stage("flow", 1)]
    for method in METHODS:
        found = mine(query, bank, stages, normalize=False, return_stages=True, method=method)
        assert [set(row[0].tolist()) for row in found.stage_stats] == [{0, 1, 2}, {1, 2}, {1}]
        assert found.indices.tolist() == [[1]]
        assert mine(query, bank, [Stage("flow", 1)], normalize=False, method=method).indices.tolist() == [[0]]


def test_closed_form_precision():
    """Four classes (a, b), of which flow shows a and rgb shows b: the cascade sees both."""
    m, labels = 6, torch.arange(24) % 4
    views = {
        "flow": torch.nn.functional.one_hot(labels // 2).float(),
        "rgb": torch.nn.functional.one_hot(labels % 2).float(),
    }
    ids = torch.arange(24)
    for method in METHODS:
        for k in (1, 3, m - 1):
            stages = [Stage("flow", 2 * m - 1), Stage("rgb", m - 1), Stage("flow", k)]
            found = mine(views, views, stages, forbid=Forbid(ids, ids), method=method)
            assert labels[found.indices].eq(labels[:, None]).all() and found.valid.all()
        for view in ("flow", "rgb"):
            found = mine(views, views, [Stage(view, 4)], forbid=Forbid(ids, ids), method=method)
            right = labels[found.indices].eq(labels[:, None]).float().mean(1)
            wanted = brute_force(views, views, [Stage(view, 4)], {(i, i) for i in range(24)})
            assert listed(found) == [sorted(row) for row in wanted]
            if view == "flow":
                assert right[8:].eq(0.5).all()


def test_random_embeddings_give_chance():
    generator = torch.Generator().manual_seed(0)
    classes, m = 5, 80
    labels = torch.arange(classes * m) % classes
    views = {view: torch.randn(classes * m, 16, generator=generator) for view in "ab"}
    ids = torch.arange(classes * m)
    stages = official(classes * m, ("a", "b"), num_stages=3, ratio=0.5, top_k=5)
    found = mine(views, views, stages, forbid=Forbid(ids, ids))
    right = labels[found.indices].eq(labels[:, None]).double()
    chance = (m - 1) / (classes * m - 1)
    assert abs(right.mean() - chance) < 4 * math.sqrt(chance * (1 - chance) / right.numel())


@pytest.mark.parametrize("method", METHODS)
def test_given_candidates(method):
    """The first stage chooses from these alone; forbidden ones and -1 are none."""
    generator = torch.Generator().manual_seed(0)
    queries, bank = ({view: eighths(generator, size, 3) for view in "ab"} for size in (5, 20))
    pool = torch.stack([torch.randperm(20, generator=generator)[:9] for _ in range(5)])
    pool[:, 2] = -1
    pairs = torch.stack([torch.arange(5), pool[:, 0]], 1)
    allowed = [{*row.tolist()} - {-1, int(row[0])} for row in pool]
    forbidden = {(b, j) for b in range(5) for j in range(20) if j not in allowed[b]}
    stages = [Stage("a", 6), Stage("b", 4), Stage("a", 3)]
    for block in (1, 3, 5):
        found = mine(
            queries,
            bank,
            stages,
            forbid=Forbid(pairs=pairs),
            method=method,
            normalize=False,
            block_q=block,
            candidates=(9, lambda rows, unit: pool[rows.start : rows.stop]),
        )
        assert listed(found) == brute_force(queries, bank, stages, forbidden)


def test_bad_embeddings():
    rows = torch.eye(6)
    worse = rows.clone()
    worse[2, 1], worse[4, 0] = math.nan, math.inf
    with pytest.raises(NonFiniteError, match=r"E_NONFINITE: 2 rows of a .*row 2"):
        mine({"a": rows}, {"a": worse}, [Stage("a", 1)])
    with pytest.raises(NonFiniteError, match=r"2 rows of the queries' a"):
        mine({"a": worse}, {"a": rows}, [Stage("a", 1)])
    rows = torch.eye(6)
    rows[3] = 0
    found = mine({"a": rows}, {"a": rows}, [Stage("a", 6)])
    assert found.zero_rows == {"a": 1} and found.scores[3].eq(0).all() and found.valid.all()
    for queries, bank in (
        ({"a": rows}, {"a": rows[:, :5]}),
        ({"a": rows}, {"a": rows.long()}),
        ({"a": rows}, {"a": rows[0]}),
        ({"a": rows}, {"a": rows, "b": rows[:2]}),
    ):
        with pytest.raises(ValueError):
            mine(queries, bank, [Stage("a", 1)])


def test_no_graph_and_no_autocast_reach_the_result():
    """The released code mines with a graph behind the online queries."""
    query = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    bank = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    plain = mine({"a": query}, {"a": bank}, [Stage("a", 5)])
    assert not plain.scores.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = mine({"a": query}, {"a": bank}, [Stage("a", 5)])
    assert again.scores.equal(plain.scores) and again.scores.dtype == torch.float32
    torch.testing.assert_close(unit_rows(bank), torch.nn.functional.normalize(bank))


@pytest.mark.parametrize(("method", "views"), [("gather", 2), ("mask", 2), ("auto", 1)])
def test_working_buffers_stay_within_the_limit(method, views, one_thread):
    """N = 50,000, D = 128, 64 MiB (oracle 20); some of the queries."""
    limit, generator = 64 * 2**20, torch.Generator().manual_seed(0)
    bank = {name: torch.randn(50_000, 128, generator=generator) for name in "ab"[:views]}
    ids = torch.arange(50_000)
    stages = official(50_000, tuple(bank), num_stages=3, ratio=0.02, top_k=5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queries = {view: rows[:150] for view, rows in bank.items()}
    with Alive() as alive:
        mine(queries, bank, stages, forbid=Forbid(ids[:150], ids), mem_bytes=limit, method=method)
    assert 8 * 2**20 < alive.most <= limit
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 200 * 2**20


def test_plans():
    stages = (Stage("a", 1024), Stage("b", 512), Stage("a", 5))
    problem = Problem(stages, {"a": 128, "b": 64}, 50_000, 50_000, forbidden=1)
    assert problem.macs("mask") == 50_000 * (128 + 64)
    assert problem.macs("gather") == 50_000 * 128 + 1024 * 64 + 512 * 128
    assert plan(problem).method == "mask" and plan(problem, method="gather").method == "gather"
    million = Problem(stages, {"a": 128, "b": 64}, 1_000_000, 1_000_000)
    assert plan(million, mem_bytes=2**28).method == "gather"
    with pytest.raises(MemoryLimitError) as caught:
        plan(million, mem_bytes=2**19)
    assert plan(million, mem_bytes=caught.value.needed).block >= 1


@pytest.mark.parametrize("method", METHODS)
def test_the_best_of_each_view_alone(method):
    generator = torch.Generator().manual_seed(0)
    queries, bank = ({view: eighths(generator, size, 3) for view in "abc"} for size in (5, 20))
    forbid = Forbid(pairs=torch.tensor([[0, 3], [4, 0]]))
    for stages in ([Stage("a", 9), Stage("b", 2)], [Stage("a", 3), Stage("b", 2)]):
        for tile in (6, None):
            options = {"forbid": forbid, "normalize": False, "method": method, "tile": tile}
            found = mine(queries, bank, stages, alone=4, **options)
            assert found.indices.equal(mine(queries, bank, stages, **options).indices)
            for view in "abc":
                wanted = brute_force(queries, bank, [Stage(view, 4)], {(0, 3), (4, 0)})
                rows, scores = found.alone[view]
                assert rows.tolist() == wanted
                assert scores.equal((queries[view] @ bank[view].T).gather(1, rows))
