"""Interrupted anywhere, a run ends with the bits of an uninterrupted one; on two processes it finds the same scores."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from effvl_cli.core import distributed
from effvl_cli.core.checkpoint import load_model
from effvl_cli.core.errors import DataError, EffvlError
from effvl_cli.core.phases import Phases
from effvl_cli.data import digits
from effvl_cli.engines.prune_blocks import pruning, removals
from tests.engines.conftest import little_beside, no_programs
from tests.processes import KILL, TERM, group, run_each, some, stop_launched_when, stop_when

LINE = (
    *("prune-blocks", "--model", "cifar-resnet:14,width=4", "--baseline-epochs", 1, "--baseline-batch-size", 128),
    *("--finetune-batch-size", 64, "--final-epochs", 1, "--save-every", 2, "--force", "--score-size", 6),
    *("--score-batch-size", 8, "--latency-batch-size", 1),
)


class KilledError(Exception):
    """Stands for the end of the process: nothing in memory is used again."""


def dying(monkeypatch, owner, name, *, calls):
    """Let a function work so many times, and then end everything."""
    function, count = getattr(owner, name), iter(range(10_000))

    def mortal(*args, **options):
        result = function(*args, **options)
        if next(count) == calls - 1:
            raise KilledError
        return result

    monkeypatch.setattr(owner, name, mortal)


pytestmark = pytest.mark.usefixtures("one_thread")
SHARES = {"train": (0.0, 0.25), "val": (0.6, 0.75), "test": (0.75, 0.85)}  # how many there are is nothing to a resume


@pytest.fixture
def few_digits(monkeypatch):
    monkeypatch.setattr(digits, "SHARES", SHARES)


def finished(line, root, shares=digits.SHARES):
    """The folder of a run of this line, with a cache of its own beside it."""
    from effvl_cli.cli.app import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("EFFVL_CACHE", str(root / "cache"))
        patch.setattr(removals, "SAVE_EVERY", 2)
        patch.setattr(digits, "SHARES", shares)
        little_beside(patch)
        no_programs(patch)
        assert main([str(a) for a in (*line, "--out", root / "run")]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run of `LINE` leaves."""
    return finished(LINE, tmp_path_factory.mktemp("whole"), SHARES)


@pytest.mark.parametrize("place", ["scoring", "surgery", "fine-tuning"])
def test_a_run_that_died_ends_with_the_same_bits(place, few_digits, whole, effvl, report, workdir, monkeypatch):
    monkeypatch.setattr(removals, "SAVE_EVERY", 2)
    with monkeypatch.context() as patch:
        if place == "scoring":
            dying(patch, removals._Scoring, "_merge", calls=2)
        elif place == "surgery":
            dying(patch, pruning, "cut", calls=1)
        else:
            images = len(digits.build("", "train"))
            dying(patch, torch.optim.SGD, "step", calls=images // 128 + images // 64 + 3)  # in the second fine-tuning
        assert effvl(*LINE, "--out", "run").code == 1
    outcome = effvl(*LINE, "--out", "run")
    assert outcome.code == 0, outcome.err
    assert report("run").resume.count == 1
    one, other = (load_model(folder / "checkpoint.safetensors")[0] for folder in (whole, Path("run")))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "metrics.jsonl").read_bytes() == Path("run/metrics.jsonl").read_bytes()
    first, then = (report(folder).metrics for folder in (whole, "run"))
    varying = {"latency_ratio", "scoring_speedup"}
    assert all(then[name] == metric for name, metric in first.items() if name not in varying)
    steps = [
        [removal for row in report(folder).technique["steps"] for removal in row["removed"]]
        for folder in (whole, "run")
    ]
    assert steps[0] == steps[1]


LOOK = (
    *("prune-blocks", "--model", "cifar-resnet:14,width=4", "--baseline-epochs", 1, "--baseline-batch-size", 128),
    *("--lookahead", "3:0.2", "--remove", 1, "--finetune-epochs", 0, "--final-epochs", 0, "--score-size", 6, "--force"),
    *("--finetune-batch-size", 30, "--save-every", 2, "--latency-batch-size", 1),
)


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    """What an uninterrupted run of `LOOK` leaves; the trained network lies in the cache beside it."""
    return finished(LOOK, tmp_path_factory.mktemp("look"))


@pytest.fixture(scope="module")
def look_of_two(look, tmp_path_factory):
    """What two processes leave of the job."""
    return of_two(LOOK, look, tmp_path_factory.mktemp("two"))


def of_two(line, other, root):
    """The folder of a run on two processes, which take the trained network from beside another run."""
    run_each([(*line, "--out", root / "run", "--cache-dir", other.parent / "cache")], 2)
    return root / "run"


