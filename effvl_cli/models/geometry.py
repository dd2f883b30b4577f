"""Networks at a width: what a task of `effvl continual` is learned with, and how one width lies in a larger one."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from effvl_cli.core import seeds
from effvl_cli.core.errors import ModelError
from effvl_cli.models import network as networks
from effvl_cli.models.network import Network
from effvl_cli.models.widened import widened
from effvl_cli.techniques.continual.growth import GrowthError, IndexMap, index_maps
from effvl_cli.techniques.continual.owned import TiedWeightsError, owned_names
from effvl_cli.techniques.continual.widening import layouts, widen

# Networks whose enlarged form computes what the small one computed, when the new weights are zero.
_GROWABLE = re.compile(
    r"smallcnn(:.*)?|vgg:.*|cifar-resnet:(?!.*pad=both).*|tiny:resnet|vit:.*"
    r"|torchvision:(vgg\d+(_bn)?|(wide_)?resnet\d+(_\d+)?)|timm:(resnet\d+|(vit|deit)_[a-z]+_patch.*)"
)


@dataclass(frozen=True)
class Geometry:
    """A network's name and its width.

    Attributes:
        model: as in the registry.
        width: factor of the number of parameters; 1: the network as it is.
        round_to: enlarged sizes are multiples of it.
    """

    model: str
    width: float = 1.0
    round_to: int = 1

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Geometry":
        """The reverse of `to_dict`.

        Raises:
            ModelError: it is not one.
        """
        try:
            return cls(str(found["model"]), float(found["width"]), int(found["round_to"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{found!r} describes no geometry: {error}", "The state is damaged") from error


def check_growable(model: str) -> None:
    """Refuse to grow a network that cannot be enlarged.

    Raises:
        ModelError: it is of no known family (E-GROW-UNSUPPORTED).
    """
    if not _GROWABLE.fullmatch(model):
        raise ModelError(
            f"--model {model} cannot grow (E-GROW-UNSUPPORTED)",
            "Give --grow-max 1, or a vgg, resnet, smallcnn, or a vit of vit: or timm:",
        )


def not_growable(model: str, reason: object) -> ModelError:
    """The error for a network whose enlarged form is none, or computes something else."""
    return ModelError(f"{model} cannot grow: {reason} (E-GROW-UNSUPPORTED)", "Give --grow-max 1")


def build(geometry: Geometry, *, num_classes: int, seed: int) -> Network:
    """The network at its width, with random weights drawn from the seed; its head is not enlarged.

    Raises:
        UsageError: unknown name.
        ModelError: it cannot be enlarged (E-GROW-UNSUPPORTED).
    """
    network = networks.build(geometry.model, seed=seed, num_classes=num_classes)
    if geometry.width == 1:
        return network
    check_growable(geometry.model)
    with seeds.global_stream(seed, "widened"):
        try:
            widen(network.module, geometry.width, geometry.round_to)
        except (GrowthError, AttributeError) as error:  # of a family that is known, and built otherwise
            raise not_growable(geometry.model, error) from error
    network.edits.append(widened(geometry.width, geometry.round_to))
    return network


def owned_of(network: Network, exclude: tuple[str, ...] = ()) -> list[str]:
    """Names of the weights that tasks share.

    Raises:
        ModelError: two modules use one weight (E-TIED), or there is no linear head.
    """
    try:
        return owned_names(network.module, exclude)
    except TiedWeightsError as error:
        raise ModelError(
            f"{network.name} has tied weights: {error} (E-TIED)", "Choose a model whose layers have their own weights"
        ) from error
    except ValueError as error:
        raise ModelError(f"--model {network.name}: {error}", "Choose a classifier with one") from error


def maps_between(old: Network, new: Network) -> dict[str, IndexMap]:
    """Where the tensors of a network lie in those of a larger one; tensors of the same shape are left out.

    Heads of other numbers of classes must not be asked for: build both with the same.

    Raises:
        ModelError: one does not lie in the other (E-GROW-UNSUPPORTED).
    """

    def shapes(network: Network) -> dict[str, Any]:
        state: Mapping[str, Tensor] = network.module.state_dict()
        return {name: value.shape for name, value in state.items()}

    try:
        return index_maps(shapes(old), shapes(new), layouts(old.module), layouts(new.module))
    except (GrowthError, KeyError) as error:
        raise ModelError(
            f"{old.name} does not lie in its larger form: {error} (E-GROW-UNSUPPORTED)", "Give --grow-max 1"
        ) from error
