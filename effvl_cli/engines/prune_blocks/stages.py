"""Figures of finished stages, kept in the run folder so that a resumed run does not make them again."""

import json
from collections.abc import Callable
from typing import Any

from effvl_cli.core import distributed
from effvl_cli.core.files import write_json
from effvl_cli.core.run import Run


class Stages:
    """Names of stages and their JSON values, in `checkpoints/stages.json`."""

    def __init__(self, run: Run) -> None:
        self.path = run.folder / "checkpoints" / "stages.json"
        found = json.loads(self.path.read_text()) if distributed.is_main() and self.path.is_file() else {}
        self.values: dict[str, Any] = distributed.broadcast_json(found)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of a stage; made, and stored, if no attempt has done so."""
        if name not in self.values:
            self.values[name] = distributed.broadcast_json(make())
            if distributed.is_main():
                write_json(self.path, self.values)
        return self.values[name]
