"""Sweeps, claims and tables, with runs that are written by hand."""

import dataclasses

import pytest
import torch

from effvl_cli.core import claims, sweep
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.report import Draft, write
from effvl_cli.core.sweep_table import tabulate

SWEEP = """effvl: 1
command: prune-tokens
description: three arms
config: {shots: 2}
arms:
  half: {keep: 0.5}
  all: {keep: 1.0, deterministic: true}
  look: {command: prune-tokens eval, run: "{out}/half-seed{seed}"}
seeds: [0, 1]
claims:
  - all.top1 - half.top1 >= 0.05
  - half.top1 > 0.9
"""


def finished(folder, seed, top1, status="completed"):
    draft = Draft(
        command="prune-tokens",
        run_id=folder.name,
        seed=seed,
        config_sha256="f" * 64,
        recipe=None,
        device=torch.device("cpu"),
    )
    draft.metric("top1", top1, n=100, se=0.02)
    draft.metric("ratio", 2 * top1, unit="ratio")
    folder.mkdir(parents=True, exist_ok=True)
    write(draft.finish(status), folder / "report.json")


@pytest.fixture
def file(workdir):
    path = workdir / "s.yaml"
    path.write_text(SWEEP)
    return path


def run(file, launch, **options):
    lines = []
    code = sweep.run_sweep(file, shard=options.get("shard", "0/1"), out=None, launch=launch, echo=lines.append)
    return code, lines


def test_runs_in_order_with_their_options(file):
    seen = []
    assert run(file, lambda a: seen.append(a) or 0)[0] == 0
    assert len(seen) == 6
    assert seen[0] == ["prune-tokens", "--shots=2", "--keep=0.5", "--seed", "0", "--out", "runs/sweeps/s/half-seed0"]
    assert "--deterministic" in seen[1]
    assert seen[5] == [
        "prune-tokens",
        "eval",
        "runs/sweeps/s/half-seed1",
        "--seed",
        "1",
        "--out",
        "runs/sweeps/s/look-seed1",
    ]


def test_completed_runs_are_passed_over_and_shards_share_out(file, workdir):
    finished(workdir / "runs/sweeps/s/half-seed0", 0, 0.5)
    finished(workdir / "runs/sweeps/s/all-seed0", 0, 0.5, status="preempted")
    seen = []
    run(file, lambda a: seen.append(a[-1].split("/")[-1]) or 0)
    assert seen == ["all-seed0", "look-seed0", "half-seed1", "all-seed1", "look-seed1"]
    parts = []
    for first in range(2):
        run(file, lambda a: parts.append(a[-1]) or 0, shard=f"{first}/2")
    assert len(parts) == len(set(parts)) == 5


def test_a_stop_ends_the_sweep_and_a_failure_does_not(file):
    codes = iter([4, 0, 75])
    seen = []
    code, _ = run(file, lambda a: seen.append(a) or next(codes))
    assert (code, len(seen)) == (75, 3)
    codes = iter([4, 0, 3, 0, 0, 0])
    code, _ = run(file, lambda a: next(codes))
    assert code == 4


def test_wrong_sweeps(file, workdir):
    with pytest.raises(UsageError, match="--shard is 2/2"):
        run(file, lambda a: 0, shard="2/2")
    (workdir / "r.yaml").write_text("effvl: 1\ncommand: prune-tokens\nconfig: {}\n")
    with pytest.raises(UsageError, match="has no arms"):
        run(workdir / "r.yaml", lambda a: 0)


def test_means_spreads_and_claims_by_hand(file, workdir):
    run(file, lambda a: 0)
    folder = workdir / "runs/sweeps/s"
    for seed, half, whole in ((0, 0.80, 0.90), (1, 0.84, 0.90)):
        finished(folder / f"half-seed{seed}", seed, half)
        finished(folder / f"all-seed{seed}", seed, whole)
    (means,) = tabulate([file])[:1]
    row = dict(zip(means.columns, means.rows[0], strict=True))
    assert row["half"] == "82.0 ± 2.00"  # sd 0.02828 / sqrt 2
    assert row["all"] == "90.0 ± 0.00"
    assert "look: 2 run(s) not completed" in means.notes
    assert len(tabulate([file])) == 1  # claims wait for all arms
    for seed in (0, 1):
        finished(folder / f"look-seed{seed}", seed, 0.1)
    verdicts = tabulate([folder])[1]
    assert verdicts.rows[0] == ("PASS", "all.top1 - half.top1 >= 0.05", "+0.0300", "0.0200", 2)
    assert verdicts.rows[1][:3] == ("FAIL", "half.top1 > 0.9", "-0.0800")


def test_single_runs_show_their_own_error(workdir):
    finished(workdir / "one", 0, 0.5)
    (table,) = tabulate([workdir / "one"])
    assert table.rows[0][1] == "50.0 ± 2.00"
    with pytest.raises(DataError, match="holds no"):
        tabulate([workdir / "none"])


FIGURES = {0: {"a-x": {"m": 0.5, "m.se": 0.1}, "b": {"m": 0.25}}}


@pytest.mark.parametrize(
    ("claim", "margin"),
    [
        ("a_x.m >= b.m", 0.25),
        ("a_x.m - 2 * b.m <= 0.1", 0.1),
        ("(a_x.m - b.m) / a_x.m.se > 2", 0.5),
        ("-b.m < 0", 0.25),
    ],
)
def test_claims(claim, margin):
    verdict = claims.judge(claim, FIGURES)
    assert verdict.passed and verdict.margin == pytest.approx(margin) and verdict.se is None


@pytest.mark.parametrize(
    ("claim", "part"),
    [
        ("a_y.m > 1", "'a_y'"),
        ("b.n > 1", "'n'"),
        ("b.m", "no single comparison"),
        ("0 < b.m < 1", "no single comparison"),
        ("b.m >", "cannot be read"),
        ("__import__('os').system('x') > 1", "__import__"),
        ("b.m ** 2 > 1", "b.m ** 2"),
    ],
)
def test_what_is_no_claim(claim, part):
    with pytest.raises(UsageError) as caught:
        claims.judge(claim, FIGURES)
    assert part in str(caught.value)


def test_verdict_is_plain_data():
    assert dataclasses.asdict(claims.judge("b.m > 0", FIGURES))["passed"] is True
