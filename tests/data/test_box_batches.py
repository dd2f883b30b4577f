"""Batches of images with boxes: which images, what is drawn for each, and the way back to the image's own pixels."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from effvl_cli.core import seeds
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data.box_batches import Augment, Collate, Pictures, Shrink, evaluation_batches, training_batches
from effvl_cli.data.boxes import BoxRecord, BoxSource, SourceInfo
from effvl_cli.data.mixing import MixedSampler, grouped

PLAIN = Augment(flip=0.0)


def record(number, *, source="a", size=(40, 30), time="day", labelled=None):
    boxes = np.array([[2.0, 4.0, 12.0, 20.0], [0.0, 0.0, 5.0, 5.0]], np.float32)[: number % 3]
    count = len(boxes)
    return BoxRecord(
        image_id=number + 1,
        file=f"{number}.png",
        path=None,
        width=size[0],
        height=size[1],
        boxes=boxes,
        labels=np.arange(1, count + 1, dtype=np.int64),
        iscrowd=np.zeros(count, bool),
        ignore=np.arange(count) == 1,
        area=np.ones(count, np.float32),
        seq=str(number),
        frame=None,
        time=time,
        source=source,
        labelled=labelled,
    )


def noise(record):
    pixels = np.random.default_rng(record.image_id).integers(0, 256, (record.height, record.width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


ONE = (SourceInfo("a"),)


def source_of(records, sources=ONE, read=noise):
    readers = {info.name: read for info in sources}
    return BoxSource(
        "test", "train", classes=("x", "y"), records=records, content=lambda: "", sources=sources, readers=readers
    )


def first(stream, count):
    return list(itertools.islice(stream, count))


def same(one, other):
    assert one.indices.tolist() == other.indices.tolist()
    assert all(map(torch.equal, one.images, other.images))
    for left, right in zip(one.targets, other.targets, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("size", "low", "high"), [((380, 640), 160, 256), ((540, 960), 384, 384), ((30, 40), 160, 256)]
)
def test_shrinking_is_what_the_network_would_do(size, low, high):
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    network = GeneralizedRCNNTransform(low, high, [0.0] * 3, [1.0] * 3, size_divisible=1).eval()
    whole = network([image.float() / 255])[0]
    small = Shrink(low, high)(image)
    assert small.shape[1:] == Shrink(low, high).size(*size)
    again = network([small.float() / 255])[0]
    assert again.image_sizes == whole.image_sizes
    torch.testing.assert_close(again.tensors, whole.tensors, atol=0.51 / 255, rtol=0)


def test_a_flip_mirrors_picture_and_boxes_and_detections_find_back():
    source = source_of([record(1, size=(80, 60))])
    pictures = Pictures(source, Shrink(30, 40))
    batch = first(training_batches(pictures, MixedSampler(source, 1, 0), Augment(flip=1.0), seed=0)(0), 1)[0]
    assert torch.equal(batch.images[0], pictures[0].flip(-1))
    assert batch.images[0].shape == (3, 30, 40)
    # (2, 4, 12, 20) of 80x60 is (1, 2, 6, 10) of 40x30, and mirrored (34, 2, 39, 10)
    assert batch.targets[0]["boxes"].tolist() == [[34.0, 2.0, 39.0, 10.0]]
    assert batch.sizes.tolist() == [[60, 80]]
    found = batch.restored([{"boxes": batch.targets[0]["boxes"], "scores": torch.ones(1)}])[0]
    assert found["boxes"].tolist() == [[68.0, 4.0, 78.0, 20.0]]
    assert found["scores"].tolist() == [1.0]


def test_targets_say_labels_ignore_boxes_lighting_and_what_is_annotated():
    source = source_of([record(2, time="night"), record(1, labelled=(2,)), record(0)])
    batch = next(evaluation_batches(Pictures(source, Shrink(30, 40)), 3))
    assert batch.targets[0]["labels"].tolist() == [1, 2]
    assert batch.targets[0]["ignore"].tolist() == [False, True]
    assert [bool(target["night"]) for target in batch.targets] == [True, False, False]
    assert batch.targets[2]["boxes"].shape == (0, 4)
    assert [target["labelled"].tolist() for target in batch.targets[:2]] == [[True] * 3, [True, False, True]]
    assert batch.inputs()[0].max() <= 1
    assert Collate(source_of([record(1)])).partly is False


def test_evaluation_keeps_the_order_and_takes_a_part():
    source = source_of([record(k) for k in range(7)])
    pictures = Pictures(source, Shrink(30, 40))
    assert [batch.indices.tolist() for batch in evaluation_batches(pictures, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    part = evaluation_batches(pictures, 2, indices=np.array([5, 1, 3]))
    assert [batch.indices.tolist() for batch in part] == [[5, 1], [3]]


def test_workers_and_resumption_change_nothing():
    source = source_of([record(k) for k in range(9)])
    sampler = MixedSampler(source, 4, 3)
    augment = Augment(brightness=0.3, contrast=0.3)

    def stream(workers, start=0, memory_share=0.25):
        pictures = Pictures(source, Shrink(30, 40), memory_share)
        return training_batches(pictures, sampler, augment, seed=3, workers=workers)(start)

    straight = first(stream(0), 5)
    for one, other in zip(straight, first(stream(2, memory_share=0.0), 5), strict=True):
        same(one, other)
    for one, other in zip(straight[3:], first(stream(0, start=3), 2), strict=True):
        same(one, other)
    again = {tuple(batch.indices.tolist()): batch for batch in straight}
    assert len(again) > 1  # epochs differ


def test_images_of_one_orientation_share_batches():
    wide = torch.tensor([True, False, True, True, False, True, True, False])
    order = grouped(torch.arange(8), wide, 2)
    assert order.tolist() == [0, 2, 1, 4, 3, 5, 6, 7]
    source = source_of([record(k, size=(40, 30) if k % 2 else (30, 40)) for k in range(12)])
    sampler = MixedSampler(source, 3, 0)
    for step in range(8):
        assert len({int(k) % 2 for k in sampler.at(step)[1]}) == 1


MIXED = (SourceInfo("a", 0.7), SourceInfo("b", 0.3), SourceInfo("c", 0.0))


def mixed():
    names = ["a"] * 70 + ["b"] * 10 + ["c"] * 5
    return source_of([record(k, source=name) for k, name in enumerate(names)], MIXED)


def test_ratios_are_those_of_the_seeded_draws():
    source = mixed()
    sampler = MixedSampler(source, 10, 5, epoch_size=1000)
    slots = sampler.draws(1000, 0)
    shares = torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64)
    expected = torch.multinomial(shares, 1000, replacement=True, generator=seeds.generator(5, "source", 0))
    names = np.array([source.records[k].source for k in slots.tolist()])
    assert (names == np.array(["a", "b", "c"])[expected.numpy()]).all()
    assert abs((names == "a").mean() - 0.7) < 0.05
    assert "c" not in names
    # without replacement: of 10 images of b, each once before any comes again
    of_b = slots[names == "b"]
    assert sorted(of_b[:10].tolist()) == list(range(70, 80)) == sorted(of_b[10:20].tolist())


def test_an_epoch_is_as_long_as_the_first_source_by_its_share():
    assert MixedSampler(mixed(), 10, 0).steps_per_epoch == 10  # 70 / 0.7 = 100 slots
    assert MixedSampler(mixed(), 10, 0, epoch_size=30).steps_per_epoch == 3
    assert MixedSampler(source_of([record(k) for k in range(9)]), 2, 0).steps_per_epoch == 4


def test_two_processes_partition_the_list_of_one():
    sampler = MixedSampler(mixed(), 10, 5)
    for step in range(20):
        whole = sampler.at(step)[1]
        parts = [sampler.share(step, rank, 2)[1] for rank in (0, 1)]
        assert torch.cat(parts).tolist() == whole.tolist()


def test_no_source_to_draw_from_is_refused():
    with pytest.raises(UsageError, match="ratio"):
        MixedSampler(source_of([record(0)], (SourceInfo("a", 0.0),)), 1, 0)


def test_unreadable_images_stop_or_are_replaced():
    def read(record):
        if record.image_id == 3:
            raise DataError("3.png cannot be decoded")
        return noise(record)

    source = source_of([record(k) for k in range(4)], read=read)
    pictures, sampler = Pictures(source, Shrink(30, 40)), MixedSampler(source, 4, 0)
    with pytest.raises(DataError, match=r"3\.png"):
        first(training_batches(pictures, sampler, PLAIN, seed=0)(0), 1)
    batch = first(training_batches(pictures, sampler, PLAIN, seed=0, on_bad="skip")(0), 1)[0]
    assert len(batch) == 4
    assert 2 not in batch.indices.tolist()
    found = list(evaluation_batches(pictures, 2, on_bad="skip"))
    assert [batch.indices.tolist() for batch in found] == [[0, 1], [3]]


def test_pictures_that_fit_are_decoded_once():
    seen = []

    def read(record):
        seen.append(record.image_id)
        return noise(record)

    source = source_of([record(k) for k in range(3)], read=read)
    for share, reads in ((0.25, 3), (0.0, 6)):
        seen.clear()
        pictures = Pictures(source, Shrink(30, 40), share)
        for _ in range(2):
            list(evaluation_batches(pictures, 2))
        assert len(seen) == reads
        assert pictures.workers(4) == (0 if share else 4)