@pytest.mark.slow
def test_two_processes_share_the_candidates_of_a_lookahead_and_find_the_same(look, look_of_two, report):
    steps = [report(folder).technique["steps"][0] for folder in (look, look_of_two)]
    assert len(steps[0]["lookahead"]) == 3 and steps[0]["lookahead"] == steps[1]["lookahead"]
    one, two = (load_model(folder / "checkpoint.safetensors")[0] for folder in (look, look_of_two))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    trained = {path.name for path in (look_of_two / "checkpoints").glob("step-1-without-*")}
    assert trained == {f"step-1-without-{row['path_original']}" for row in steps[1]["lookahead"]}


@pytest.mark.slow
def test_a_lookahead_that_was_killed_goes_on_where_it_was(look, workdir, here, report):
    """The cache of this test does not hold the baseline, so that both train it."""
    begun = sorted((look / "checkpoints").glob("step-1-without-*"), key=lambda path: path.stat().st_mtime)
    folder = Path("two/checkpoints") / begun[1].name  # of the second candidate
    code, _ = stop_when(some(folder, "step-*"), KILL, *LOOK, "--out", "two")
    assert code == -KILL
    here(*LOOK, "--out", "two")
    one, two = (load_model(Path(folder) / "checkpoint.safetensors")[0] for folder in (look, "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert report(look).technique["steps"][0]["lookahead"] == report("two").technique["steps"][0]["lookahead"]
    assert (look / "metrics.jsonl").read_bytes() == Path("two/metrics.jsonl").read_bytes()
    assert report("two").resume.count == 1


def test_two_processes_find_the_same_scores(few_digits, whole, workdir, here):
    line = ("prune-blocks", "score", whole, "--score-batch-size", 7, "--force")
    here(*line, "--out", "one")
    two = of_two(line, whole, workdir)
    one, two = (load_file(folder / "scores" / "step_1.safetensors") for folder in (Path("one"), two))
    assert one.keys() == two.keys() and one["loss"].abs().sum() > 0
    for key in ("order", "correct", "loss", "nan", "used"):
        assert torch.equal(one[key], two[key]), key


def test_scoring_that_was_killed_goes_on_with_the_next_batch(few_digits, whole, workdir, here, report):
    line = ("prune-blocks", "score", whole, "--score-batch-size", 1, "--force")
    here(*line, "--out", "one")
    path = Path("two/scores/step_1.safetensors")
    code, _ = stop_when(path.exists, KILL, *line, "--out", "two")
    assert code == -KILL and 0 < load_file(path)["done"] < 60  # of 60 images, saved every 20
    here(*line, "--out", "two")
    assert report("two").resume.count == 1
    one, two = (load_file(Path(name) / "scores" / "step_1.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert report("one").technique["importance"] == report("two").technique["importance"]


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on(look, workdir, here, report, monkeypatch):
    """The first process's candidate keeps its records; those of the second's, which it did not write, are not known."""
    line = (*LOOK, "--log-every", 1)
    monkeypatch.setenv("EFFVL_CACHE", str(look.parent / "cache"))  # both take the baseline from there
    here(*line, "--out", "one")
    folder = Path("two/checkpoints")
    begun = some(folder, "step-1-without-*/step-*", 2)
    code, output = stop_launched_when(begun, TERM, *line, "--out", "two", processes=2)
    assert code != 0 and "internal error" not in output
    here(*line, "--out", "two")
    steps = [report(name).technique["steps"][0] for name in ("one", "two")]
    assert steps[0]["lookahead"] == steps[1]["lookahead"]
    one, two = (Path(name, "metrics.jsonl").read_text() for name in ("one", "two"))
    first = f'"phase": "step-1-without-{steps[0]["lookahead"][0]["path_original"]}"'
    lines = [[line for line in text.splitlines() if first in line] for text in (one, two)]
    assert lines[0] == lines[1] and "\0" not in two


class Run:
    """What `Phases` needs of one."""

    lengths, phases, report = {}, None, SimpleNamespace(warnings=[])

    def path(self, name):
        return Path("run") / name

    def record_offset(self):
        return None

    def settle_records(self, offset):
        pass

    def stop_signal(self):
        return 0


def work_of_two(rank):
    """The second process fails."""

    def make(place):
        if place == 1:
            raise DataError("broken", "Mend it")
        return {"x": 1.0}

    distributed.start(torch.device("cpu"))
    try:
        Phases(Run()).side_by_side(["a", "b"], make)
    except EffvlError as error:
        print(f"rank {rank}: {type(error).__name__} {error.message};", flush=True)
    distributed.stop()


def test_a_process_that_fails_on_its_own_ends_the_others_with_one_line(workdir):
    output = group(work_of_two, 2)
    assert "rank 1: DataError broken;" in output
    assert "rank 0: DistributedError another process failed;" in output
