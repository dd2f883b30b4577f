"""`cifar10` and `cifar100` in their binary version; images are read from the files one by one.

A record is a label (for CIFAR-100 the coarse one, then the fine one) and 3 x 32 x 32 bytes of colour planes. A tenth
of the training images, by hash of their numbers, is the val split. The Python version is pickled and so is not read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data.files import file_states
from effvl_cli.data.folders import TENTHS_OF_TRAIN, tenth
from effvl_cli.data.listings import read_lines
from effvl_cli.data.source import digest

SIZE = 32
PIXELS = 3 * SIZE * SIZE


@dataclass(frozen=True)
class Version:
    """Files of one of the two, with the labels of a record, of which the last one counts."""

    key: str
    folder: str
    pickled: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    num_labels: int


def build(version: Version, argument: str, split: str, *, root: Path | None = None, seed: int = 0) -> "Cifar":
    """Registry builder.

    Raises:
        DataError: a missing file, one of the wrong length, or a label without a name.
    """
    if argument:
        raise UsageError(f"{version.key} takes no argument, got {argument!r}", "Say where it lies with --data-root")
    root = root or Path()
    folder = root / version.folder
    names = version.test if split == "test" else version.train
    missing = [name for name in (version.names, *names) if not (folder / name).is_file()]
    if missing:
        fix = f"Extract {version.archive} of cs.toronto.edu/~kriz/cifar.html there"
        if (root / version.pickled).is_dir():
            fix = f"{version.pickled} is the pickled version, which could run code. {fix}"
        raise DataError(f"no {version.key} under {root}: {folder / missing[0]} is missing", fix)
    return Cifar(version, folder, split)


class Cifar:
    """One split."""

    captions, endless, templates = None, False, ("a photo of a {}.",)

    def __init__(self, version: Version, folder: Path, split: str) -> None:
        self.name, self.split, self.layout = version.key, split, f"{folder}, the binary version"
        self.classes = tuple(name.replace("_", " ") for name in read_lines(folder / version.names, str))
        self.expected = 10_000 if split == "test" else None
        self._folder, self._record = folder, version.num_labels + PIXELS
        ids, labels = [], []
        for name in version.test if split == "test" else version.train:
            found = self._labels(folder / name, version.num_labels)
            ids += [f"{name}/{row:05d}" for row in range(len(found))]
            labels.append(found)
        everything = np.concatenate(labels)
        tenths = TENTHS_OF_TRAIN.get(split)
        kept = [place for place, name in enumerate(ids) if tenths is None or tenth(name) in tenths]
        self.ids: Sequence[str] = [ids[place] for place in kept]
        self.labels = everything[kept]

    def _labels(self, path: Path, num_labels: int) -> np.ndarray:
        """(rows,) int64 of one file."""
        size = path.stat().st_size
        if size == 0 or size % self._record:
            raise DataError(f"{path} holds {size} bytes, not whole records of {self._record}", "Extract it again")
        labels = np.memmap(path, np.uint8, "r", shape=(size // self._record, self._record))[:, num_labels - 1]
        if labels.max() >= len(self.classes):
            raise DataError(f"{path} has label {labels.max()} of {len(self.classes)} classes", "Extract it again")
        return labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One image."""
        name, _, row = self.ids[index].rpartition("/")
        path = self._folder / name
        try:
            with path.open("rb") as file:
                file.seek((int(row) + 1) * self._record - PIXELS)
                planes = np.frombuffer(file.read(PIXELS), np.uint8).reshape(3, SIZE, SIZE)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read at image {row}: {error}") from error
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    def fingerprint(self) -> str:
        """Digest of names and labels, and of size and time of the files."""
        files = sorted({self._folder / name.partition("/")[0] for name in self.ids})
        labels = (str(int(label)) for label in self.labels)
        return digest([self.split, *self.classes, *self.ids, *labels, *file_states(files)])


cifar10 = partial(
    build,
    Version(
        "cifar10",
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
        "cifar-10-binary.tar.gz",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
        1,
    ),
)
cifar100 = partial(
    build,
    Version(
        "cifar100",
        "cifar-100-binary",
        "cifar-100-python",
        "cifar-100-binary.tar.gz",
        ("train.bin",),
        ("test.bin",),
        "fine_label_names.txt",
        2,
    ),
)
