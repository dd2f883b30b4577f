"""Transforms, order, batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.fewshot import few_shot
from effvl_cli.data.loader import train_batches
from effvl_cli.data.prompts import captions, choose_templates
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import ENDLESS, Subset
from effvl_cli.data.transforms import Preprocess, augment

PLAIN = Preprocess(size=(24, 24), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


@pytest.mark.parametrize("size", [(57, 91), (91, 57), (24, 24), (13, 200), (224, 225)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocess_equals_open_clips_own_transform(size, mode, interpolation):
    from open_clip.transform import image_transform

    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    theirs = image_transform(24, False, mean, std, resize_mode=mode, interpolation=interpolation)(image)
    ours = Preprocess((24, 24), mean, std, interpolation, mode)
    assert torch.equal(ours.normalise(ours.to_uint8(image)[None])[0], theirs)


def test_every_sample_once_an_epoch_and_the_tail_left_out():
    sampler = EpochSampler(10, 3, seed=0)
    assert sampler.steps_per_epoch == 3
    for epoch in range(2):
        steps = [sampler.at(epoch * 3 + k) for k in range(3)]
        assert [e for e, _ in steps] == [epoch] * 3
        seen = torch.cat([rows for _, rows in steps])
        assert len(seen.unique()) == 9
    assert not torch.equal(sampler.at(0)[1], sampler.at(3)[1])
    assert not torch.equal(sampler.at(0)[1], EpochSampler(10, 3, seed=1).at(0)[1])


def test_the_shares_of_two_processes_make_up_the_batch():
    sampler = EpochSampler(40, 8, seed=3)
    parts = [sampler.share(4, rank, 2)[1] for rank in range(2)]
    assert torch.equal(torch.cat(parts), sampler.at(4)[1])


def test_an_endless_split_is_taken_in_order():
    assert EpochSampler(ENDLESS, 4, seed=0).at(3)[1].tolist() == [12, 13, 14, 15]


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UsageError, match="--batch-size 11"):
        EpochSampler(10, 11, seed=0)


def _take(source, name="crop-flip", *, start=0, count=3, workers=0, rank=0, world=1):
    stream = train_batches(
        source,
        augment(name, PLAIN),
        EpochSampler(len(source), 8, 0),
        seed=5,
        start_step=start,
        workers=workers,
        rank=rank,
        world=world,
    )
    return [next(stream) for _ in range(count)]


@pytest.fixture
def pictures(image_folder):
    return load(f"folder:{image_folder}", "train")


def test_batches_do_not_depend_on_workers_resumption_or_processes(pictures):
    straight = _take(pictures, count=5)
    for other in (_take(pictures, workers=2, count=5), _take(pictures, start=2, count=3)):
        for one, two in zip(straight[-len(other) :], other, strict=True):
            assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
    halves = [_take(pictures, rank=rank, world=2, count=1)[0] for rank in range(2)]
    assert torch.equal(torch.cat([half.images for half in halves]), straight[0].images)


def test_augmentation_differs_between_epochs_and_leaves_the_global_stream_alone(pictures):
    state = torch.get_rng_state()
    batches = _take(pictures, count=6)  # three steps an epoch
    assert torch.equal(torch.get_rng_state(), state)
    by_index = [
        {int(i): x for b in batches[k : k + 3] for i, x in zip(b.indices, b.images, strict=True)} for k in (0, 3)
    ]
    common = set(by_index[0]) & set(by_index[1])
    assert any(not torch.equal(by_index[0][i], by_index[1][i]) for i in common)


def test_made_images_come_as_they_are_and_equal_the_slow_way():
    source = load("shape-captions", "train")
    preprocess = Preprocess((64, 64), (0.5,) * 3, (0.5,) * 3)
    stream = train_batches(source, augment("none", preprocess), EpochSampler(len(source), 4, 0), seed=0, start_step=2)
    batch = next(stream)
    slow = torch.stack([preprocess.to_uint8(source.image(k)) for k in range(8, 12)])
    assert torch.equal(batch.images, slow)
    assert batch.labels.tolist() == source.labels[np.arange(8, 12)].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_an_error_that_names_it_or_is_replaced(pictures, image_folder, workers):
    bad = image_folder / "train" / "blue_thing" / "img5.jpg"
    bad.write_bytes(b"")
    with pytest.raises(DataError, match=r"img5.jpg") as caught:
        _take(pictures, count=3, workers=workers)
    assert "--on-bad skip" in caught.value.hint
    stream = train_batches(
        pictures, augment("none", PLAIN), EpochSampler(24, 8, 0), seed=0, start_step=0, workers=workers, on_bad="skip"
    )
    batches = [next(stream) for _ in range(3)]
    stream.close()  # `caught` holds this frame in a cycle, and a loader that the collector ends waits 5 s a process
    position = pictures.ids.index("train/blue_thing/img5.jpg")
    assert all(position not in batch.indices and len(batch.images) == 8 for batch in batches)


def test_evaluation_reads_each_image_once_and_counts_the_bad(pictures, image_folder):
    images = Decoded.read(pictures, PLAIN)
    assert images.pixels.shape == (24, 3, 24, 24) and images.pixels.dtype == torch.uint8
    assert torch.equal(images[[7]][0], PLAIN.to_uint8(pictures.image(7)))
    (image_folder / "train" / "blue_thing" / "img0.jpg").write_bytes(b"x")
    images = Decoded.read(pictures, PLAIN, on_bad="skip")
    assert len(images) == 23 and images.bad_files == 1 and "train/blue_thing/img0.jpg" not in images.ids


def test_few_shot_takes_each_class_and_names_an_empty_one(pictures):
    chosen = few_shot(pictures, 5, 0)
    assert np.bincount(pictures.labels[chosen]).tolist() == [5, 5]
    assert set(few_shot(pictures, 2, 0)) <= set(chosen)
    assert len(few_shot(pictures, 100, 0)) == 24
    with pytest.raises(DataError, match="blue thing"):
        few_shot(Subset(pictures, np.flatnonzero(pictures.labels == 1)), 1, 0)


def test_templates(tmp_path):
    assert choose_templates(None, ("x {}",)) == ("x {}",)
    assert choose_templates("a {}. | the {}.", ()) == ("a {}.", "the {}.")
    assert choose_templates("coop", ("x {}",)) == ("x {}",)
    assert choose_templates("simple", ("x {}",)) == ("a photo of a {}.",)
    many = choose_templates("imagenet80", ("x {}",))
    assert len(set(many)) == 80 and "itap of a {}." in many and all(text.count("{}") == 1 for text in many)
    (tmp_path / "t.txt").write_text("one {}\n\ntwo {}\n")
    assert choose_templates(str(tmp_path / "t.txt"), ()) == ("one {}", "two {}")
    assert captions(("cat", "dog"), ("a {}", "the {}")) == ["a cat", "the cat", "a dog", "the dog"]
    for wrong in ("no place", "{} and {}", "{0}", "|"):
        with pytest.raises(UsageError, match="--templates"):
            choose_templates(wrong, ())
