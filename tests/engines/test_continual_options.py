"""Options of continual that depend on one another, on the data and on the number of images."""

import pytest

from effvl_cli.config.continual import AddTaskConfig, ContinualConfig
from effvl_cli.config.continual_eval import ExportConfig
from effvl_cli.config.continual_tasks import ListTasksConfig
from effvl_cli.config.continual_verify import VerifyConfig
from effvl_cli.config.identity import to_yaml_mapping
from effvl_cli.config.recipe_file import dump_yaml, read_recipe
from effvl_cli.config.resolve import resolve
from effvl_cli.config.schema import options
from effvl_cli.config.validate import validate
from effvl_cli.core.distributed import World
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.run import unopened
from effvl_cli.engines.continual import phase_training
from effvl_cli.engines.continual.add_task import preview
from effvl_cli.engines.continual.add_task import run as learn
from effvl_cli.engines.continual.open_state import chosen
from effvl_cli.engines.continual.state import State
from effvl_cli.engines.continual.tasks import Task
from effvl_cli.models.geometry import owned_of
from effvl_cli.models.network import build
from tests.engines.continual_states import MODEL, add_task


@pytest.mark.parametrize(("data", "usual"), [("cifar100", 4), ("digits", 1)])
def test_a_ramp_is_no_longer_than_its_stage(data, usual):
    def ramp(**options):
        return validate(ContinualConfig, {"data": data, **options}).prune_ramp_epochs

    assert [ramp(), ramp(prune_epochs=1), ramp(prune_epochs=30)] == [usual, 1, usual]
    with pytest.raises(UsageError, match="--prune-ramp-epochs is 3 and --prune-epochs 2"):
        ramp(prune_epochs=2, prune_ramp_epochs=3)


def test_a_task_keeps_some_weights():
    assert validate(ContinualConfig, {"packnet_ratio": "0.99"}).packnet_ratio == 0.99
    with pytest.raises(UsageError, match=r"--packnet-ratio is 1\. It must be a number, above 0, below 1"):
        validate(ContinualConfig, {"packnet_ratio": "1"})


def test_batches_of_a_small_task(monkeypatch):
    config = ContinualConfig(batch_size=64)
    assert [phase_training.batch_size(config, count) for count in (8, 64, 100)] == [8, 64, 64]
    monkeypatch.setattr(phase_training.distributed, "world", lambda: World(0, 3))
    assert [phase_training.batch_size(config, count) for count in (8, 3, 2)] == [6, 3, 3]


def test_a_task_with_fewer_images_than_a_batch_is_learned(effvl):
    few = ("--num-tasks", 1, "--method", "finetune", "--model", "smallcnn:width=2", "--shots", 4, "--epochs", 1)
    outcome = effvl("continual", *few, "--batch-size", 64, "--out", "small")
    assert outcome.code == 0, outcome.err
    assert "--batch-size is 8, not 64, for task zero-one: 8 training images" in outcome.err


INHERITED = {"data": "cifar100", "prune-epochs": "20", "prune-ramp-epochs": "4", "goal": "value", "goal-value": "0.9"}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({}, (20, 4, "value", 0.9)),
        ({"prune_epochs": "1"}, (1, 1, "value", 0.9)),
        ({"prune_epochs": "4"}, (4, 4, "value", 0.9)),
        ({"prune_epochs": "30"}, (30, 4, "value", 0.9)),
        ({"goal": "individual"}, (20, 4, "individual", None)),
        ({"goal": "value"}, (20, 4, "value", 0.9)),
        ({"goal_value": "0.8"}, (20, 4, "value", 0.8)),
    ],
)
def test_what_follows_from_an_option_follows_the_one_that_is_given(typed, expected, tmp_path):
    """Beside options of RUN, of a recipe, and of the run that a row of tasks belongs to."""
    path = tmp_path / "config.yaml"

    def names(config):
        return config.prune_epochs, config.prune_ramp_epochs, config.goal, config.goal_value

    path.write_text(dump_yaml({"effvl": "1", "command": "continual", "config": INHERITED}))
    added = resolve(AddTaskConfig, {**typed, "task": "t"}, command="continual add-task", base=read_recipe(path))
    assert names(added.config) == expected
    assert names(resolve(ContinualConfig, typed, command="continual", recipe=str(path)).config) == expected
    run = resolve(ContinualConfig, {}, command="continual", recipe=str(path)).config
    row = {key.replace("_", "-"): value for key, value in typed.items()}
    assert names(Task("t", "cifar100", None, (), row, "row 1").options(run)) == expected


