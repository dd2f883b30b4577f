"""What learning tasks will cost, and what their state will take, for `--dry-run`."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from effvl_cli.config.continual_add_task import AddTaskConfig
from effvl_cli.config.continual_learn import UNOWNED, ContinualConfig, TaskOptions
from effvl_cli.core import bench
from effvl_cli.core.measure import count_macs
from effvl_cli.core.run import unopened
from effvl_cli.core.table import Cell, Table, counted, times
from effvl_cli.engines.common.cost_table import TRAINING, Part, cost_table, part, speed_of, training_memory
from effvl_cli.engines.continual.attempt import GROWING
from effvl_cli.engines.continual.context import Context, open_context
from effvl_cli.engines.continual.heads import head_path
from effvl_cli.engines.continual.sequence import check
from effvl_cli.engines.continual.tasks import Task, read_tasks
from effvl_cli.engines.continual.widths import built
from effvl_cli.models.geometry import check_growable
from effvl_cli.models.network import Network
from effvl_cli.techniques.continual import accounting, tasknet

PROBED = 64  # images at a time
MOST_WORK = "each task at width 1 and once; growth repeats the learning, and a sweep may end before its last stage"


def preview_job(config: ContinualConfig) -> list[Table]:
    """Cost of the whole sequence, and the bytes of its state."""
    context = open_context(config, unopened("continual", config))
    tasks = read_tasks(config)
    check(context, [context.job(task, number) for number, task in enumerate(tasks, 1)])
    tables = [_cost(context, tasks, first=1)]
    if config.method not in UNOWNED:
        tables.insert(0, storage_table(context, tasks))
    return tables


def preview_task(config: AddTaskConfig, task: Task, number: int, model: str) -> list[Table]:
    """Cost of one more task, the number-th."""
    context = open_context(replace(config, model=model), unopened("continual add-task", config))
    check(context, [context.job(task, number)])
    return [_cost(context, [task], first=number)]


def _cost(context: Context, tasks: Sequence[Task], first: int) -> Table:
    images = bench.noise(context.network.preprocess.size, context.run.device)(PROBED)
    module = context.network.module.to(context.run.device)
    macs = count_macs(module, images[:1])
    speed = speed_of(module, module, images, macs, context.config.precision)
    totals: dict[str, int] = {}
    tested = 0
    for number, task in enumerate(tasks, first):
        options, counts = task.options(context.config), context.reader.counts(task)
        for name, epochs in _epochs(options, number).items():
            totals[name] = totals.get(name, 0) + epochs * counts["train"]
        tested += counts["val"] + counts["test"]
    parts: list[Part] = [
        part(name, f"{count:,} images", TRAINING * count * macs, speed) for name, count in totals.items() if count
    ]
    parts.append(part("evaluation", f"{4 * tested:,} images", 4 * tested * macs, speed))
    size = context.config.batch_size or 1
    noise = bench.noise(context.network.preprocess.size, context.run.device)
    memory = training_memory(module, "sgd", lambda count: module(noise(count)), size)
    title = f"cost of {counted(len(tasks), 'task')} with {context.network.name}"
    return cost_table(title, parts, context.run.device, memory=memory, notes=(MOST_WORK,))


def _epochs(options: TaskOptions, number: int) -> dict[str, int]:
    """Epochs of each part of learning a task, the number-th; what is trained once counts once."""
    learn, controls = options.epochs or 0, options.controls or ()
    owning, growing = options.method not in UNOWNED, options.method in GROWING
    from_others = growing and options.goal.startswith("finetune")
    alone = "individual" in controls or options.method == "individual" or from_others
    stages = 1 if options.method == "packnet" else len(options.prune_ratios or ())
    compact = stages * (options.prune_epochs or 0) if owning else 0
    again = options.retrain_epochs or 0 if options.method == "cpg" else 0
    matched = "individual-matched" in controls
    alone = alone or (growing and options.goal == "individual") or (matched and not compact + again)
    return {
        "individual": learn if alone else 0,
        "goals": learn * options.num_goal_repeats if from_others and number > 1 else 0,
        "learning": learn if owning else 0,
        "compaction": compact,
        "retraining": again,
        "individual, as long": learn + compact + again if matched and compact + again else 0,
        "fine-tuning": learn if "finetune" in (*controls, options.method) else 0,
    }


def storage_table(context: Context, tasks: Sequence[Task]) -> Table:
    """Bytes of the state, were every task to pick from all weights at the largest width."""
    config = context.config
    width = config.grow_max if config.method in GROWING and config.goal != "none" else 1.0
    if width > 1:
        check_growable(context.network.name)
    one, large = context.network, built(context, width, "preview")
    sizes = {name: large.module.state_dict()[name].numel() for name in sorted(context.shared)}
    classes = [len(task.classes) for task in tasks]
    found = accounting.most_storage(sizes, len(tasks), _own_bytes(large, context.shared))
    heads = sum(_head_bytes(large, count) for count in classes)
    dense = accounting.bytes_of(one.module.state_dict())
    rows: list[tuple[Cell, ...]] = [
        ("weights (float32)", f"{found.base:,}"),
        (f"owners ({len(tasks).bit_length()} bits a weight)", f"{found.owner:,}"),
        ("picks (1 bit an older weight), at most", f"{found.picks:,}"),
        ("norms, biases, tokens", f"{found.tasks:,}"),
        ("heads", f"{heads:,}"),
        ("all", f"{found.total + heads:,}"),
    ]
    shared_at_one = sum(one.module.state_dict()[name].numel() for name in sizes)
    total = found.total + heads
    notes = (
        f"{sum(sizes.values()):,} shared weights at width {width:g}, {shared_at_one:,} at width 1",
        f"{times(total / dense)} one network of width 1"
        + (f", {times(total / (dense * len(tasks)))} {len(tasks)} of them" if len(tasks) > 1 else ""),
    )
    return Table(
        f"state of {counted(len(tasks), 'task')} with {one.name} at width {width:g}",
        ("part", "bytes"),
        tuple(rows),
        notes,
    )


def _own_bytes(network: Network, shared: frozenset[str]) -> int:
    """Bytes that each task has for itself, but for its head."""
    head = head_path(network.module)
    own = tasknet.task_state(network.module, shared)
    return accounting.bytes_of({key: value for key, value in own.items() if not key.startswith(f"{head}.")})


def _head_bytes(network: Network, num_classes: int) -> int:
    head = network.module.get_submodule(head_path(network.module))
    assert isinstance(head, torch.nn.Linear)
    return 4 * num_classes * (head.in_features + 1)
