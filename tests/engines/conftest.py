"""What all jobs of these tests leave out, and finished runs that they share."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import MINIATURE, draw_little, keep_few_images, time_few_passes


def little_beside(patch: pytest.MonkeyPatch) -> None:
    """Time few passes; of shared and naive scoring too."""
    from effvl_cli.engines.prune_blocks import sharing

    time_few_passes(patch)
    patch.setattr(sharing, "ROUNDS", 2)


def no_programs(patch: pytest.MonkeyPatch) -> None:
    """Jobs of prune-blocks write no torch.export programs."""
    from effvl_cli.engines.prune_blocks import result

    patch.setattr(result, "write_program", lambda *_: None)


@pytest.fixture(autouse=True)
def _little_beside(request, monkeypatch):
    """Jobs time few passes and write no programs, unless a test asks for `programs`."""
    little_beside(monkeypatch)
    if "programs" not in request.fixturenames:
        no_programs(monkeypatch)


@pytest.fixture
def programs() -> None:
    """See `_little_beside`."""


@pytest.fixture(scope="session")
def blocks_run(shared) -> Path:
    """A run of prune-blocks with all that it leaves: a ResNet-20 of digits that has lost two blocks."""
    return shared.run(
        "blocks",
        *("prune-blocks", "--model", "cifar-resnet:20,width=4", "--latency-batch-size", 2),
        *("--baseline-epochs", 3, "--finetune-epochs", 1, "--final-epochs", 1),
        prepare=little_beside,
    )


def _few_tokens(patch: pytest.MonkeyPatch) -> None:
    keep_few_images(patch)
    draw_little(patch)


@pytest.fixture(scope="session")
def tokens_run(shared) -> Path:
    """A run of prune-tokens: the defaults on few images, with an oracle and prompts."""
    return shared.run("tokens", "prune-tokens", *MINIATURE, prepare=_few_tokens)


@pytest.fixture(scope="session")
def plain_tokens_run(shared) -> Path:
    """The same without an oracle and without prompts."""
    plain = [word for word in MINIATURE if word not in ("--num-golden", 4)]
    return shared.run("tokens-plain", "prune-tokens", *plain, *PLAIN, prepare=_few_tokens)


PLAIN = ("--num-golden", 0, "--prompts", "none")


@pytest.fixture(scope="session")
def ranked_run(shared) -> Path:
    """Rankings of 60 images."""
    return shared.run("tokens-ranked", "prune-tokens", "rank", "--shots", 2, prepare=_few_tokens)


def copy_of(run: Path, to: str | Path) -> Path:
    """A finished run in this test's own folder, for tests that write into it or look for the newest run."""
    return Path(shutil.copytree(run, to))
