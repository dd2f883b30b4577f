import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from effvl_cli.core.errors import DataError
from effvl_cli.data import load
from effvl_cli.data.fewshot import few_shot, few_shot_validation, listed_shots
from effvl_cli.data.held_out import write_table


class Source(SimpleNamespace):
    def __len__(self):
        return len(self.ids)


@pytest.fixture
def source():
    labels = np.arange(60) % 4
    labels[3::8] = 0  # class 3 is rarer
    ids = [f"images/{place}.jpg" for place in range(60)]
    return Source(
        name="toy", split="train", classes=("a", "b", "c", "d"), labels=labels, ids=ids, endless=False, templates=()
    )


def test_shots_of_every_class_and_all_of_a_small_one(source):
    chosen = few_shot(source, 10, 3)
    assert len(set(chosen.tolist())) == len(chosen) and chosen.tolist() == sorted(chosen)
    assert np.bincount(source.labels[chosen]).tolist() == [10, 10, 10, (source.labels == 3).sum()]
    assert set(few_shot(source, 4, 3)) < set(chosen)
    assert not np.array_equal(chosen, few_shot(source, 10, 4))


def test_validation_shots_are_at_most_four(source):
    for shots, expected in ((1, 1), (2, 2), (16, 4)):
        assert np.bincount(source.labels[few_shot_validation(source, shots, 0)]).tolist() == [expected] * 4


def test_training_and_test_images_do_not_overlap(image_folder):
    splits = {split: load(f"folder:{image_folder}", split) for split in ("train", "test")}
    train, test = ({source.ids[k] for k in few_shot(source, 3, 0)} for source in splits.values())
    assert train and test and not train & test


def test_an_empty_class_is_refused_unless_allowed(source):
    source.labels = np.where(source.labels == 2, 1, source.labels)
    with pytest.raises(DataError, match="no train image of class 'c'"):
        few_shot(source, 2, 0)
    assert np.bincount(source.labels[few_shot(source, 2, 0, allow_empty=True)]).tolist() == [2, 2, 0, 2]


def test_listed_images(source, tmp_path):
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"train": ["images/7.jpg", "/data/toy/images/3.jpg"], "val": ["images/5.jpg"]}))
    assert listed_shots(path, source, "train").tolist() == [3, 7]
    assert listed_shots(path, source, "val").tolist() == [5]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "cannot be read"),
        (b"[]", "cannot be read"),
        (b'{"val": []}', "cannot be read: it has no list 'train'"),
        (b'{"train": [["images/1.jpg", 0, "a"]]}', "'train' is not a list of paths"),
        (b'{"train": ["images/1.jpg", "x/1.png"]}', "1 of 2 train images are not in toy train, the first is x/1.png"),
        (b'{"train": ["images/1.jpg", "/y/images/1.jpg"]}', "lists a train image twice"),
        (pickle.dumps({"train": []}), "is a pickle, which could run code"),
    ],
)
def test_wrong_lists_are_named(source, tmp_path, content, expected):
    (tmp_path / "few.json").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        listed_shots(tmp_path / "few.json", source, "train")


def test_a_table_of_images_that_training_did_not_see(tmp_path):
    for split, count in (("train", 300), ("test", 3)):
        for name in ("red_cat", "dog"):
            (tmp_path / "toy" / split / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (2, 2)).save(tmp_path / "toy" / split / name / f"{k}.png")
    table = write_table(tmp_path / "toy")
    assert table == tmp_path / "toy.csv"
    unseen, found = load(f"folder:{tmp_path}/toy", "val"), {}
    for split in ("train", "val", "test"):
        found[split] = load(f"csv:{table}", split)
        assert found[split].classes == unseen.classes == ("dog", "red cat")
        assert ["red_cat" in name for name in found[split].ids] == found[split].labels.astype(bool).tolist()
    assert sorted(found["train"].ids + found["val"].ids) == sorted(f"toy/{name}" for name in unseen.ids)
    assert 3.5 < len(found["train"]) / len(found["val"]) < 4.5 and len(found["test"]) == 6
    assert found["train"].image(0).size == (2, 2)
