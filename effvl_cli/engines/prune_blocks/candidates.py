"""The units of a network that may be removed, and what each saves."""

import dataclasses
from collections.abc import Mapping

from torch import nn

from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.measure import count_macs, count_parameters
from effvl_cli.engines.prune_blocks.context import Judged
from effvl_cli.techniques.prune_blocks.choices import Candidate, Found, reasons
from effvl_cli.techniques.prune_blocks.discover import (
    Discovery,
    Rejected,
    discover,
    most_removable,
    narrow,
    spare,
    with_relus,
)
from effvl_cli.techniques.prune_blocks.scoring_cost import measure_costs


def survey(context: Judged, origins: Mapping[str, str], *, look: bool = True) -> tuple[frozenset[str], Found]:
    """Units of the network as loaded that --protect and --only allow to remove: original paths of all of them, and
    those that may be removed at first.

    Args:
        context: options and network.
        origins: path of each module, to its path in the network as it was built; patterns are of these.
        look: as for `find`.

    Raises:
        UsageError: a pattern matches no unit.
        ModelError: there is no unit at all.
    """
    found = _discover(context, context.module)
    allowed = _permitted(context, found, origins)
    return allowed, _removable(context, context.module, found, origins, allowed, look=look)


def _permitted(context: Judged, found: Discovery, origins: Mapping[str, str]) -> frozenset[str]:
    config = context.config
    if not found.units:
        why = reasons(found.rejected) or "none of its modules is one of a series of blocks"
        raise _none(context, found.rejected, why)
    originally = [dataclasses.replace(unit, path=origins.get(unit.path, unit.path)) for unit in found.units]
    try:
        units = narrow(originally, config.protect, config.only)
    except ValueError as error:
        raise UsageError(f"--protect or --only: {error}", "See the paths: effvl prune-blocks --dry-run") from error
    return frozenset(unit.path for unit in units)


def find(
    context: Judged, module: nn.Module, origins: Mapping[str, str], allowed: frozenset[str], *, look: bool = True
) -> Found:
    """Units of a network that may be removed.

    Args:
        context: options and input size.
        module: original or pruned network.
        origins: original paths of units whose path has changed.
        allowed: original paths of those that the patterns allow.
        look: check with the first scoring images too, which may give a unit inputs of other signs than noise.
    """
    return _removable(context, module, _discover(context, module), origins, allowed, look=look)


def _removable(
    context: Judged,
    module: nn.Module,
    found: Discovery,
    origins: Mapping[str, str],
    allowed: frozenset[str],
    *,
    look: bool,
) -> Found:
    units = tuple(unit for unit in found.units if origins.get(unit.path, unit.path) in allowed)
    room = most_removable(found.stages, units, context.config.min_per_stage)
    units = spare(found.stages, units, context.config.min_per_stage)
    if not units:
        return Found((), room, found.rejected, None)
    if look:
        units = with_relus(module, units, context.first_images())
    parts = measure_costs(module, units, context.noise(1), count_macs)
    candidates = tuple(
        Candidate(unit, origins.get(unit.path, unit.path), count_parameters(module.get_submodule(unit.path)), macs)
        for unit, macs in zip(units, parts.saved, strict=True)
    )
    return Found(candidates, room, found.rejected, parts)


def _discover(context: Judged, module: nn.Module) -> Discovery:
    return discover(module, context.noise(2), valid=context.config.valid, stages=context.config.unit == "stage")


def refuse_none(context: Judged, found: Found) -> None:
    """Raise an error that says why nothing can be removed.

    Raises:
        ModelError: there is no candidate.
    """
    if not found.candidates:
        raise _none(context, found.rejected, f"the options keep all of them; {reasons(found.rejected)}".rstrip("; "))


def _none(context: Judged, rejected: tuple[Rejected, ...], why: str) -> ModelError:
    context.run.report.technique["rejected"] = [vars(row) for row in rejected]
    return ModelError(
        f"{context.network.name} has no removable {context.config.unit}: {why}",
        "Choose a network with identity shortcuts, or see --valid, --protect, --only and --min-per-stage",
    )
