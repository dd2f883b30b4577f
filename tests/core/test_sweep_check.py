"""A sweep is checked as a whole before any of its runs is launched."""

from pathlib import Path

import pytest

from effvl_cli.cli import utilities
from effvl_cli.config.recipe_file import read_recipe
from effvl_cli.core.errors import UsageError

HEAD = "effvl: 1\ncommand: prune-tokens\ndescription: d\nconfig: {shots: 2}\n"


@pytest.fixture
def sweep(effvl, workdir, monkeypatch):
    """Write a sweep and start it; nothing may be launched."""
    monkeypatch.setattr(utilities, "_launch", lambda words: pytest.fail(f"launched {words}"))

    def start(text, *words):
        Path("s.yaml").write_text(HEAD + text)
        return effvl("sweep", "s.yaml", *words)

    return start


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "arms: {a: {}, b: {kep: 0.5}}\n",
            "arm 'b': unknown option --kep of `effvl prune-tokens`",
        ),
        ("arms: {a: {}, b: {keep: 1.5}}\n", "arm 'b': --keep is 1.5"),
        ("arms: {a: {}, b: {seed: 3}}\n", "arm 'b' sets seed"),
        ("arms: {a: {}, b: {out: x}}\n", "arm 'b' sets out"),
        ("arms: {a: {}, b: {name: x}}\n", "arm 'b' sets name"),
        (
            "arms: {a: {}, b: {command: list models}}\n",
            "arm 'b': command is 'list'. A sweep runs pretrain",
        ),
        ("arms: {a: {}, b: {command: prune-tokens evla}}\n", "arm 'b': unknown verb 'evla'"),
        ("arms: {a: {}, b: {dry-run: true}}\n", "arm 'b': dry-run cannot be set for a run of a sweep"),
        ("arms: {a: {}, b: {fresh: true}}\n", "arm 'b': fresh cannot be set"),
        ("arms: {a: {}, b: {deterministic: on}}\n", "arm 'b': deterministic is on. Write true or false"),
        ("arms: {a: {}, b: {recipe: gone.yaml}}\n", "arm 'b': no recipe"),
        ("arms: {a: {}}\nseeds: [0, -1]\n", "seeds are 0, -1. A seed is at least 0"),
        ("arms: {a: {}}\nseeds: [0, 0]\n", "seeds are 0, 0. Give each seed once"),
        ("arms: {a: {seeds: [1, 1]}}\n", "seeds of arm 'a' are 1, 1"),
        ("arms: {../../esc: {}}\n", "arm '../../esc': its name becomes part of a folder name"),
        ("arms: {/tmp/esc: {}}\n", "arm '/tmp/esc': its name becomes part of a folder name"),
        ("arms: {..: {}}\n", "arm '..': its name becomes part of a folder name"),
        ("arms: {a-b: {}, a.b: {}}\n", "arm 'a.b': claims write it a_b, as they write 'a-b'"),
        ("arms: {a: {}}\nclaims: [b.top1 > 1]\n", "unknown arm 'b'"),
        ("arms: {a: {}}\npictures: {p: {x: top1}}\n", "picture 'p'"),
        (
            'arms: {a: {}, b: {command: prune-tokens eval, run: "{out}/c-seed{seed}"}}\n',
            "arm 'b': run is {out}/c-seed{seed}, which no run before it makes",
        ),
        (
            'arms: {b: {command: prune-tokens eval, run: "{out}/a-seed{seed}"}, a: {}}\n',
            "arm 'b': run is {out}/a-seed{seed}, which no run before it makes",
        ),
        ("arms: {a: {}, b: {command: prune-tokens eval, run: gone}}\n", "arm 'b': gone is not a run folder"),
        (
            'arms: {a: {}, b: {command: pretrain eval, run: "{out}/a-seed{seed}"}}\n',
            "arm 'b': s/a-seed0 is a run of `effvl prune-tokens`",
        ),
        ('arms: {a: {}, b: {command: prune-tokens eval, run: "{out}/a-seed0", keep: 2}}\n', "arm 'b': --keep is 2"),
    ],
)
def test_a_fault_anywhere_keeps_all_runs_from_starting(sweep, text, part):
    outcome = sweep(text, "--out", "s")
    assert outcome.code == 2
    assert part in outcome.error
    assert not Path("s").exists()


def test_all_faults_are_said_at_once_and_each_once(sweep):
    arms = 'a: {kep: 1}, b: {command: prune-tokens eval, run: "{out}/a-seed{seed}"}, c: {layer: x}, d: {}'
    outcome = sweep(f"arms: {{{arms}}}\nseeds: [0, 1]\n")
    assert outcome.code == 2
    assert "s.yaml has 2 faults" in outcome.error and "Nothing was started" in outcome.error
    lines = [line for line in outcome.err.splitlines() if line.startswith("  ")]
    assert [line.split(":")[0].strip() for line in lines] == ["arm 'a'", "arm 'c'"]  # b works on a


def test_a_verb_is_checked_with_the_options_of_the_run_that_will_be_there(sweep):
    arms = 'a: {keep: 0.3}, b: {command: prune-tokens eval, run: "{out}/a-seed{seed}"}'
    shown = sweep(f"arms: {{{arms}}}\n", "--dry-run")
    assert shown.code == 0, shown.err


def test_a_dry_run_shows_the_plan_and_what_is_done(effvl, workdir):
    Path("s.yaml").write_text(
        "effvl: 1\ncommand: pretrain\ndescription: two runs\n"
        "config: {method: supervised, model: 'tiny:resnet', data: digits, batch-size: 16, workers: 0}\n"
        "arms: {short: {steps: 1}, long: {steps: 2}}\nseeds: [0, 1]\n"
    )
    shown = effvl("sweep", "s.yaml", "--dry-run")
    assert shown.code == 0 and shown.out.splitlines()[0] == "4 runs, 0 done"
    assert not Path("runs").exists()
    line = next(line for line in shown.out.splitlines() if line.startswith("short") and "--seed 0" in line)
    assert effvl(*line[line.index("effvl ") :].split()[1:]).code == 0
    shown = effvl("sweep", "s.yaml", "--dry-run", "--shard", "0/2").out.splitlines()
    assert shown[0] == "2 runs, 1 done"
    assert [row.split()[:3] for row in shown[3:]] == [["short", "0", "done"], ["short", "1", "to"]]


def test_an_arm_may_be_like_another(workdir):
    path = workdir / "s.yaml"
    arms = "a: {keep: 0.5, layer: 1, seeds: [0, 1]}, b: {like: a, layer: 2}, c: {like: b, keep: 0.7}"
    path.write_text(f"{HEAD}arms: {{{arms}}}\n")
    recipe = read_recipe(path)
    assert recipe.arms == {
        "a": {"keep": "0.5", "layer": "1"},
        "b": {"keep": "0.5", "layer": "2"},
        "c": {"keep": "0.7", "layer": "2"},
    }
    assert recipe.arm_seeds == {"a": (0, 1)}  # how often it runs is an arm's own
    for arms, part in (("a: {like: b}", "'b', which is not an arm"), ("a: {like: b}, b: {like: a}", "is like itself")):
        path.write_text(f"{HEAD}arms: {{{arms}}}\n")
        with pytest.raises(UsageError, match=part):
            read_recipe(path)
