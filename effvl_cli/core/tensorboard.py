"""`--log tensorboard`: a copy of the records as an event file in the run folder, for TensorBoard."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effvl_cli.core.errors import MissingPackageError

FOLDER = "tensorboard"


class EventFile:
    """A writer of records; an earlier attempt's events are written again, so that repeated steps appear once.

    Raises:
        MissingPackageError: the extra `tensorboard` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError("tensorboard is not installed", "pip install 'effvl[tensorboard]'") from error
        self.folder, self._make = folder, SummaryWriter
        self._writer: Any = None

    def restart(self, records: list[dict[str, Any]]) -> None:
        """Begin a new file with these."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._writer = self._make(str(self.folder))
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """The numbers of a record, under its phase, at its step."""
        step = record.get("step", record.get("k"))
        if self._writer is None or step is None:
            return
        prefix = record.get("phase", record["event"])
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("step", "k"):
                self._writer.add_scalar(f"{prefix}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None
