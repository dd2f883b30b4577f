"""The state that a verb works on."""

from pathlib import Path

from effvl_cli.config.continual_verify import STATE_FILE, StateInput
from effvl_cli.core.find_run import find_holding
from effvl_cli.engines.continual.state import STATE, State, TaskRecord


def run_of(config: StateInput) -> Path:
    """The run folder: RUN, else the newest completed one that has a state.

    Raises:
        DataError: there is none.
        ModelError: RUN has none.
    """
    return find_holding(STATE_FILE, "continual", config.run)


def open_state(config: StateInput) -> State:
    """Its state.

    Raises:
        ModelError: damaged, or of another version.
    """
    return State.read(run_of(config) / STATE)


def chosen(state: State, names: tuple[str, ...]) -> list[TaskRecord]:
    """The tasks of these names; all when there are none.

    Raises:
        UsageError: one is not in the state.
    """
    return [state.task(name) for name in names] or list(state.tasks)
