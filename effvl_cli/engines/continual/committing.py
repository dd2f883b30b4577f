"""A learned task becomes part of the state: its weights are frozen, and what it computes is written down."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.errors import ModelError
from effvl_cli.core.measure import unfused_attention
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.learner import Learned
from effvl_cli.engines.continual.live import Live
from effvl_cli.engines.continual.materialised import Materialised, environment_of, materialised, probe_images
from effvl_cli.engines.continual.state import State, TaskRecord
from effvl_cli.engines.continual.widths import geometry_at


def add_to(context: Context, job: Job, learned: Learned, state: State, *, added: str = "") -> State:
    """The state with one more task; nothing is written.

    Args:
        context: run.
        job: the task.
        learned: its network.
        state: without it.
        added: name of the run that adds it to a finished state.

    Raises:
        ModelError: the network that the state gives does not compute what the learned one does.
    """
    live = learned.live
    live.check("learning")
    live.module.eval()
    distributed.share_buffers(live.module)
    images = probe_images(job.data.preprocess, context.run.device)
    with torch.no_grad(), unfused_attention():
        before = live.module(images).float().cpu()
    own = live.own_state()
    picks = live.owned.commit()
    record = TaskRecord(
        name=job.task.name,
        id=job.number,
        classes=job.data.classes,
        geometry=0,  # set by the state
        preprocess=job.data.preprocess.to_dict(),
        data=job.task.to_dict(),
        goal=learned.goal.value,
        ratio=learned.figures["ratio_chosen"],
        width=live.width,
        environment=environment_of(context.run.device),
        added=added,
    )
    new = state.add(
        record,
        geometry=geometry_at(context, live.width),
        base=live.owned.base(),
        owner=live.owned.owner(),
        picks=picks,
        task_tensors=own,
    )
    plain = materialised(new, job.number, context.run.device)
    if not torch.equal(plain.logits(images), before):
        raise ModelError(f"task {job.task.name!r} as stored gives other logits than as learned", "Please report this")
    figures = _figures(context, job, learned, live, plain, picks)
    record = dataclasses.replace(
        new.tasks[-1],
        tensor_digest=plain.digest,
        tensors=plain.tensors,
        probe_digest=plain.probe_digest,
        figures=figures,
    )
    return dataclasses.replace(new, tasks=(*new.tasks[:-1], record))


def _figures(
    context: Context, job: Job, learned: Learned, live: Live, plain: Materialised, picks: dict[str, Tensor]
) -> dict[str, Any]:
    """What the report says of the task."""
    owners = live.owned.owner()
    total = sum(value.numel() for value in owners.values())
    own = sum(int((value == job.number).sum()) for value in owners.values())
    old = sum(int(((value > 0) & (value < job.number)).sum()) for value in owners.values())
    picked = sum(int(value.sum()) for value in picks.values())
    return {
        **job.described(),
        **learned.figures,
        "goal": {"source": learned.goal.source, "value": learned.goal.value},
        "val_acc": learned.figures["val"],
        "test_acc": context.accuracy.of(plain.module, job.test),
        "width_at_commit": live.width,
        "own_fraction": own / total,
        "picked_fraction": picked / old if old else None,
        "nnz": own + picked,
        "sparsity": 1 - (own + picked) / total,
        "digest": plain.digest,
    }
