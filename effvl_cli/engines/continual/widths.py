"""The backbone at a width, and what earlier tasks left at a smaller one."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from effvl_cli.core import seeds
from effvl_cli.engines.continual.context import HEAD, Context, Job
from effvl_cli.engines.continual.heads import fresh_head, head_path, put_head
from effvl_cli.engines.continual.materialised import PROBE_SIZE, materialised, probe_images
from effvl_cli.engines.continual.state import State
from effvl_cli.models import geometry
from effvl_cli.models.geometry import Geometry
from effvl_cli.models.network import Network
from effvl_cli.techniques.continual.growth import GrowthError, IndexMap, grow, placed, self_test
from effvl_cli.techniques.continual.tasknet import load_task_state, task_state

TRIED = 2  # images on which a growth is tried


def geometry_at(context: Context, width: float) -> Geometry:
    """Description of the backbone at a width."""
    return Geometry(context.network.name, width, context.config.grow_round)


def built(context: Context, width: float, *stream: str | int) -> Network:
    """The backbone at a width, with the values that new weights begin with.

    Args:
        context: run.
        width: multiple of the parameters.
        stream: names of the random stream of a grown network.
    """
    if width == 1:
        return copy.deepcopy(context.network)
    seed = seeds.derive(context.config.seed, *stream, "grow")
    network = geometry.build(geometry_at(context, width), num_classes=HEAD, seed=seed)
    if context.network.source != "random":  # pretrained weights keep their place
        _place(context.network, network, geometry.maps_between(context.network, network))
    return network


def start_norms(context: Context, job: Job, state: State, network: Network, width: float) -> None:
    """Give norms, biases and tokens of a task's network the values that they begin with, in place.

    After the first task they are those of the task before, of a network without weights, or the network's own
    (--norm-init); what only the first task trains is always as that task left it.
    """
    if not state.tasks:
        return
    head = f"{head_path(network.module)}."
    own = {key: value for key, value in state.task_tensors[-1].items() if not key.startswith(head)}
    if job.config.norm_init != "previous":
        own = {key: value for key, value in own.items() if key in context.frozen}
    if job.config.norm_init == "fresh" and context.network.source != "random":
        new = geometry.build(geometry_at(context, width), num_classes=HEAD, seed=context.config.seed)
        fresh = task_state(new.module, geometry.owned_of(new))
        load_task_state(network.module, {key: value for key, value in fresh.items() if not key.startswith(head)})
    if own:
        load_task_state(network.module, own, maps=_maps(context, state, network, width))


def shared_at(
    context: Context, state: State, network: Network, width: float
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """Values and owners of the committed weights at a width, and where the network is new.

    Raises:
        ModelError: the grown network would compute something else than the old one.
    """
    if width == state.tasks[-1].width:
        return state.base, state.owner, None
    maps = _maps(context, state, network, width)
    shapes = {name: network.module.state_dict()[name].shape for name in state.base}
    _check_growth(context, state, network, maps)
    return grow(state.base, state.owner, shapes, {name: maps[name] for name in state.base if name in maps})


def _maps(context: Context, state: State, network: Network, width: float) -> dict[str, IndexMap]:
    before = state.tasks[-1].width
    return {} if before == width else geometry.maps_between(built(context, before, "maps"), network)


def _place(old: Network, new: Network, maps: Mapping[str, IndexMap]) -> None:
    """Write the values of a network into a larger one, in place."""
    target = new.module.state_dict()
    for name, value in old.module.state_dict().items():
        if name in maps:
            placed(target[name], value, maps[name])
        else:
            target[name].copy_(value)


def try_growth(context: Context, width: float) -> None:
    """Grow the network as a task would, so that one that cannot is refused before anything is trained.

    Raises:
        ModelError: it is of no known family, or its enlarged form would compute something else (E-GROW-UNSUPPORTED).
    """
    large = built(context, width, "trial")
    _same_logits(context.network, large, geometry.maps_between(context.network, large), TRIED)


def _check_growth(context: Context, state: State, network: Network, maps: Mapping[str, IndexMap]) -> None:
    """With zeros in its new weights, the grown network gives the logits of the newest task."""
    newest = materialised(state, len(state.tasks)).network
    larger = copy.deepcopy(network)
    put_head(larger.module, fresh_head(larger.module, len(state.tasks[-1].classes), 0, ""))
    _same_logits(newest, larger, {**maps, **geometry.maps_between(newest, larger)}, PROBE_SIZE)


@torch.no_grad()
def _same_logits(small: Network, large: Network, maps: Mapping[str, IndexMap], count: int) -> None:
    """Compare a network with its enlarged form, whose new weights become zero, on so many images."""
    module: nn.Module = large.module.eval()
    for name in (*geometry.owned_of(large), f"{head_path(module)}.weight"):
        module.state_dict()[name].zero_()
    _place(small, large, maps)
    images = probe_images(small.preprocess, torch.device("cpu"))[:count]
    try:
        self_test(copy.deepcopy(small.module).eval(), module, images)
    except (GrowthError, RuntimeError) as error:  # a forward pass that does not know of other sizes
        reason = str(error).partition("\n")[0]
        raise geometry.not_growable(small.name, reason) from error
