"""Downloads data sets from their authors or through torchvision, only on request, each archive with its checksum."""

import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from effvl_cli.core.errors import DataError
from effvl_cli.data import DATASETS, SPLITS, open_source


@dataclass(frozen=True)
class Archive:
    """A file that holds a data set's folder.

    Attributes:
        url: of the file.
        md5: its checksum, as published beside it.
    """

    url: str
    md5: str


# the binary versions, which need no pickle; torchvision has the pickled ones
ARCHIVES = {
    "cifar10": Archive("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": Archive("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
}
# classes of torchvision.datasets, whose addresses, checksums and folders are theirs; its SUN397 comes without lists of
# splits, its StanfordCars and ImageNet cannot be downloaded
TORCHVISION = {
    "caltech101": "Caltech101",
    "oxford_pets": "OxfordIIITPet",
    "flowers102": "Flowers102",
    "food101": "Food101",
    "fgvc_aircraft": "FGVCAircraft",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
}


def command_for(spec: str, root: str | Path | None) -> str:
    """The command line that fetches a data set; empty where nothing here can."""
    name = DATASETS.find(spec)[0].name
    where = f" --data-root {root}" if root else ""
    return f"effvl data check {name}{where} --download" if name in ARCHIVES or name in TORCHVISION else ""


def fetch_missing(spec: str, root: str | Path | None, echo: Callable[[str], None]) -> None:
    """Download and extract a data set below the data root, unless one of its splits can be used already.

    Raises:
        DataError: it cannot be downloaded from here, or its checksum is wrong.
    """
    name = DATASETS.find(spec)[0].name
    if (name not in ARCHIVES and name not in TORCHVISION) or _is_there(spec, root):
        return
    folder = Path(root or ".")
    echo(f"downloading {name} to {folder.absolute()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(name, folder)
    except (OSError, RuntimeError, ImportError, ValueError, urllib.error.URLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"cannot download {name} to {folder}: {reason}", "Try again, or fetch it by hand: see `effvl data check`"
        ) from error


def _download(name: str, folder: Path) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    if name in ARCHIVES:
        archive = ARCHIVES[name]
        download_and_extract_archive(archive.url, str(folder), md5=archive.md5, remove_finished=True)
    else:
        getattr(datasets, TORCHVISION[name])(str(folder), download=True)


def _is_there(spec: str, root: str | Path | None) -> bool:
    for split in SPLITS:
        try:
            open_source(spec, split, kind=None, root=root)
            return True
        except DataError:
            continue
    return False
