"""Precedence, identity and comparison of options."""

import pytest

from effvl_cli.config.identity import differences, identity, to_yaml_mapping
from effvl_cli.config.prune_tokens import EvalConfig, PruneTokensConfig
from effvl_cli.config.recipe_file import dump_yaml, read_recipe
from effvl_cli.config.resolve import resolve
from effvl_cli.config.schema import options
from effvl_cli.config.validate import validate
from effvl_cli.core.errors import UsageError


def _recipe(path, **config):
    path.write_text(dump_yaml({"effvl": 1, "command": "prune-tokens", "config": config}))
    return str(path)


def test_default_then_recipe_then_flag(tmp_path):
    recipe = _recipe(tmp_path / "r.yaml", keep="5e-1", shots=3)
    resolved = resolve(PruneTokensConfig, {"shots": "7"}, command="prune-tokens", recipe=recipe)
    assert (resolved.config.keep, resolved.config.shots, resolved.config.block) == (0.5, 7, 1)
    assert resolved.origins["keep"] == f"recipe {recipe}"
    assert resolved.origins["shots"] == "flag"
    assert resolved.origins["block"] == "default"


def test_a_verb_starts_from_its_run_and_passes_over_what_it_does_not_know(tmp_path):
    path = tmp_path / "config.yaml"
    _recipe(path, keep=0.3, out="elsewhere", tune_lr=0.5, seed=4)
    resolved = resolve(EvalConfig, {}, command="prune-tokens eval", base=read_recipe(path))
    assert resolved.config.keep == (0.3,)
    assert resolved.config.seed == 4
    assert resolved.config.out is None


@pytest.mark.parametrize(
    ("stored", "typed", "expected"),
    [
        ({"mean": "0.1,0.2,0.3", "std": "1,1,1"}, {"normalise": "half"}, ("half", (), ())),
        ({"normalise": "half"}, {"mean": "0.1,0.2,0.3"}, (None, (0.1, 0.2, 0.3), ())),
        ({"mean": "0.1,0.2,0.3", "std": "1,1,1"}, {"mean": "0,0,0"}, (None, (0, 0, 0), (1, 1, 1))),
        ({"normalise": "half", "mean": ""}, {}, ("half", (), ())),
    ],
)
def test_a_normalisation_overrides_the_other_way_to_give_one(tmp_path, stored, typed, expected):
    """Also beside other options that exclude one another: a name of statistics, and their numbers."""
    path = tmp_path / "config.yaml"
    _recipe(path, num_keep="3", **stored)
    found = resolve(EvalConfig, {**typed, "keep": "0.5"}, command="prune-tokens eval", base=read_recipe(path)).config
    assert (found.normalise, found.mean, found.std) == expected
    assert (found.keep, found.num_keep) == ((0.5,), None)


def test_two_ways_to_give_a_normalisation_are_refused():
    typed = {"normalise": "half", "mean": "0,0,0", "std": "1,1,1"}
    with pytest.raises(UsageError, match="--normalise and --mean and --std set the same thing"):
        resolve(EvalConfig, typed, command="prune-tokens eval")


def test_lists_are_comma_separated_and_checked_item_by_item():
    config = validate(EvalConfig, {"keep": "0.9, 0.5", "selector": "random,golden"})
    assert config.keep == (0.9, 0.5)
    assert config.selector == ("random", "golden")
    with pytest.raises(UsageError, match=r"--keep is 1.5"):
        validate(EvalConfig, {"keep": "0.9,1.5"})
    with pytest.raises(UsageError, match=r"--selector is randm.*did you mean random"):
        validate(EvalConfig, {"selector": "randm"})


def test_none_is_a_word_for_weights_and_no_value_for_numbers():
    assert validate(PruneTokensConfig, {"weights": "none"}).weights == "none"
    assert validate(PruneTokensConfig, {"layer": "none"}).layer is None


def test_identity_ignores_what_does_not_change_the_result():
    base = PruneTokensConfig()
    assert identity(base) == identity(PruneTokensConfig(workers=3, device="cpu", out="x", log_every=1))
    assert identity(base) != identity(PruneTokensConfig(keep=0.5))
    assert identity(base) != identity(PruneTokensConfig(seed=1))


def test_differences_name_both_values():
    old = {key: str(value) for key, value in to_yaml_mapping(PruneTokensConfig()).items()}
    assert differences(old, PruneTokensConfig(workers=2)) == []
    assert differences(old, PruneTokensConfig(keep=0.5, layer=2)) == [
        "keep: 0.6 there, 0.5 here",
        "layer: None there, 2 here",
    ]


def test_an_empty_list_is_no_blank_in_a_difference():
    from effvl_cli.config.detect import TrainConfig

    old = {key: str(value) for key, value in to_yaml_mapping(TrainConfig(max_size=96)).items()}
    assert differences(old, TrainConfig(max_size=96, min_size=(64,))) == ["min-size: the default there, 64 here"]


def test_growth_is_no_difference():
    from effvl_cli.config.pretrain import PretrainConfig

    old = {key: str(value) for key, value in to_yaml_mapping(PretrainConfig(method="clip", steps=10)).items()}
    assert differences(old, PretrainConfig(method="clip", steps=20)) == []
    assert differences(old, PretrainConfig(method="clip", steps=5)) == ["steps: 10 there, 5 here"]


def test_schema_reads_kind_bounds_and_choices():
    known = options(PruneTokensConfig)
    assert (known["keep"].kind, known["keep"].bounds) == (float, "above 0, at most 1")
    assert known["prompts"].choices == ("none", "visual", "text", "independent", "coupled")
    assert known["layer"].optional and known["layer"].kind is int
    assert known["keep"].panel == "Pruning" and known["seed"].panel == "Run"
    assert options(EvalConfig)["keep"].is_list
    assert "volatile" in known["workers"].markers


def test_what_is_written_is_read_back(tmp_path):
    config = PruneTokensConfig(keep=0.25, templates="a {}.", predictor_lr=1e-3, deterministic=True)
    path = tmp_path / "r.yaml"
    path.write_text(dump_yaml({"effvl": 1, "command": "prune-tokens", "config": to_yaml_mapping(config)}))
    assert resolve(PruneTokensConfig, {}, command="prune-tokens", recipe=str(path)).config == config
