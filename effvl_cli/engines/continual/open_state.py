"""The state that a verb works on."""

from pathlib import Path

from effvl_cli.config.continual_verify import STATE_FILE, StateInput
from effvl_cli.core.errors import UsageError
from effvl_cli.core.find_run import find_holding
from effvl_cli.core.report import read_report
from effvl_cli.core.run_files import CONFIG, REPORT
from effvl_cli.engines.continual.state import STATE, State, TaskRecord


def run_of(config: StateInput) -> Path:
    """The run folder: RUN, else the newest completed one that has a state.

    Raises:
        DataError: there is none.
        ModelError: RUN has none.
    """
    return find_holding(STATE_FILE, "continual", config.run)


def refuse_unfinished(folder: Path) -> None:
    """Check that no run will go on with the tasks in a folder.

    Raises:
        UsageError: the run that made it has not come to its end.
    """
    begun, report = folder / CONFIG, folder / REPORT
    if begun.is_file() and not (report.is_file() and read_report(report).status == "completed"):
        raise UsageError(f"the run in {folder} has not finished, and would go on with other tasks", "Finish it first")


def open_state(config: StateInput) -> State:
    """Its state.

    Raises:
        ModelError: damaged, or of another version.
    """
    return State.read(run_of(config) / STATE)


def chosen(state: State, names: tuple[str, ...]) -> list[TaskRecord]:
    """The tasks of these names, each once; all when there are none.

    Raises:
        UsageError: one is not in the state.
    """
    return [state.task(name) for name in dict.fromkeys(names)] or list(state.tasks)
