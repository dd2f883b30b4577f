"""--download of data sets, from a server on this machine."""

import hashlib
import http.server
import io
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from effvl_cli.core.errors import DataError
from effvl_cli.data import fetch, load


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/served; only this machine can be reached."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(folder)))
    refuse = socket.socket.connect
    own = socket.socket.__mro__[1].connect  # beneath the fixture that blocks the network
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, to, *rest: (own if to[0] == "127.0.0.1" else refuse)(self, to, *rest)
    )
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{web.server_address[1]}"
    web.shutdown()
    web.server_close()


def _archive(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return hashlib.md5(path.read_bytes()).hexdigest()


def _cifar() -> dict[str, bytes]:
    record = bytes(1) + np.random.default_rng(0).integers(0, 256, 3072, np.uint8).tobytes()
    files = {f"cifar-10-batches-bin/data_batch_{k}.bin": record * 20 for k in range(1, 6)}
    files["cifar-10-batches-bin/test_batch.bin"] = record * 4
    return files | {"cifar-10-batches-bin/batches.meta.txt": "\n".join("abcdefghij").encode()}


def test_cifar_is_fetched_once_by_its_checksum(server, tmp_path, monkeypatch, effvl):
    folder, address = server
    md5 = _archive(folder / "c.tar.gz", _cifar())
    monkeypatch.setitem(fetch.ARCHIVES, "cifar10", fetch.Archive(f"{address}/c.tar.gz", md5))
    root = tmp_path / "data"
    outcome = effvl("data", "check", "cifar10", "--data-root", root)
    assert outcome.code == 3 and f"effvl data check cifar10 --data-root {root} --download" in outcome.out
    outcome = effvl("data", "check", "cifar10", "--data-root", root, "--download")
    assert outcome.code == 0 and "downloading cifar10" in outcome.err
    assert len(load("cifar10", "test", root=root)) == 4
    (folder / "c.tar.gz").unlink()
    again = effvl("data", "check", "cifar10", "--data-root", root, "--download")  # what is there is not fetched again
    assert again.code == 0 and "downloading" not in again.err


def test_other_bytes_than_were_published_are_refused(server, tmp_path, monkeypatch, effvl):
    folder, address = server
    _archive(folder / "c.tar.gz", _cifar())
    monkeypatch.setitem(fetch.ARCHIVES, "cifar10", fetch.Archive(f"{address}/c.tar.gz", "0" * 32))
    outcome = effvl("data", "check", "cifar10", "--data-root", tmp_path / "data", "--download")
    assert outcome.code == 3 and "cannot download cifar10" in outcome.error
    assert not (tmp_path / "data" / "cifar-10-batches-bin").exists()
    monkeypatch.setitem(fetch.ARCHIVES, "cifar10", fetch.Archive(f"{address}/none.tar.gz", "0" * 32))
    with pytest.raises(DataError, match=r"cannot download cifar10 .*404"):
        fetch.fetch_missing("cifar10", tmp_path / "data", lambda text: None)


def test_what_torchvision_can_fetch_lies_where_it_is_looked_for(server, tmp_path, monkeypatch):
    folder, address = server
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "JPEG")
    names = [f"{kind}/{kind}_{k}.jpg" for kind in ("banded", "dotted") for k in range(3)]
    files = {f"dtd/images/{name}": stream.getvalue() for name in names}
    for place, split in enumerate(("train", "val", "test")):
        files[f"dtd/labels/{split}1.txt"] = "".join(f"{name}\n" for name in names[place::3]).encode()
    monkeypatch.setattr(torchvision.datasets.DTD, "_URL", f"{address}/dtd.tar.gz")
    monkeypatch.setattr(torchvision.datasets.DTD, "_MD5", _archive(folder / "dtd.tar.gz", files))
    fetch.fetch_missing("dtd", tmp_path / "data", lambda text: None)
    source = load("dtd", "test", root=tmp_path / "data")
    assert len(source) == 2 and source.classes == ("banded", "dotted") and source.image(0).size == (8, 8)


def test_every_row_names_a_class_that_can_download():
    for name in fetch.TORCHVISION.values():
        assert "download" in getattr(torchvision.datasets, name).__init__.__code__.co_varnames
    for archive in fetch.ARCHIVES.values():
        assert archive.url.startswith("https://") and len(archive.md5) == 32


def test_a_command_fetches_its_data_with_download_alone(server, tmp_path, monkeypatch, effvl):
    folder, address = server
    md5 = _archive(folder / "c.tar.gz", _cifar())
    monkeypatch.setitem(fetch.ARCHIVES, "cifar10", fetch.Archive(f"{address}/c.tar.gz", md5))
    line = ("pretrain", "--method", "supervised", "--data", "cifar10", "--data-root", tmp_path / "data", "--steps", 1)
    line = (*line, "--batch-size", 8, "--model", "tiny:resnet")
    assert effvl(*line, "--out", "one").code == 3
    outcome = effvl(*line, "--out", "two", "--download")
    assert outcome.code == 0, outcome.err
