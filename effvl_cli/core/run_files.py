"""The files of a run folder: each is registered before it is written, so that `--fresh` deletes only these."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import Tensor

from effvl_cli.core import checkpoint, distributed
from effvl_cli.core.files import disk_errors
from effvl_cli.core.report import ReportBuilder

CONFIG, REPORT, LOG, ENVIRONMENT, LOCK = "config.yaml", "report.json", "log.txt", "environment.json", ".lock"
REGISTER = ".files"
PLOTS = "plots"
_HALF = re.compile(r"\..+-[a-z0-9_]{8}")  # as core/files.py names what it has not finished

P = ParamSpec("P")
T = TypeVar("T")


class RunFiles:
    """The files that a run writes into its folder, by name; every process may call, only rank 0 writes."""

    folder: Path
    report: ReportBuilder

    def path(self, name: str) -> Path:
        """Path of a file or folder of the run, e.g. "costs.json", which is registered."""
        if distributed.is_main() and name not in registered(self.folder):
            with disk_errors(self.folder / REGISTER):
                self.folder.mkdir(parents=True, exist_ok=True)
                with (self.folder / REGISTER).open("a") as file:
                    file.write(f"{name}\n")
        return self.folder / name

    def write(self, name: str, make: Callable[Concatenate[Path, P], T], *args: P.args, **options: P.kwargs) -> T | None:
        """Let `make(path, ...)` write a result of the run, on rank 0 alone, and name it in the report.

        Returns:
            What `make` returns; None on other processes.
        """
        path = self.path(name)
        if not distributed.is_main():
            return None
        made = make(path, *args, **options)
        if path.is_file():
            self.report.artifact(path, self.folder)
        return made

    def plot(self, name: str, draw: Callable[Concatenate[Path, P], None], *args: P.args, **options: P.kwargs) -> None:
        """Let `draw(path, ...)` draw the picture `plots/NAME.png`."""
        self.write(f"{PLOTS}/{name}.png", draw, *args, **options)

    def save_model(self, state: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
        """Write the final network, with a manifest that also names the run and its figures so far."""
        self.path(checkpoint.MANIFEST)
        figures = {name: {"value": m.value, "n": m.n, "se": m.se} for name, m in self.report.metrics.items()}
        about = {"run": self.report.run_id, "figures": figures, **manifest}
        self.write(checkpoint.CHECKPOINT, checkpoint.save_model, state, about)

    def plots(self) -> list[Path]:
        """The pictures drawn so far, in order."""
        names = (name for name in registered(self.folder) if name.startswith(f"{PLOTS}/"))
        return [self.folder / name for name in names if (self.folder / name).is_file()]


def registered(folder: Path) -> list[str]:
    """Names of the files and folders that runs in this folder have registered."""
    try:
        return (folder / REGISTER).read_text().splitlines()
    except FileNotFoundError:
        return []


def remove_half_written(folder: Path) -> None:
    """Delete what writes that were killed have left half-written among the files that runs here have registered."""
    for name in registered(folder):
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            continue
        for found in (*path.parent.glob(f".{path.name}-*"), *(path.rglob(".*-*") if path.is_dir() else ())):
            if not _HALF.fullmatch(found.name):
                continue
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Delete the files that runs in this folder have registered, leftovers of interrupted writes, then the register.

    Other files stay.
    """
    with disk_errors(folder):
        for name in registered(folder):
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()) or path == folder:
                continue
            for found in (path, *path.parent.glob(f".{path.name}-*")):  # half-written files, see core/files.py
                if found.is_dir() and not found.is_symlink():
                    shutil.rmtree(found)
                else:
                    found.unlink(missing_ok=True)
            if path.parent != folder and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()
        (folder / REGISTER).unlink(missing_ok=True)
