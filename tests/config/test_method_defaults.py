"""Defaults of pretrain follow the method and the batch; the default job keeps its own."""

import pytest

from effvl_cli.config.methods import METHODS
from effvl_cli.config.pretrain import PretrainConfig, SearchConfig
from effvl_cli.config.resolve import dry_run_text, resolve

OWN = {"data": "folder:pictures", "budget": "1k"}


def _resolved(**typed):
    return resolve(PretrainConfig, typed, command="pretrain")


# Learning rates of the released recipes are for a batch of 256; weight decay, clipping and heads are theirs.
@pytest.mark.parametrize(
    ("method", "base", "expected"),
    [
        ("mocov3", 1.5e-4, ("weight_decay", 0.1, "clip_grad", 0, "head_layers", 3)),
        ("simclr", 3e-4, ("weight_decay", 0.05, "clip_grad", 0, "head_layers", 2)),
        ("dino", 5e-4, ("weight_decay", 0.04, "weight_decay_end", 0.4, "clip_grad", 3, "clip_mode", "per-param")),
    ],
)
def test_rates_scale_with_the_batch_and_the_rest_is_the_methods(method, base, expected):
    for batch in (64, 1024):
        config = _resolved(**OWN, method=method, batch_size=batch).config
        assert config.lr == pytest.approx(base * batch / 256)
        for name, value in zip(expected[::2], expected[1::2], strict=True):
            assert getattr(config, name) == value, name
    search = resolve(SearchConfig, {"data": "folder:pictures", "method": method}, command="pretrain search").config
    assert search.lr == pytest.approx(base / 4)


def test_what_is_given_wins_and_ends_the_methods_curve():
    config = _resolved(**OWN, method="dino", lr="2e-3", weight_decay="0.1", head_hidden="64").config
    assert (config.lr, config.weight_decay, config.weight_decay_end, config.head_hidden) == (2e-3, 0.1, None, 64)


def test_the_default_job_keeps_the_values_that_suit_it():
    resolved = _resolved()
    config = resolved.config
    assert (config.lr, config.weight_decay, config.clip_grad, config.warmup) == (1e-3, 0.02, 1.0, 0.05)
    heads = METHODS["simclr"].arguments(config, 64, 10_000)
    assert (heads["hidden"], heads["out"], heads["layers"]) == (256, 64, 2)
    assert "# default of the embedded data" in dry_run_text("pretrain", resolved)


def test_a_dry_run_says_where_a_rate_is_from():
    text = dry_run_text("pretrain", _resolved(**OWN, method="mocov3", batch_size="512"))
    assert "# default of mocov3: 0.00015 x 512 / 256" in text
    assert "head-layers: 3                               # default of mocov3" in text


@pytest.mark.parametrize(
    ("method", "width", "expected"),
    [
        ("mocov3", 384, (4096, 256)),
        ("mocov3", 64, (1024, 256)),
        ("simclr", 192, (2048, 128)),
        ("dino", 384, (2048, 256)),
    ],
)
def test_heads_are_the_methods_where_the_backbone_is_as_large_as_theirs(method, width, expected):
    found = METHODS[method].arguments(_resolved(**OWN, method=method).config, width, 10_000)
    assert (found["hidden"], found.get("out") or found["bottleneck"]) == expected
    given = METHODS[method].arguments(_resolved(**OWN, method=method, head_hidden="48").config, width, 10_000)
    assert given["hidden"] == 48


def test_a_stored_config_resolves_to_itself():
    """Also where a default became None: nothing is derived a second time."""
    from effvl_cli.config.identity import identity, to_yaml_mapping
    from effvl_cli.config.validate import validate

    for typed in ({"method": "dino"}, {"method": "dino", "weight_decay": "0.1"}, {"method": "mocov3"}):
        config = _resolved(**OWN, **typed).config
        stored = {key.replace("-", "_"): value for key, value in to_yaml_mapping(config).items()}
        assert identity(validate(PretrainConfig, stored)) == identity(config)


def test_every_row_is_a_choice_and_names_what_is_there():
    import importlib

    for name, spec in METHODS.items():
        module, _, kind = spec.target.partition(":")
        assert hasattr(importlib.import_module(module), kind), name
        length = {"budget": "1k"} if spec.compares_views else {"steps": "1"}
        assert _resolved(data="digits", method=name, **length).config.method == name
