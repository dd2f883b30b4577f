"""Fixtures for all tests: no network, a cache and a working folder of their own, the command line in process."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from effvl_cli.cli.app import main
from effvl_cli.core import signals
from effvl_cli.core.report import Report, read_report


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address, *rest):
        if self.family == socket.AF_UNIX:  # loader processes
            return connect(self, address, *rest)
        raise OSError(f"a test tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch) -> Path:
    """Current folder and cache under a temporary one."""
    monkeypatch.setenv("EFFVL_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    signals.clear()
    return work


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one error line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def effvl(capsys) -> Callable[..., Outcome]:
    """Run a command line in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def report() -> Callable[[str | Path], Report]:
    return lambda folder: read_report(Path(folder) / "report.json")


@pytest.fixture
def records() -> Callable[[str | Path], list[dict]]:
    return lambda folder: [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real data for development; the test is skipped where there is none."""
    root = os.environ.get("EFFVL_TEST_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("EFFVL_TEST_DATA names no folder")
    return Path(root).absolute()


# A whole job in seconds: the defaults with fewer images and steps, which is all that is changed.
MINIATURE = (
    *("--shots", 2, "--num-golden", 4, "--predictor-epochs", 3, "--predictor-batch-size", 8),
    *("--tune-epochs", 2, "--tune-batch-size", 8),
)


@pytest.fixture
def miniature() -> tuple[object, ...]:
    return MINIATURE


@pytest.fixture
def few_images(monkeypatch):
    """shape-captions with small val and test splits."""
    from effvl_cli.data import shape_captions

    monkeypatch.setitem(shape_captions.SPLITS, "val", 40)
    monkeypatch.setitem(shape_captions.SPLITS, "test", 48)


@pytest.fixture
def quick_figures(monkeypatch):
    """Jobs of prune-tokens time two passes and draw two points of the curve: what they measure is tested elsewhere."""
    from effvl_cli.core import bench
    from effvl_cli.engines.prune_tokens import job

    for name, few in (("MAX_PASSES", 2), ("WARM_UPS", 1)):
        monkeypatch.setattr(bench, name, few)
    monkeypatch.setattr(job, "CURVE", (1.0, 0.5))


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Two colours in ImageFolder layout: 12 training, 4 validation and 6 test images a class."""
    root = tmp_path / "pictures"
    for split, count in (("train", 12), ("val", 4), ("test", 6)):
        for name, colour in (("red_thing", (220, 30, 30)), ("blue_thing", (30, 30, 220))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((36, 40 + number, 3), colour, np.uint8)
                pixels[:, :, 1] = np.linspace(0, 60 + number, 40 + number)  # so that crops and flips show
                Image.fromarray(pixels).save(folder / f"img{number}.jpg")
    return root
