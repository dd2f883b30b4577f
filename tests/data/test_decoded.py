"""One split in memory or read again each time, by the same name; and a loader that knows nothing of images."""

import numpy as np
import pytest
import torch

from effvl_cli.core.errors import DataError
from effvl_cli.data import decoded, load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import SampleLoader
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.transforms import Preprocess

PLAIN = Preprocess(size=(24, 24), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


@pytest.fixture
def pictures(image_folder):
    return load(f"folder:{image_folder}", "train")


def _both(source, monkeypatch, indices=None, preprocess=PLAIN, **more):
    held = Decoded.read(source, preprocess, indices, **more)
    monkeypatch.setattr(decoded, "physical_memory", lambda: 100)
    streamed = Decoded.read(source, preprocess, indices, **more)
    assert held.held is not None and streamed.held is None
    return held, streamed


def _same(one, two):
    assert torch.equal(one.pixels, two.pixels) and torch.equal(one.labels, two.labels) and one.ids == two.ids
    assert torch.equal(one.keys, two.keys) and one.bad_files == two.bad_files and len(one) == len(two)
    for size in (5, 100):
        for (rows, a), (again, b) in zip(one.batches(size), two.batches(size), strict=True):
            assert rows == again and torch.equal(a, b)
    for rows in (slice(3, 9), [4, 4, 0], torch.tensor([7, 1])):
        assert torch.equal(one[rows], two[rows])
    part = [list(x.batches(2, range(3, 8))) for x in (one, two)]
    assert [rows for rows, _ in part[0]] == [range(3, 5), range(5, 7), range(7, 8)]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*part, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_larger_than_the_memory_is_streamed_and_is_the_same(pictures, monkeypatch, workers):
    held, streamed = _both(pictures, monkeypatch, workers=workers)
    _same(held, streamed)
    rows = torch.tensor([20, 3, 11, 5, 6, 7, 8, 9, 1, 0])
    _same(held.take(rows), streamed.take(rows))
    assert streamed.take(rows).held is None


def test_made_images_are_streamed_too(monkeypatch):
    preprocess = Preprocess((64, 64), (0.5,) * 3, (0.5,) * 3)
    _same(*_both(load("shape-captions", "train"), monkeypatch, np.arange(7, 27), preprocess))


def test_unreadable_files_of_a_streamed_split_are_known_from_the_start(pictures, image_folder, monkeypatch):
    bad = "train/blue_thing/img0.jpg"
    (image_folder / bad).write_bytes(b"x")
    held, streamed = _both(pictures, monkeypatch, on_bad="skip")
    _same(held, streamed)
    assert streamed.bad_files == 1 and bad not in streamed.ids and len(streamed.labels) == 23
    late = Decoded.read(pictures, PLAIN)  # --on-bad error: nothing is read yet
    with pytest.raises(DataError, match=r"img0\.jpg") as caught:
        list(late.batches(8))
    assert "--on-bad skip" in caught.value.hint


def test_evaluation_over_a_streamed_split_has_the_figures_of_one_in_memory(effvl, image_folder, report, monkeypatch):
    options = ("--data", f"folder:{image_folder}", "--epochs", 1, "--batch-size", 8, "--model", "tiny:resnet")
    for name in ("held", "streamed"):
        outcome = effvl("pretrain", "--method", "supervised", *options, "--out", name)
        assert outcome.code == 0, outcome.err
        monkeypatch.setattr(decoded, "physical_memory", lambda: 100)
    assert report("held").metrics == report("streamed").metrics
    assert report("held").data == report("streamed").data


# --- samples that are no images ---------------------------------------------------------------------------------------


def _boxes(index, epoch):
    """A sample as detection has them: a picture and as many boxes as it has objects; number 5 is unreadable."""
    if index == 5:
        raise DataError("scene 5 is damaged")
    return torch.full((2,), index), torch.rand(index % 3, 4) + epoch


def _collate(samples):
    return torch.stack([picture for picture, _ in samples]), [boxes for _, boxes in samples]


def _loader(**more):
    return SampleLoader(lambda step: _boxes, _collate, 16, seed=3, **more)


def _flat(stream, count):
    return [
        ([p.tolist(), [b.tolist() for b in boxes]], indices.tolist()) for (p, boxes), indices in _take(stream, count)
    ]


def _take(stream, count):
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def test_samples_with_boxes_do_not_depend_on_workers_resumption_or_processes():
    sampler = EpochSampler(16, 4, 0)
    straight = _flat(_loader(on_bad="skip").endless(sampler, start_step=0), 8)
    assert _flat(_loader(on_bad="skip", workers=2).endless(sampler, start_step=0), 8) == straight
    assert _flat(_loader(on_bad="skip").endless(sampler, start_step=5), 3) == straight[5:]
    assert all(5 not in indices and len(boxes) == len(indices) == 4 for (_, boxes), indices in straight)
    clean = next(place for place in range(4) if 5 not in sampler.at(place)[1])  # a stand-in is one of the same process
    halves = [_flat(_loader().endless(sampler, start_step=clean, rank=rank, world=2), 1)[0] for rank in range(2)]
    assert halves[0][0][1] + halves[1][0][1] == straight[clean][0][1]
    epochs = [{k: b for (_, boxes), ks in straight[e : e + 4] for k, b in zip(ks, boxes, strict=True)} for e in (0, 4)]
    common = [k for k in set(epochs[0]) & set(epochs[1]) if k % 3]
    assert common and all(epochs[0][k] != epochs[1][k] for k in common)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_once_leave_out_the_unreadable_and_name_them(workers):
    found = list(_loader(on_bad="skip", workers=workers).once(np.arange(16), chunk=3))
    assert [int(k) for _, indices in found for k in indices] == [k for k in range(16) if k != 5]
    assert [int(p[0]) for (pictures, _), _ in found for p in pictures] == [k for k in range(16) if k != 5]
    with pytest.raises(DataError, match="scene 5 is damaged") as caught:
        list(_loader(workers=workers).once(np.arange(16), chunk=3))
    assert "--on-bad skip" in caught.value.hint
    assert next(_loader(on_bad="skip").once(np.array([5]), chunk=3))[0] is None
