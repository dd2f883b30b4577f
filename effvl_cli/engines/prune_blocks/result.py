"""The files of a run of prune-blocks: weights and edits, a torch.export program, rebuild.py, a table."""

import dataclasses
from collections.abc import Sequence

from effvl_cli.core.files import write_csv
from effvl_cli.engines.common.verified_files import traced_once, write_code, write_program
from effvl_cli.engines.prune_blocks.context import Tuning
from effvl_cli.models import network as networks
from effvl_cli.models.edits import reported
from effvl_cli.models.pruned_network import State, edits_of
from effvl_cli.techniques.prune_blocks.step_row import StepRow

COLUMNS = (
    "k",
    "removed",
    "params",
    "macs",
    "params_removed",
    "macs_removed",
    "top1_score_before_ft",
    "top1_score_after_ft",
    "top1_test_before_ft",
    "top1_test_after_ft",
    "leak",
)


def pruned_network(context: Tuning, state: State) -> networks.Network:
    """The pruned network under its name."""
    return dataclasses.replace(context.network, module=state.module, edits=edits_of(context.network, state.removals))


def save(context: Tuning, state: State) -> None:
    """Write the checkpoint, `model.pt2` and `rebuild.py`, verified, and name them in the report.

    Raises:
        CheckError: a file gives different logits.
    """
    run, network = context.run, pruned_network(context, state)
    about = {"classes": list(context.classes), "data": context.data}
    run.save_model(state.module.state_dict(), network.describe() | about)
    run.report.edits(reported(network.edits))
    write_program(run, traced_once(network, state.module))
    write_code(run, network)


def write_table(context: Tuning, steps: Sequence[StepRow]) -> None:
    """`table.csv`, a row for each step; what was not measured is empty."""
    leak = int(context.config.score_split == "test")
    rows = [{**step.to_dict(), "leak": leak, "removed": " ".join(step.names)} for step in steps]
    context.run.write("table.csv", write_csv, COLUMNS, rows)
