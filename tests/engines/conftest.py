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


def keep_few_digits(patch: pytest.MonkeyPatch) -> None:
    """Two thirds of the digits are trained on, and fewer scored and tested."""
    from effvl_cli.data import digits

    patch.setattr(digits, "SHARES", {"train": (0.0, 0.4), "val": (0.6, 0.68), "test": (0.75, 0.81)})


@pytest.fixture
def few_digits(monkeypatch) -> None:
    """See `keep_few_digits`; jobs on `blocks_run` need it."""
    keep_few_digits(monkeypatch)


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


@pytest.fixture
def program_files(programs, monkeypatch) -> None:
    """Programs are files like others, and cost nothing: for tests of what becomes of them."""
    from effvl_cli.engines.common import verified_files

    def save(traced: object, path: Path) -> str:
        path.write_bytes(b"program")
        return ""

    monkeypatch.setattr(verified_files, "trace", lambda module, image_size: None)
    monkeypatch.setattr(verified_files, "save_program", save)


def _little_of_few_digits(patch: pytest.MonkeyPatch) -> None:
    little_beside(patch)
    keep_few_digits(patch)


@pytest.fixture(scope="session")
def blocks_run(shared) -> Path:
    """A run of prune-blocks with all that it leaves: a ResNet-20 of digits that has lost two blocks."""
    return shared.run(
        "blocks",
        *("prune-blocks", "--model", "cifar-resnet:20,width=4", "--latency-batch-size", 2),
        *("--baseline-epochs", 4, "--finetune-epochs", 1, "--final-epochs", 1),
        prepare=_little_of_few_digits,
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
    return shared.run("tokens-plain", "prune-tokens", *plain, *PLAIN, prepare=_few_tokens, pictures=False)


PLAIN = ("--num-golden", 0, "--prompts", "none")


@pytest.fixture(scope="session")
def ranked_run(shared) -> Path:
    """Rankings of 60 images."""
    return shared.run("tokens-ranked", "prune-tokens", "rank", "--shots", 2, prepare=_few_tokens)


def copy_of(run: Path, to: str | Path) -> Path:
    """A finished run in this test's own folder, for tests that write into it or look for the newest run."""
    return Path(shutil.copytree(run, to))


PROMPT_METHODS = (
    *("zero-shot", "linear-probe", "linear-probe-sweep", "classifier-r", "classifier-c", "tenc-ft", "prompt"),
    *("full-prompt", "cls-tuning", "cls-random", "tip-adapter", "rn50-ft"),
)
FEW_PROMPTS = ("--shots", 2, "--epochs", 2, "--batch-size", 30, "--num-folds", 2)


@pytest.fixture(scope="session")
def prompts_run(shared) -> Path:
    """A run of prompt-tune: the default methods on few images, with wrong labels and their ranking."""
    line = ("prompt-tune", *FEW_PROMPTS, "--grad-analysis", "--num-grad-samples", 3, "--save-logits")
    return shared.run("prompts", *line, prepare=keep_few_images)


@pytest.fixture(scope="session")
def all_prompts_run(shared) -> Path:
    """Every method of prompt-tune, each for one epoch with one loss."""
    return shared.run(
        "all-prompts",
        *("prompt-tune", "--shots", 1, "--epochs", 1, "--batch-size", 30, "--num-folds", 0, "--noise", "symmetric"),
        *("--method", ",".join(PROMPT_METHODS), "--loss", "phuber", "--noise-rate", 0, "--cache-features", "off"),
        *("--rn50-model", "tiny:resnet", "--rn50-weights", "none"),
        prepare=keep_few_images,
        pictures=False,
    )
