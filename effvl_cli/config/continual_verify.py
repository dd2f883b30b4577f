"""Options of `effvl continual verify` and `effvl continual inspect`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_doc import Doc

from effvl_cli.config.options import ARTEFACT, Positive, RunInput, RunOptions

STATE_FILE = "state/state.json"
RUN_DOC = "run folder with a state, which the methods finetune and individual leave none of (default: the newest one)"


@dataclass(frozen=True, kw_only=True)
class StateInput(RunInput, RunOptions):
    """A verb on the learned tasks of RUN; full precision, as they were committed."""

    panel: ClassVar[str] = "Run"
    run_holds: ClassVar[str] = STATE_FILE

    run: Annotated[str | None, ARTEFACT, Doc(RUN_DOC)] = None

    def __post_init__(self) -> None:
        """Refuse what would compute something else than what was committed."""
        if self.precision != "fp32":
            raise ValueError(f"--precision is {self.precision}, and learned tasks are read in fp32. Leave it out")


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(StateInput):
    """Prove that every task of RUN is, bit for bit, what it was when it was committed."""

    panel: ClassVar[str] = "Verification"
    asked_again: ClassVar[bool] = True

    against: Annotated[
        str | None, ARTEFACT, Doc("another run: its tasks of the same names have to be the same, tensor by tensor")
    ] = None


@dataclass(frozen=True, kw_only=True)
class InspectConfig(StateInput):
    """What each task of RUN owns, picks and takes on disk, and what is free in each layer."""

    panel: ClassVar[str] = "Inspection"
    asked_again: ClassVar[bool] = True

    layers: Annotated[Positive, Doc("layers that the table shows; the report has all")] = 40