def test_what_is_given_beside_it_is_refused_where_it_does_not_fit(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml({"effvl": "1", "command": "continual", "config": INHERITED}))
    typed = {"prune_epochs": "2", "prune_ramp_epochs": "3"}
    with pytest.raises(UsageError, match="--prune-ramp-epochs is 3 and --prune-epochs 2"):
        resolve(ContinualConfig, typed, command="continual", recipe=str(path))
    with pytest.raises(UsageError, match="prune-epochs is one"):
        resolve(ContinualConfig, {"prune_epochs": "one"}, command="continual", recipe=str(path))


@pytest.mark.parametrize(("config", "way"), [(ContinualConfig, "tasks"), (ListTasksConfig, "by")])
def test_options_that_group_classes_are_refused_where_nothing_is_grouped(config, way):
    for option, value in (("num_classes_per_task", "3"), ("class_order", "seed")):
        with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} is {value} and --{way} coarse: only chunk"):
            validate(config, {way: "coarse", option: value})
        assert validate(config, {option: value})


def test_options_that_group_classes_do_not_outlive_the_grouping(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("effvl: 1\ncommand: continual\nconfig: {tasks: chunk, num-classes-per-task: 5}\n")
    line = {"command": "continual", "recipe": str(recipe)}
    found = [resolve(ContinualConfig, typed, **line).config for typed in ({}, {"tasks": "coarse"})]
    assert [config.num_classes_per_task for config in found] == [5, 2]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": "vgg:11"}, "--model is vgg:11, and the tasks share smallcnn:width=2"),
        ({"exclude": ("features.0.*",)}, r"--exclude is 'features.0.\*', and '' for the tasks that are there"),
        ({"grow_round": 8}, "--grow-round is 8, and 1 for the tasks that are there"),
        ({"own_patch_embed": False}, "--own-patch-embed is false, and true for the tasks that are there"),
    ],
)
def test_a_task_is_added_to_the_network_of_the_others(other, said, tmp_path):
    state = State.empty("smallcnn:width=2", config=to_yaml_mapping(ContinualConfig()))
    state = add_task(state, 1, model="smallcnn:width=2")
    state.commit(tmp_path / "state")
    given = {"run": str(tmp_path), "task": "b", "classes": ("two", "three")}
    for start in (preview, lambda config: learn(config, unopened("continual add-task", config))):
        with pytest.raises(UsageError, match=said):
            start(AddTaskConfig(**given, **other))


def test_a_task_that_is_named_twice_counts_once():
    state = add_task(add_task(State.empty(MODEL), 1), 2)
    found = [[record.id for record in chosen(state, names)] for names in (("t2", "t1", "t2"), ())]
    assert found == [[2, 1], [1, 2]]


def test_a_network_without_a_linear_head_is_refused_by_its_name():
    with pytest.raises(ModelError, match="--model torchvision:squeezenet1_0: SqueezeNet has no linear layer"):
        owned_of(build("torchvision:squeezenet1_0", seed=0, num_classes=2))


@pytest.mark.parametrize("config", [VerifyConfig, ExportConfig, AddTaskConfig])
def test_the_help_of_verbs_on_a_state_says_which_runs_have_none(config):
    assert "finetune and individual leave none" in options(config)["run"].doc
