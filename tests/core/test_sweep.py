"""Sweeps, claims and tables, with runs that are written by hand."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from effvl_cli.cli import sweep_lines
from effvl_cli.core import claims, plots, sweep, sweep_check
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.files import write_bytes
from effvl_cli.core.report import ReportBuilder, write
from effvl_cli.core.sweep_table import tabulate, write_pages

OPTIONS = {"half": "--shots=2 --keep=0.5", "all": "--shots=2 --keep=1.0 --deterministic"}
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
    draft = ReportBuilder(
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
    options = OPTIONS.get(folder.name.split("-")[0], "")
    line = f"effvl prune-tokens {options} --seed {seed} --out runs/sweeps/s/{folder.name}"
    header = f"effvl: 1\ncommand: prune-tokens\nconfig: {{keep: 0.5, seed: {seed}}}\nrun: {{command_line: '{line}'}}\n"
    (folder / "config.yaml").write_text(header)
    write(draft.finish(status), folder / "report.json")


@pytest.fixture
def file(workdir):
    path = workdir / "s.yaml"
    path.write_text(SWEEP)
    return path


def run(file, launch, **options):
    lines = []
    recipe, folder = sweep_check.checked(file, None, sweep_lines.check, lines.append)
    code = sweep.run_sweep(recipe, folder, shard=options.get("shard", "0/1"), launch=launch, echo=lines.append)
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


def test_shards_keep_an_arm_with_the_one_that_it_builds_on(file, workdir):
    def share(shard):
        return [f"{r.arm}-{r.seed}" for r in sweep.share(sweep.read_sweep(file), Path("o"), shard)]

    assert share("0/2") == ["half-0", "all-0", "look-0"]
    assert share("1/2") == ["half-1", "all-1", "look-1"]
    file.write_text(SWEEP.replace('"{out}/half-seed{seed}"', "elsewhere"))
    assert share("0/2") == ["half-0", "look-0", "all-1"]


def test_a_completed_run_of_other_options_or_inputs_is_given_to_the_command(file, workdir):
    folder = workdir / "runs/sweeps/s"
    finished(folder / "half-seed0", 0, 0.5)

    def launched():
        seen = []
        run(file, lambda a: seen.append(a[-1].split("/")[-1]) or 0)
        return seen

    assert "half-seed0" not in launched()
    file.write_text(SWEEP.replace("keep: 0.5", "keep: 0.7"))  # the folder's figures are of 0.5
    assert "half-seed0" in launched()
    (workdir / "w").write_text("weights")
    file.write_text(SWEEP.replace("keep: 0.5", "weights: w"))
    OPTIONS["half"] = "--shots=2 --weights=w"
    try:
        finished(folder / "half-seed0", 0, 0.5)
        os.utime(workdir / "w", (1, 1))
        assert "half-seed0" not in launched()
        os.utime(workdir / "w", (2e9, 2e9))
        assert "half-seed0" in launched()
    finally:
        OPTIONS["half"] = "--shots=2 --keep=0.5"


def test_a_run_is_known_again_by_the_command_line_that_the_command_records(effvl, workdir):
    Path("real.yaml").write_text(
        "effvl: 1\ncommand: pretrain\ndescription: one run\n"
        "config: {method: supervised, model: 'tiny:resnet', data: digits, batch-size: 16, data-root: a folder}\n"
        "arms: {short: {steps: 1}}\n"
    )
    seen = []

    def launch(arguments):
        seen.append(arguments)
        return effvl(*arguments).code

    for _ in range(2):
        assert run(Path("real.yaml"), launch)[0] == 0
    assert len(seen) == 1


def test_a_sweeps_folder_is_as_good_as_its_file(file, workdir):
    run(file, lambda a: 0)
    folder = Path("runs/sweeps/s")
    finished(folder / "half-seed0", 0, 0.5)
    seen = []
    assert run(folder, lambda a: seen.append(a[-1]) or 0)[0] == 0
    assert seen[0] == "runs/sweeps/s/all-seed0" and len(seen) == 5
    assert tabulate([folder])[0].rows == tabulate([folder / "sweep.yaml"])[0].rows == tabulate([file])[0].rows


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
    for old, new, part in (
        ("half.top1 > 0.9", "halve.top1 > 0.9", "'half'"),
        ("half.top1 > 0.9", "top1 > 0.9", "holds 'top1'"),
    ):
        file.write_text(SWEEP.replace(old, new))
        with pytest.raises(UsageError, match=part):  # before any run is started
            run(file, lambda a: pytest.fail("launched"))
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
    assert means.notes[0] == "seeds: half: 2, all: 2, look: 0; ± is the standard error over seeds"
    verdicts, differences = tabulate([folder])[1:]
    assert differences.columns == ("figure", "all", "look")
    assert differences.rows[0] == ("top1", "+8.0 ± 2.00", None)  # 10 and 6 points
    assert differences.rows[1] == ("ratio", "+0.16 ± 0.04", None)
    assert verdicts.rows[0] == ("PASS", "all.top1 - half.top1 >= 0.05", "+0.0300", "0.0200", 2)
    assert verdicts.rows[1][:3] == ("FAIL", "half.top1 > 0.9", "-0.0800")


def test_arms_are_compared_with_the_baseline_that_the_sweep_names(file, workdir):
    for arm, top1 in (("half", 0.8), ("all", 0.9)):
        finished(workdir / f"runs/sweeps/s/{arm}-seed0", 0, top1)
    file.write_text(SWEEP + "baseline: all\n")
    differences = tabulate([file])[-1]
    assert differences.title.startswith("differences to all") and differences.columns == ("figure", "half", "look")
    assert differences.rows[0] == ("top1", "-10.0", None)
    file.write_text(SWEEP + "baseline: whole\n")
    with pytest.raises(UsageError, match=r"baseline .* is 'whole', which is not an arm.*") as error:
        tabulate([file])
    assert "half, all, look" in error.value.hint


def test_many_arms_are_rows(workdir):
    arms = "".join(f"  a{i}: {{shots: {i}}}\n" for i in range(1, 12))
    (workdir / "s.yaml").write_text(f"effvl: 1\ncommand: prune-tokens\narms:\n{arms}seeds: [0]\n")
    for i in range(1, 11):
        finished(workdir / f"runs/sweeps/s/a{i}-seed0", 0, i / 20)
    means, differences = tabulate([workdir / "s.yaml"])
    assert means.columns == ("arm", "top1", "ratio", "seeds")
    assert means.rows[0] == ("a1", "5.0 ± 2.00", "0.1", 1) and means.rows[10] == ("a11", None, None, 0)
    assert means.notes == ("± is the figure's own standard error", "a11: 1 run(s) not completed")
    assert differences.columns == ("arm", "top1", "ratio") and len(differences.rows) == 9
    assert differences.rows[0] == ("a2", "+5.0", "+0.1")


def test_one_seed_shows_the_figures_own_error_and_says_so(file, workdir):
    file.write_text(SWEEP.replace("[0, 1]", "[0]").replace("- half.top1 > 0.9", "- look.top1 > 0.9"))
    finished(workdir / "runs/sweeps/s/half-seed0", 0, 0.8)
    finished(workdir / "runs/sweeps/s/all-seed0", 0, 0.85)
    means, verdicts, differences = tabulate([file])
    assert means.rows[0] == ("top1", "80.0 ± 2.00", "85.0 ± 2.00", None)
    assert means.notes[0].endswith("± is the figure's own standard error")
    assert differences.rows[0] == ("top1", "+5.0", None)
    assert verdicts.rows[0] == ("PASS", "all.top1 - half.top1 >= 0.05", "+0.0000", None, 1)  # 0.85 - 0.8 in binary
    assert verdicts.rows[1] == ("NO RUN", "look.top1 > 0.9", None, None, 0)


def test_a_figure_without_a_value_fails_its_claim_only(file, workdir):
    for arm, top1 in (("half", float("nan")), ("all", 0.9)):
        for seed in (0, 1):
            finished(workdir / f"runs/sweeps/s/{arm}-seed{seed}", seed, top1)
    tables = tabulate([file])
    assert tables[0].rows[0] == ("top1", None, "90.0 ± 0.00", None)
    assert [row[0] for row in tables[1].rows] == ["FAIL", "FAIL"]


def test_published_figures_stand_beside_the_mean(file, workdir):
    expected = "[{metric: top1, value: 0.83, tolerance: 0.02, arm: half}, {metric: ratio, value: null}]"
    file.write_text(SWEEP + f"reference: {{paper: p, expected: {expected}}}\n")
    for seed, half in ((0, 0.80), (1, 0.84)):
        finished(workdir / f"runs/sweeps/s/half-seed{seed}", seed, half)
    published = next(t for t in tabulate([file]) if t.title.startswith("published"))
    assert published.rows[0] == ("half", "top1", "83.0", "82.0", "-1.0", "within")
    assert published.rows[1] == ("half", "ratio", None, "1.64", None, None)
    assert published.rows[2] == ("all", "ratio", None, None, None, None)


def test_pictures_join_arms_that_differ_in_a_number(workdir, monkeypatch):
    path = workdir / "s.yaml"
    arms = "arms: {half: {}, half-2: {keep: 0.5}, look: {command: prune-tokens eval}}\nseeds: [0, 1]\n"
    words = "pictures: {gain: {x: ratio, y: top1, ylabel: accuracy}}\n"
    path.write_text(f"effvl: 1\ncommand: prune-tokens\nconfig: {{shots: 2}}\n{arms}{words}")
    for arm, tops in (("half", (0.9, 0.8)), ("half-2", (0.5, 0.7))):
        for seed, top1 in enumerate(tops):
            finished(workdir / "runs/sweeps/s" / f"{arm}-seed{seed}", seed, top1)
    seen = {}

    def curves(file, series, **words):
        seen.update(series=series, words=words)
        write_bytes(file, bytes(24))

    monkeypatch.setattr(plots, "curves", curves)
    assert write_pages([path]) == [Path("runs/sweeps/s/plots/gain.png"), Path("runs/sweeps/s/report.html")]
    assert list(seen["series"]) == ["half"]  # the arm that has not run has no point
    assert seen["series"]["half"] == [pytest.approx((1.7, 0.85, 0.05)), pytest.approx((1.2, 0.6, 0.1))]
    assert seen["words"] == {"title": "", "xlabel": "ratio", "ylabel": "accuracy"}
    path.write_text(path.read_text().replace("x: ratio", "z: ratio"))
    with pytest.raises(UsageError, match=r"picture 'gain' .* has the unknown key 'z'"):
        write_pages([path])


def test_single_runs_show_their_own_error(workdir):
    finished(workdir / "one", 0, 0.5)
    (table,) = tabulate([workdir / "one"])
    assert table.columns == ("figure", "prune-tokens one", "n")
    assert table.rows[0] == ("top1", "50.0 ± 2.00", 100)
    assert tabulate([workdir / "one/report.json"]) == [table]
    with pytest.raises(DataError, match="holds no"):
        tabulate([workdir / "none"])


def test_runs_that_differ_in_their_seed_alone_are_averaged(workdir):
    for name, seed, top1 in (("one", 0, 0.5), ("two", 1, 0.6), ("again", 1, 0.7)):
        finished(workdir / name, seed, top1, status="failed" if name == "again" else "completed")
    (table,) = tabulate([workdir / name for name in ("one", "two", "again")])
    assert table.columns == ("figure", "prune-tokens one (+1)", "prune-tokens again")
    assert table.rows[0] == ("top1", "55.0 ± 5.00", "70.0 ± 2.00")
    assert table.notes[1] == f"{workdir / 'again'}: failed"


FIGURES = {0: {"a-x": {"m": 0.5, "m.se": 0.1}, "b": {"m": 0.25}}}


@pytest.mark.parametrize(
    ("claim", "margin"),
    [
        ("a_x.m >= b.m", 0.25),
        ("a_x.m - 2 * b.m <= 0.1", 0.1),
        ("(a_x.m - b.m) / a_x.m.se > 2", 0.5),
        ("-b.m < 0", 0.25),
        ("0.95 - 0.90 >= 0.05", 0),
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
        ("b.m", "not a single comparison"),
        ("0 < b.m < 1", "not a single comparison"),
        ("b.m >", "cannot be read"),
        ("__import__('os').system('x') > 1", "__import__"),
        ("b.m ** 2 > 1", "b.m ** 2"),
        ("m > 1", "holds 'm'"),
        ("max(b.m) > 1", "max(b.m)"),
    ],
)
def test_what_is_no_claim(claim, part):
    with pytest.raises(UsageError) as caught:
        claims.judge(claim, FIGURES)
    assert part in str(caught.value)


def test_a_claim_can_use_the_spread_over_seeds():
    by_seed = {seed: {"a": {"m": value}} for seed, value in enumerate((0.1, 0.2, 0.3))}
    verdict = claims.judge("a.m - 2 * se(a.m) > 0", by_seed)  # sd 0.1, se 0.1 / sqrt 3
    assert verdict.passed and verdict.margin == pytest.approx(0.2 - 0.2 / 3**0.5)
    assert verdict.se == pytest.approx(0.1 / 3**0.5)
    assert not claims.judge("a.m - 4 * se(a.m) > 0", by_seed).passed


@pytest.mark.parametrize("claim", ["b.m - se(b.m) > 0", "a_x.m / (b.m - b.m) > 0", "b.m / 0 < 1"])
def test_what_cannot_be_told_does_not_pass(claim):
    assert not claims.judge(claim, FIGURES).passed


def test_a_claim_compares_arms_of_different_seeds():
    by_seed = {0: {"a": {"m": 0.5}, "r": {"m": 0.1}}, 1: {"r": {"m": 0.2}}, 2: {"r": {"m": 0.6}}}
    verdict = claims.judge("a.m - mean(r.m) >= 0", by_seed)
    assert verdict.margin == pytest.approx(0.5 - 0.3) and verdict.seeds == 1
    assert claims.judge("a.m - r.m >= 0", by_seed).margin == pytest.approx(0.4)  # paired: in the seed that both have
    assert claims.judge("mean(r.m - a.m) < 0", by_seed).margin == pytest.approx(0.4)
    both = claims.judge("mean(r.m) - 2 * se(r.m) < mean(a.m)", by_seed)  # sd of .1 .2 .6: 0.26458
    assert both.margin == pytest.approx(0.5 - 0.3 + 2 * 0.26458 / 3**0.5, abs=1e-5) and both.se is None
    assert claims.judge("r.m > 0", by_seed).seeds == 3
    apart = {0: {"a": {"m": 0.5}}, 1: {"r": {"m": 0.2}}}
    assert claims.judge("a.m - r.m >= 0", apart).seeds == 0
    assert not claims.judge("mean(a.m - r.m) >= 0", apart).passed


def test_an_arm_has_seeds_of_its_own(file, workdir):
    arms = SWEEP.replace("half: {keep: 0.5}", "half: {keep: 0.5, seeds: [0, 3]}").replace("[0, 1]", "[0]")
    file.write_text(arms.replace("half.top1 >= 0.05", "mean(half.top1) >= 0.05"))
    seen = []
    run(file, lambda a: seen.append(a[-1].split("/")[-1]) or 0)
    assert seen == ["half-seed0", "all-seed0", "look-seed0", "half-seed3"]
    for name, seed, top1 in (("half-seed0", 0, 0.7), ("half-seed3", 3, 0.8), ("all-seed0", 0, 0.9)):
        finished(workdir / "runs/sweeps/s" / name, seed, top1)
    means, verdicts, differences = tabulate([file])
    assert means.rows[0] == ("top1", "75.0 ± 5.00", "90.0 ± 2.00", None)
    assert verdicts.rows[0] == ("PASS", "all.top1 - mean(half.top1) >= 0.05", "+0.1000", None, 1)
    assert differences.rows[0] == ("top1", "+20.0", None)
    file.write_text(arms.replace("[0, 3]", "[0, x]"))
    with pytest.raises(UsageError, match=r"seeds in .* are 0, x"):
        sweep.read_sweep(file)


def test_shards_of_a_sweep_whose_arms_build_on_one_seed_are_not_torn(file):
    file.write_text(SWEEP.replace("half-seed{seed}", "half-seed0"))
    recipe = sweep.read_sweep(file)
    assert [len(sweep.share(recipe, Path("o"), f"{first}/3")) for first in range(3)] == [6, 0, 0]


def test_arms_of_a_claim():
    assert claims.arms_of("a_x.m.se + a_x.m > se(b.m)", ["b", "a-x", "c"]) == ["a-x", "b"]


def test_verdict_is_plain_data():
    assert dataclasses.asdict(claims.judge("b.m > 0", FIGURES))["passed"] is True


def test_sweeps_of_one_name_in_two_folders_do_not_meet():
    assert sweep.folder_of(Path("recipes/mini/prune-tokens.yaml")) == Path("runs/sweeps/mini/prune-tokens")
    assert sweep.folder_of(Path("recipes/tables/prune-tokens.yaml")) == Path("runs/sweeps/tables/prune-tokens")
    assert sweep.folder_of(Path("mine.yaml")) == Path("runs/sweeps/mine")


def test_equal_figures_have_no_spread():
    assert claims.mean_and_error([0.7915123387924494] * 3) == (0.7915123387924494, 0.0)
    assert claims.mean_and_error([1.0, 3.0]) == (2.0, 1.0)
