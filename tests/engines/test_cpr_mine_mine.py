"""`effvl cpr-mine mine` on arrays, through the real command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from effvl_cli.core.report import read_report
from tests.processes import run_each

COUNT = 60


@pytest.fixture
def arrays(workdir):
    """Four classes (a, b), of which flow shows a and rgb shows b; a little noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(COUNT) % 4
    for name, bit in (("flow", labels // 2), ("rgb", labels % 2)):
        rows = np.concatenate([np.eye(2)[bit], np.zeros((COUNT, 3))], 1) + 0.1 * generator.normal(size=(COUNT, 5))
        np.save(f"{name}.npy", rows.astype(np.float32))
    np.save("y.npy", labels)
    return ("--features", "rgb.npy,flow.npy", "--labels", "y.npy")


CASCADE = ("--cascade", "flow:29,rgb:14,flow:3")


def positives(folder):
    with np.load(Path(folder, "positives.npz"), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def brute_force(stages, k, forbidden):
    """Positives of all rows by sorting in float64."""
    rows = {view: np.load(f"{view}.npy").astype(np.float64) for view in ("rgb", "flow")}
    rows = {view: x / np.linalg.norm(x, axis=1, keepdims=True) for view, x in rows.items()}
    found = []
    for query in range(COUNT):
        kept = [j for j in range(COUNT) if not forbidden(query, j)]
        for view, size in stages:
            kept = sorted(kept, key=lambda j, q=query, v=view: (-rows[v][q] @ rows[v][j], j))[:size]
        found.append(kept + [-1] * (k - len(kept)))
    return found


def test_report_files_and_pictures(effvl, report, arrays, drawn):
    outcome = effvl("cpr-mine", "mine", *arrays, *CASCADE, "--jsonl", "--graph", "--out", "r")
    assert outcome.code == 0, outcome.err
    done = report("r")
    assert done.metrics["mining_precision_mean"].value == 1  # the cascade sees a and b
    assert done.metrics["class_mining_recall_median"].value == 1 and done.metrics["retrieval_r1"].value == 1
    assert done.metrics["mining_precision_flow"].value < 0.8 and done.metrics["mining_precision_rgb"].value < 0.8
    about = done.technique
    assert [(row["view"], row["n"]) for row in about["stages"]] == [("flow", 29), ("rgb", 14), ("flow", 3)]
    assert [row["purity"] for row in about["stages"]] == pytest.approx([14 / 29, 1, 1])
    assert [row["kept"] for row in about["stages"]] == pytest.approx([1, 1, 3 / 14])
    assert set(about["per_class"]) == {"0", "1", "2", "3"} and about["forbidden_pairs"] == COUNT
    assert about["dims"] == {"rgb": 5, "flow": 5} and about["approx"] is False and about["duplicates"] == 0
    assert {"gemm_s", "select_s", "mining_s"} <= set(done.efficiency)
    found = positives("r")
    assert found["indices"].tolist() == brute_force(
        [("flow", 29), ("rgb", 14), ("flow", 3)], 3, lambda query, row: query == row
    )
    assert found["valid"].all() and found["ids"].tolist() == [str(i) for i in range(COUNT)]
    lines = [json.loads(line) for line in Path("r/positives.jsonl").read_text().splitlines()]
    assert lines[7]["id"] == "7" and lines[7]["positives"] == [str(i) for i in found["indices"][7]]
    graph = sparse.load_npz("r/graph.npz")
    assert (graph != graph.T).nnz == 0 and graph.sum() == 2 * 3 * COUNT
    assert graph[7, found["indices"][7][0]] in (1, 2)
    assert {"plots/purity.png", "plots/recall.png"} <= {artifact.path for artifact in done.artifacts}
    for words in ("cascade", "flow alone", "purity of the stages in %: flow:29 48.3, rgb:14 100.0, flow:3 100.0"):
        assert words in outcome.out


def test_the_same_whatever_the_block_method_and_attempt(here, arrays):
    here("cpr-mine", "mine", *arrays, "--num-stages", 3, "--top-k", 4, "--out", "r")
    wanted, known = Path("r/positives.npz").read_bytes(), read_report(Path("r/report.json"))
    for number, more in enumerate(
        (("--fresh",), ("--fresh", "--block-size", 7), ("--fresh", "--mem", "16K", "--method", "gather"))
    ):
        here("cpr-mine", "mine", *arrays, "--num-stages", 3, "--top-k", 4, *more, "--out", f"r{number}")
        found = positives(f"r{number}")
        assert found["indices"].tolist() == positives("r")["indices"].tolist()
        if number == 0:
            assert Path("r0/positives.npz").read_bytes() == wanted
            again = read_report(Path("r0/report.json"))
            assert again.metrics == known.metrics and again.technique == known.technique


def test_two_processes_find_the_same(here, arrays):
    line = ["cpr-mine", "mine", *arrays, "--num-stages", 3, "--pool", 40, "--jsonl", "--block-size", 16]
    here(*line, "--out", "one")
    run_each([[*line, "--out", "two"]], processes=2)
    assert Path("one/positives.jsonl").read_bytes() == Path("two/positives.jsonl").read_bytes()
    one, two = (read_report(Path(name, "report.json")) for name in ("one", "two"))
    assert one.metrics == two.metrics and one.technique == two.technique


def test_groups_ids_and_queries_of_their_own(here, arrays, report):
    groups = np.arange(COUNT) // 8
    np.save("g.npy", groups)
    here("cpr-mine", "mine", *arrays, *CASCADE, "--groups", "g.npy", "--out", "r")
    assert positives("r")["indices"].tolist() == brute_force(
        [("flow", 29), ("rgb", 14), ("flow", 3)], 3, lambda query, row: groups[query] == groups[row]
    )
    for name in ("rgb", "flow"):
        np.save(f"q_{name}.npy", np.load(f"{name}.npy")[:7])
    np.save("qy.npy", np.load("y.npy")[:7])
    Path("ids.txt").write_text("".join(f"item {i}\n" for i in range(COUNT)))
    Path("q.txt").write_text("".join(f"item {i}\n" for i in range(6)) + "another\n")
    asked = ("--query-features", "q_rgb.npy,q_flow.npy", "--query-ids", "q.txt", "--query-labels", "qy.npy")
    here("cpr-mine", "mine", *arrays, *CASCADE, *asked, "--ids", "ids.txt", "--out", "q")
    found = positives("q")["indices"].tolist()
    plain = brute_force([("flow", 29), ("rgb", 14), ("flow", 3)], 3, lambda query, row: query == row)
    itself = brute_force([("flow", 29), ("rgb", 14), ("flow", 3)], 3, lambda query, row: False)
    assert found == [*plain[:6], itself[6]]
    assert positives("q")["query_ids"].tolist()[-1] == "another" and report("q").metrics["retrieval_r1"].n == 7


def test_pool_and_its_seed(here, arrays, report):
    line = ("cpr-mine", "mine", *arrays, "--num-stages", 2, "--top-k", 2, "--pool", 20)
    here(*line, "--out", "a")
    here(*line, "--seed", 1, "--out", "b")
    first, second = (positives(name)["indices"].tolist() for name in "ab")
    assert first != second
    about = report("a").technique
    assert about["pool"] == 20 and about["pool_seed"] == 0 and about["stages"][0]["n"] == 10
    assert report("a").metrics["mining_true_recall_mean"].value > 2 / 14  # of the few of its class in a pool


def test_duplicates_are_counted_and_left_out(here, arrays, report):
    for name in ("rgb", "flow"):
        rows = np.load(f"{name}.npy")
        rows[[1, 2]] = 2 * rows[0]  # a power of two: equal to the last bit
        rows[5] = rows[4] if name == "rgb" else rows[5]  # alike in one view only
        np.save(f"{name}.npy", rows)
    outcome = here("cpr-mine", "mine", *arrays, *CASCADE, "--out", "r")
    assert "3 or more pairs of different items are alike" in outcome.err and report("r").technique["duplicates"] == 3
    here("cpr-mine", "mine", *arrays, *CASCADE, "--dedupe", "--out", "d")
    found = positives("d")["indices"]
    assert report("d").technique["duplicates_left_out"] == 6
    assert found.tolist() == brute_force(
        [("flow", 29), ("rgb", 14), ("flow", 3)], 3, lambda query, row: query == row or max(query, row) < 3
    )


def test_unknown_labels_one_class_and_none(here, arrays, report):
    np.save("y.npy", np.where(np.arange(COUNT) < 4, -1, np.arange(COUNT) % 4))
    here("cpr-mine", "mine", *arrays, *CASCADE, "--out", "r")
    assert report("r").metrics["mining_recall_mean"].n == COUNT - 4
    np.save("y.npy", np.zeros(COUNT, np.int64))
    outcome = here("cpr-mine", "mine", *arrays, *CASCADE, "--out", "one")
    assert report("one").metrics["class_mining_recall_median"].value is None and "only one class" in outcome.err
    np.save("y.npy", np.arange(COUNT))
    outcome = here("cpr-mine", "mine", *arrays, *CASCADE, "--out", "each")
    assert report("each").metrics["mining_precision_mean"].value is None and "no item has another one" in outcome.err
    outcome = here("cpr-mine", "mine", "--features", "rgb.npy,flow.npy", *CASCADE, "--out", "bare")
    assert not report("bare").metrics and "new to the view" in outcome.out


def test_whole_floats_in_a_column_are_labels_too(here, arrays):
    here("cpr-mine", "mine", *arrays, *CASCADE, "--out", "whole")
    np.save("y.npy", np.load("y.npy").astype(np.float32)[:, None])
    here("cpr-mine", "mine", *arrays, *CASCADE, "--out", "float")
    assert Path("whole/positives.npz").read_bytes() == Path("float/positives.npz").read_bytes()


def _sizes(arrays):
    np.save("short.npy", np.zeros((COUNT - 1, 5), np.float32))
    return "--features", "rgb.npy,short.npy"


def _nan(arrays):
    rows = np.load("rgb.npy")
    rows[3, 1] = np.nan
    np.save("nan.npy", rows)
    return "--features", "nan.npy,flow.npy"


def _saved(name, array, *before):
    def make(arrays):
        np.save("bad.npy", array, allow_pickle=True)
        return (*before, name, "bad.npy") if name != "--features" else (name, "bad.npy,flow.npy")

    return make


PLAIN = ("--features", "rgb.npy,flow.npy")
MISTAKES = {
    "counts": (3, "E_VIEW_MISMATCH", _sizes),
    "nan": (3, "E_NONFINITE: 1 row of nan with NaN or infinity, the first is row 3", _nan),
    "pickle": (3, "cannot be read as .npy", _saved("--features", np.array([{}, 1], object))),
    "shape": (3, "has the shape (60,)", _saved("--features", np.zeros(60, np.float32))),
    "integers": (3, "holds int64", _saved("--features", np.zeros((60, 5), np.int64))),
    "labels": (3, "There are 60 rows", _saved("--labels", np.zeros(59, np.int64), *PLAIN)),
    "label": (3, "hold -2", _saved("--labels", np.full(60, -2), *PLAIN)),
    "floats": (3, "are float64", _saved("--labels", np.linspace(0, 3, 60), *PLAIN)),
    "not a number": (3, "not all whole", _saved("--labels", np.full(60, np.nan), *PLAIN)),
    "missing": (3, "gone.npy is not there", lambda arrays: ("--features", "gone.npy,flow.npy")),
    "no array": (3, "cannot be read as .npy", lambda arrays: ("--features", f"{__file__},flow.npy")),
    "view": (2, "E_CASCADE: no view 'depth'", lambda arrays: (*PLAIN, "--cascade", "depth:20,flow")),
    "growing": (2, "E_STAGE_SIZE: stage 2 keeps more", lambda arrays: (*PLAIN, "--cascade", "flow:20,rgb:30,flow")),
    "first": (2, "stage 1 keeps 61 of 60 items", lambda arrays: (*PLAIN, "--cascade", "flow:61,rgb:30,flow")),
    "first stage": (2, "stage 1 keeps 61 of 60 items", lambda arrays: (*PLAIN, "--first-stage", 61)),
    "size": (2, "The largest valid number of stages is 4", lambda arrays: (*PLAIN, "--num-stages", 9)),
    "k": (2, "60 positives of 59 candidates", lambda arrays: (*PLAIN, "--cascade", "flow:60")),
    "both": (2, "set the same thing", lambda arrays: (*PLAIN, *CASCADE, "--num-stages", 2)),
    "main": (2, "--main names the view 'depth'", lambda arrays: (*PLAIN, "--main", "depth")),
    "names": (2, "3 names for 2", lambda arrays: (*PLAIN, "--view-names", "a,b,c")),
    "memory": (2, "E_MEM", lambda arrays: (*PLAIN, "--mem", "1K")),
    "no size": (2, "--mem is much", lambda arrays: (*PLAIN, "--mem", "much")),
    "groups": (2, "every query has fewer than 5", _saved("--groups", np.zeros(60, np.int64), *PLAIN)),
    "run": (4, "holds no views.json", lambda arrays: (".",)),
    "no run": (3, "no completed run under runs/ holds a views.json", lambda arrays: ()),
    "pool": (2, "--pool is 61", lambda arrays: (*PLAIN, "--pool", 61)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(effvl, arrays, name):
    code, words, make = MISTAKES[name]
    stages = () if name in {"view", "growing", "first", "size", "k", "both", "run", "no run"} else ("--num-stages", 2)
    outcome = effvl("cpr-mine", "mine", *make(arrays), *stages)
    assert outcome.code == code and words in outcome.error, outcome.err


def test_an_index_needs_faiss(effvl, arrays, monkeypatch):
    from effvl_cli.engines.cpr_mine import first_stage

    monkeypatch.setattr(first_stage.importlib.util, "find_spec", lambda name: None)
    outcome = effvl("cpr-mine", "mine", *arrays, "--num-stages", 2, "--stage1-index", "faiss-ivf")
    assert outcome.code == 5 and "pip install 'effvl[faiss]'" in outcome.error
    outcome = effvl(
        "cpr-mine", "mine", *arrays, "--cascade", "flow:0.5,rgb", "--stage1-index", "faiss-ivf", "--dry-run"
    )
    assert outcome.code == 5


def test_hours_of_a_cpu_are_refused(effvl, arrays, monkeypatch):
    from effvl_cli.engines.cpr_mine import mine

    monkeypatch.setattr(mine, "SLOW", COUNT)
    outcome = effvl("cpr-mine", "mine", *arrays, "--num-stages", 2, "--device", "cpu")
    assert outcome.code == 2 and "--force" in outcome.error
    assert effvl("cpr-mine", "mine", *arrays, "--num-stages", 2, "--device", "cpu", "--force").code == 0


def test_folder_of_embeddings_and_its_copy(here, effvl, arrays, report):
    """RUN is a folder with views.json; files beside such a list of other items are refused."""
    from effvl_cli.data.source import digest

    for folder, order in (("a", 1), ("b", -1)):
        Path(folder).mkdir()
        ids = [f"clip {i}" for i in range(COUNT)][::order]
        Path(folder, "ids.txt").write_text("".join(f"{name}\n" for name in ids))
        for name in ("rgb", "flow"):
            shutil.copy(f"{name}.npy", folder)
        shutil.copy("y.npy", f"{folder}/labels.npy")
        files = {"rgb": "rgb.npy", "flow": "flow.npy"}
        about = {"files": files, "ids_digest": digest(ids), "classes": ["zero", "one", "two", "three"], "data": "x"}
        Path(folder, "views.json").write_text(json.dumps(about))
    here("cpr-mine", "mine", "a", *CASCADE, "--out", "r")
    assert positives("r")["ids"][3] == "clip 3"
    assert set(report("r").technique["per_class"]) == {"zero", "one", "two", "three"}
    assert report("r").technique["embeddings"] == {"data": "x"}
    here("cpr-mine", "mine", "--features", "a/rgb.npy,a/flow.npy", *CASCADE, "--out", "f")
    assert positives("f")["ids"][3] == "clip 3" and report("f").metrics == report("r").metrics
    outcome = effvl("cpr-mine", "mine", "--features", "a/rgb.npy,b/flow.npy", *CASCADE)
    assert outcome.code == 3 and "list different items" in outcome.error
    assert effvl("cpr-mine", "mine", "a", *PLAIN).code == 2
    outcome = effvl("cpr-mine", "mine", "a", *CASCADE, "--dry-run")
    assert outcome.code == 0 and "60 queries, 60 items" in outcome.out


def test_names_of_views_with_a_colon(here, effvl, arrays, report):
    """By the name, by the short name, and by that of the file that `embed` writes."""
    from effvl_cli.data.source import digest

    Path("a").mkdir()
    ids = [f"clip {i}" for i in range(COUNT)]
    Path("a/ids.txt").write_text("".join(f"{name}\n" for name in ids))
    shutil.copy("rgb.npy", "a/rgb.npy")
    shutil.copy("flow.npy", "a/flow-mv.npy")
    about = {"files": {"rgb": "rgb.npy", "flow:mv": "flow-mv.npy"}, "ids_digest": digest(ids)}
    Path("a/views.json").write_text(json.dumps(about))
    lines = {
        "whole": ("a", "--cascade", "flow:mv:29,rgb:14,flow:mv:3"),
        "short": ("a", "--cascade", "flow:29,rgb:14,flow:3"),
        "files": ("--features", "a/rgb.npy,a/flow-mv.npy", "--cascade", "flow-mv:29,rgb:14,flow:mv", "--top-k", 3),
        "main": ("a", "--main", "flow", "--aux", "rgb", "--first-stage", 29, "--num-stages", 3, "--top-k", 3),
        "other": ("a", "--main", "flow-mv", "--first-stage", 29, "--num-stages", 3, "--top-k", 3),
    }
    for name, words in lines.items():
        here("cpr-mine", "mine", *words, "--labels", "y.npy", "--out", name)
        assert (positives(name)["indices"] == positives("whole")["indices"]).all()
        assert {"mining_precision_rgb", "mining_precision_flow"} <= set(report(name).metrics)
        assert report(name).technique["cascade"] == "flow:mv:29,rgb:14,flow:mv:3"


def test_nothing_is_said_before_an_error_that_ends_it_at_once(effvl, here, arrays):
    outcome = effvl("cpr-mine", "mine", *arrays, "--cascade", "flow:61,rgb:30,flow", "--out", "r")
    assert outcome.code == 2 and outcome.err.startswith("error: E_STAGE_SIZE")
    assert here("cpr-mine", "mine", *arrays, *CASCADE, "--out", "s").err.startswith("run folder s\n")
