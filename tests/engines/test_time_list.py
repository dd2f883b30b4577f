"""Times of images from a list: what it may hold, which line is whose, and when it is read."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from effvl_cli.core.errors import DataError
from effvl_cli.engines.detect.time_list import TimeList


def read(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    return TimeList.read(str(tmp_path / "list.csv"))


def images(*pairs, split="train"):
    """A split with images of these sources and files."""
    records = [SimpleNamespace(source=source, file=file) for source, file in pairs]
    return SimpleNamespace(name="mix", split=split, records=records)


def test_sources_with_files_of_the_same_name_get_their_own_times(tmp_path):
    listed = read(tmp_path, "file,time,split,source\nx.png,night,train,a\nx.png,day,train,b\ny.png,night,,\n")
    said = []
    assert listed.of(images(("a", "x.png"), ("b", "x.png"), ("b", "y.png"), ("b", "z.png")), said.append) == {
        **{0: "night", 1: "day", 2: "night"},
    }
    assert listed.of(images(("a", "x.png"), ("a", "y.png"), split="test"), said.append) == {1: "night"}
    assert said == []
    with pytest.raises(DataError, match=r"says both day and night of x\.png of source c"):
        listed.of(images(("c", "x.png")), said.append)
    assert listed.of(images(("a", "none.png")), said.append) == {}
    assert "names no image of mix train" in said[0]
    renamed = read(tmp_path, "file,time,source\nx.png,night,before\n")
    assert renamed.of(images(("after", "x.png")), said.append) == {0: "night"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("file,time\na.png,day\nb.png,day\na.png,night\n", "says both day and night of a.png"),
        ("a.png,day\nb.png,night\n", "has no column file in its first line (a.png,day)"),
        ("file;time\na.png;day\n", "has no column file in its first line (file;time)"),
        ("file\na.png\n", "has no column time"),
        ("file,time\n", "has no lines after its first one"),
        ("", "is empty"),
        ("file,time\na.png,dusk\n", "has 1 line without day or night: a.png,dusk."),
    ],
)
def test_a_list_that_says_something_else_is_refused(tmp_path, text, part):
    with pytest.raises(DataError) as caught:
        read(tmp_path, text)
    assert part in str(caught.value)
    assert str(tmp_path / "list.csv") in str(caught.value)


def test_the_same_line_twice_says_the_same(tmp_path):
    listed = read(tmp_path, "file,time\na.png,day\na.png,day\n")
    assert listed.of(images(("a", "a.png")), print) == {0: "day"}


def test_a_list_is_read_before_the_images_are_looked_at_and_in_a_preview(effvl, here, workdir, monkeypatch):
    from effvl_cli.engines.detect import tag
    from tests.engines.test_detect_tag import make

    make(workdir)
    Path("good.csv").write_text("file,time\n" + "".join(f"train_{k}.png,day\n" for k in range(8)))
    line = ("detect", "tag", "--data", "coco:set", "--time-from", "pixels", "--split", "train")
    assert "# train       8          8" in here(*line, "--dry-run").out
    assert "# train       8          0" in here(*line, "--time-csv", "good.csv", "--dry-run").out
    Path("bad.csv").write_text("train_0.png,day\n")
    monkeypatch.setattr(tag, "frame_features", None)
    outcome = effvl(*line, "--time-csv", "bad.csv")
    assert outcome.code == 3
    assert "--time-csv bad.csv has no column file" in outcome.error
