"""Fixtures for all tests: no network, a cache and a working folder of their own, the command line in process."""

import copy
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from typer.models import OptionInfo

from effvl_cli.cli.app import main
from effvl_cli.core import plots, signals
from effvl_cli.core.report import Report, read_report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-times", action="store_true", help="CPU seconds of tests, files and techniques")


LONGEST = ("test_recipes.py", "test_prune_blocks.py", "test_invariance.py", "test_prune_tokens_export.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest begin first, so that no process waits for one at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cpu-times"):
        from tests.cpu_times import CpuTimes

        config.pluginmanager.register(CpuTimes())


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Of the session, so that fixtures of modules are blocked too."""
    connect = socket.socket.connect

    def refuse(self, address, *rest):
        if self.family == socket.AF_UNIX:  # loader processes
            return connect(self, address, *rest)
        raise OSError(f"a test tried to reach {address}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


class Shared:
    """A folder that all processes of a test session use; what it holds is made once, and only read afterwards."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def cache(self) -> Path:
        """What `shared_cache` puts in the place of a test's own."""
        return self.root / "cache"

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder of that name: `make(folder)` has filled it in this process or in another one."""
        folder, done = self.root / name, self.root / f"{name}.done"
        with (self.root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the end of the process, however it ends
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    def run(
        self,
        name: str,
        *arguments: object,
        prepare: Callable[[pytest.MonkeyPatch], None] = lambda patch: None,
        pictures: bool = True,
    ) -> Path:
        """The folder of a finished run of this command line, with what `prepare` patches; `pictures` are drawn."""

        def make(folder: Path) -> None:
            work = self.root / f"{name}.work"
            work.mkdir(exist_ok=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(work)
                patch.setenv("EFFVL_CACHE", str(self.cache))
                if pictures:
                    draw(patch)
                prepare(patch)
                assert main([*map(str, arguments), "--out", str(folder), "--fresh"]) == 0

        return self.once(name, make)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Shared:
    """See `Shared`."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of the session; each worker has one of its own in it
    root = base / "shared"
    root.mkdir(exist_ok=True)
    return Shared(root)


@pytest.fixture(scope="session", autouse=True)
def _home(shared) -> Iterator[None]:
    """Libraries leave font lists and the like in the home folder: a temporary one for the session."""
    home = shared.root / "home"
    home.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch) -> Path:
    """Current folder and cache under a temporary one."""
    monkeypatch.setenv("EFFVL_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    signals.clear()
    return work


@pytest.fixture(scope="session", autouse=True)
def _no_syncing() -> Iterator[None]:
    """Nothing here outlives a power cut; a write that fails is tested where `os.fsync` is replaced again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_table_of_onnx() -> Iterator[None]:
    """Every export to ONNX fills the exporter's table of operators again, in 0.8 s: each gets a copy of one table."""
    from effvl_cli.models import onnx

    convert, share = onnx._convert, cache(_share_table_of_onnx)

    def with_one_table(program, outputs):
        share()
        return convert(program, outputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "_convert", with_one_table)
        yield


def _share_table_of_onnx() -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    fill = cache(ONNXRegistry.from_torchlib)

    def copied(kind, *words, **options):
        table = copy.copy(fill(*words, **options))
        table.functions = {target: list(rows) for target, rows in table.functions.items()}
        return table

    ONNXRegistry.from_torchlib = classmethod(copied)


@pytest.fixture(scope="session", autouse=True)
def _one_adapter_of_each_kind() -> Iterator[None]:
    """Typer builds pydantic's checks anew for every option of every command line: texts and switches share theirs."""
    from typer import _adapters

    build = _adapters.build_leaf_adapter
    plain = cache(lambda kind: build(kind, parameter_info=OptionInfo()))

    def shared(annotation: Any, parameter_info: Any) -> Any:
        if annotation in (str, bool) and parameter_info.parser is None:
            return plain(annotation)
        return build(annotation, parameter_info=parameter_info)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_adapters, "build_leaf_adapter", shared)
        yield


DRAWING = {name: getattr(plots, name) for name in ("_figure", "_write")}


@pytest.fixture
def drawn(monkeypatch) -> None:
    """Pictures are drawn: see `_undrawn`."""
    draw(monkeypatch)


def draw(patch: pytest.MonkeyPatch) -> None:
    """As without `_undrawn`."""
    for name, function in DRAWING.items():
        patch.setattr(plots, name, function)


