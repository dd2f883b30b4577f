"""States of tasks that nobody has learned: random weights of a real network, each task owning some of them."""

import dataclasses

import torch

from effvl_cli.engines.continual.materialised import environment_of, materialised
from effvl_cli.engines.continual.state import State, TaskRecord
from effvl_cli.models.geometry import Geometry, build, maps_between, owned_of
from effvl_cli.techniques.continual.growth import grow

MODEL = "cifar-resnet:8,width=4"
CPU = torch.device("cpu")


def add_task(state, number, *, share=0.4, seed=0, width=1.0, model=MODEL, classes=("a", "b"), data=None):
    """The state with one more task, which takes this share of what is free."""
    draw = torch.Generator().manual_seed(1000 * seed + number)
    geometry = Geometry(model, width)
    network = build(geometry, num_classes=len(classes), seed=number)
    own = network.module.state_dict()
    names = owned_of(network)
    base, owner = _grown(state, {key: own[key] for key in names}, geometry)
    for key in names:
        mine = (owner[key] == 0) & (torch.rand(owner[key].shape, generator=draw) < share)
        owner[key] = owner[key].masked_fill(mine, number)
        base[key] = torch.where(mine, torch.randn(mine.shape, generator=draw), base[key])
    picks = {key: torch.rand(base[key].shape, generator=draw) < 0.7 for key in names}
    record = TaskRecord(
        name=f"t{number}",
        id=number,
        classes=classes,
        data=data or {},
        geometry=0,
        preprocess=network.preprocess.to_dict(),
        width=width,
        environment=environment_of(CPU),
    )
    new = state.add(
        record,
        geometry=geometry,
        base=base,
        owner=owner,
        picks=picks,
        task_tensors={key: value for key, value in own.items() if key not in names},
    )
    plain = materialised(new, number)
    sealed = dataclasses.replace(
        new.tasks[-1], tensor_digest=plain.digest, tensors=plain.tensors, probe_digest=plain.probe_digest
    )
    return dataclasses.replace(new, tasks=(*new.tasks[:-1], sealed))


def _grown(state, shapes, geometry):
    """Base and owner of a state in the shapes of a geometry."""
    if not state.tasks:
        zeros = {key: torch.zeros(value.shape) for key, value in shapes.items()}
        return zeros, {key: value.to(torch.uint8) for key, value in zeros.items()}
    last = state.geometries[-1]
    old, new = (build(part, num_classes=2, seed=0) for part in (last, geometry))
    sizes = {key: value.shape for key, value in shapes.items()}
    base, owner, _ = grow(state.base, state.owner, sizes, maps_between(old, new))
    return base, owner


def with_tasks(count, *, shared_format="dense", **options):
    state = State.empty(options.get("model", MODEL), shared_format=shared_format)
    for number in range(1, count + 1):
        state = add_task(state, number, **options)
    return state


def save_run(state, folder):
    """The folder of a run that has this state."""
    state.commit(folder / "state")
    (folder / "config.yaml").write_text("effvl: 1\ncommand: continual\nconfig: {}\n")
    return folder