@pytest.fixture(scope="session", autouse=True)
def _undrawn() -> Iterator[None]:
    """All that a picture shows is given to a stand-in for matplotlib, which would take a third of a small job.

    One grey pixel is written for each. Runs of `Shared` have their pictures, unless they say otherwise, and so have
    tests that ask for `drawn`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_figure", _no_figure)
        patch.setattr(plots, "_write", _write_pixel)
        yield


class _Blank:
    """Has every attribute, and takes every call."""

    def __getattr__(self, name: str) -> "_Blank":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: object, **options: object) -> "_Blank":
        return self

    def __getitem__(self, key: object) -> "_Blank":
        return self

    def __iter__(self) -> Iterator["_Blank"]:
        return iter((self, self))  # handles and labels of a legend


def _no_figure(width: float, height: float, nrows: int = 1, ncols: int = 1, squeeze: bool = True, **grid: Any) -> Any:
    axes = np.empty((nrows, ncols), dtype=object)
    for place in np.ndindex(axes.shape):
        axes[place] = _Blank()
    return _Blank(), axes[0, 0] if squeeze and axes.size == 1 else axes


def _write_pixel(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (1, 1), 128).save(path, "png")


@pytest.fixture
def unfilled(monkeypatch):
    """Networks begin with zeros, where nothing looks at that: random numbers for a ViT-B take a second."""
    import torch

    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *bounds, **options: tensor.zero_())


@pytest.fixture
def repeated_numbers(monkeypatch) -> None:
    """See `repeat_numbers`."""
    repeat_numbers(monkeypatch)


def repeat_numbers(patch: pytest.MonkeyPatch) -> None:
    """Large tensors begin with the same 65,536 random numbers again and again: drawing them takes as long as a test."""
    import torch

    generator, few = torch.Generator().manual_seed(0), 1 << 16
    known = {"normal_": torch.randn(few, generator=generator), "uniform_": torch.rand(few, generator=generator)}

    def repeated(draw: Callable[..., Any], numbers: Any) -> Callable[..., Any]:
        def fill(tensor: Any, *bounds: float, **options: Any) -> Any:
            if tensor.numel() < few or tensor.is_meta or any(value is not None for value in options.values()):
                return draw(tensor, *bounds, **options)
            first, second = (*bounds, 0.0, 1.0)[:2] if not bounds else (*bounds, 1.0)[:2]
            scale = second if draw.__name__ == "normal_" else second - first
            again = numbers.repeat(-(-tensor.numel() // few))[: tensor.numel()]
            return tensor.copy_(again.mul_(scale).add_(first).view(tensor.shape))

        return fill

    for name, numbers in known.items():
        patch.setattr(torch.Tensor, name, repeated(getattr(torch.Tensor, name), numbers))


@pytest.fixture
def shared_cache(shared, monkeypatch) -> Path:
    """Rankings, features and baselines of other tests are taken up.

    Not where a cache, or what fills it, is what is tested: those tests keep the empty cache that every test has.
    """
    monkeypatch.setenv("EFFVL_CACHE", str(shared.cache))
    return shared.cache


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, in a module that shares one."""
    monkeypatch.setenv("EFFVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
def one_thread() -> Iterator[None]:
    """As many as the processes of `tests.processes` have: sums over more threads round otherwise."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(effvl, one_thread) -> Callable[..., Outcome]:
    """Run a command line to its good end in this process: a process of its own costs 4 seconds of imports."""

    def run(*arguments: object) -> Outcome:
        outcome = effvl(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome

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


def keep_few_images(patch: pytest.MonkeyPatch) -> None:
    """Small val and test splits of shape-captions."""
    from effvl_cli.data import shape_captions

    patch.setitem(shape_captions.SPLITS, "val", 40)
    patch.setitem(shape_captions.SPLITS, "test", 48)


@pytest.fixture
def few_images(monkeypatch):
    """See `keep_few_images`."""
    keep_few_images(monkeypatch)


def time_few_passes(patch: pytest.MonkeyPatch) -> None:
    """Two passes of whatever is timed; timing has tests of its own."""
    from effvl_cli.core import bench

    for name, few in (("MAX_PASSES", 2), ("WARM_UPS", 1)):
        patch.setattr(bench, name, few)


def draw_little(patch: pytest.MonkeyPatch) -> None:
    """Jobs of prune-tokens time two passes and draw two points of the curve: what they measure is tested elsewhere."""
    from effvl_cli.engines.prune_tokens import job

    time_few_passes(patch)
    patch.setattr(job, "CURVE", (1.0, 0.5))


@pytest.fixture
def quick_figures(monkeypatch):
    """See `draw_little`."""
    draw_little(monkeypatch)


def make_image_folder(root: Path) -> Path:
    """Two colours in ImageFolder layout: 12 training, 4 validation and 6 test images a class."""
    for split, count in (("train", 12), ("val", 4), ("test", 6)):
        for name, colour in (("red_thing", (220, 30, 30)), ("blue_thing", (30, 30, 220))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((36, 40 + number, 3), colour, np.uint8)
                pixels[:, :, 1] = np.linspace(0, 60 + number, 40 + number)  # so that crops and flips show
                Image.fromarray(pixels).save(folder / f"img{number}.jpg")
    return root


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """See `make_image_folder`."""
    return make_image_folder(tmp_path / "pictures")
