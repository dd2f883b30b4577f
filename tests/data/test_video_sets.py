"""Data sets of video files in the layouts of their authors, as tables and as folders."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data import open_source
from effvl_cli.data.check import check, require
from effvl_cli.data.clips import BadClipError, load_clips
from tests.data.video_files import greys, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 20 frames at 10 a second."""
    return write_video(tmp_path_factory.mktemp("clip") / "a.mkv", greys(20, 32, 48))


@pytest.fixture
def place(clip, tmp_path, monkeypatch):
    """Puts copies of it below a folder."""
    monkeypatch.chdir(tmp_path)

    def put(*names):
        for name in names:
            target = tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, target)
        return tmp_path

    return put


def text(name, *lines):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def ucf_lists():
    lists = "data/ucf101/ucfTrainTestlist"
    text(f"{lists}/classInd.txt", "1 Archery", "2 Yo_Yo")
    text(f"{lists}/trainlist01.txt", "Archery/v_Archery_g08_c01.avi 1", "Archery/v_Archery_g08_c02.avi 1", YO_9 + " 2")
    text(f"{lists}/testlist01.txt", "Archery/v_Archery_g01_c01.avi")
    text(f"{lists}/trainlist02.txt", "Archery/v_Archery_g01_c01.avi 1")
    text(f"{lists}/testlist02.txt", YO_9)


YO_9 = "Yo_Yo/v_Yo_Yo_g09_c01.avi"
ARCHERY = [f"Archery/v_Archery_{end}.avi" for end in ("g08_c01", "g08_c02", "g01_c01")]


def test_ucf101(place):
    ucf_lists()
    place(*(f"data/ucf101/videos/{name}" for name in (*ARCHERY, YO_9)))
    train, test = (load_clips("video:ucf101", split, root="data") for split in ("train", "test"))
    assert (train.kind, train.endless, train.classes, train.expected) == ("clips", False, ("Archery", "Yo Yo"), 9537)
    assert train.ids == [*ARCHERY[:2], YO_9]
    assert (train.labels.tolist(), train.groups.tolist()) == ([0, 0, 1], [0, 0, 1])  # g08 was cut from one source
    assert (test.ids, test.labels.tolist(), test.expected) == (ARCHERY[2:], [0], 3783)
    assert load_clips("video:ucf101", "val", root="data").ids == test.ids
    second = load_clips("video:ucf101:2", "test", root="data")
    assert (second.ids, second.labels.tolist(), second.expected) == ([YO_9], [1], 3734)
    assert train.num_frames(1) == 20
    assert np.array_equal(train.read(1, 2, 3, 5), greys(20, 32, 48)[[2, 7, 12]])
    assert train.read(0, -6, 8)[:, 0, 0, 0].tolist() == [0] * 7 + [6]
    assert train.motion(1, 0, 3).shape == (3, 4, 6, 2)
    assert train.fingerprint() == load_clips("video:ucf101", "train", root="data").fingerprint() != test.fingerprint()
    with pytest.raises(UsageError, match="no official split '4'"):
        load_clips("video:ucf101:4", "train", root="data")
    with pytest.raises(UsageError, match="data set of images"):
        load_clips("ucf101", "train", root="data")
    with pytest.raises(DataError, match=r"trainlist03\.txt cannot be read"):
        load_clips("video:ucf101:3", "train", root="data")


def test_ucf101_tells_missing_videos_and_wrong_lines(place):
    ucf_lists()
    place(f"data/ucf101/videos/{ARCHERY[0]}")
    train = load_clips("video:ucf101", "train", root="data")
    assert len(train) == 3 and train.remark.startswith("2 of 3 videos are missing: Archery/v_Archery_g08_c02.avi")
    with pytest.raises(BadClipError, match="no video at") as error:
        train.read(1, 0, 4)
    assert error.value.reason == "open_failed"
    with pytest.raises(DataError, match="none of the 1 listed videos"):
        load_clips("video:ucf101", "test", root="data")
    text("data/ucf101/ucfTrainTestlist/trainlist01.txt", "Archery/v_Archery_g08_c01.avi 1", "Bowling/a.avi 3")
    with pytest.raises(DataError, match=r"line 2 .*class 'Bowling' is not in classInd"):
        load_clips("video:ucf101", "train", root="data")


def test_hmdb51(place):
    lists = "data/testTrainMulti_7030_splits"
    names = ("Film_a_u_nm_0.avi", "Film_a_u_nm_1.avi", "Film_b_u_nm_0.avi", "x_0.avi")
    text(f"{lists}/wave_test_split1.txt", "w_0.avi 1 ")
    text(f"{lists}/brush_hair_test_split1.txt", *(f"{n} {t} " for n, t in zip(names, "1120", strict=True)))
    text(f"{lists}/brush_hair_test_split2.txt", f"{names[0]} 2")
    place(*(f"data/videos/brush_hair/{name}" for name in names), "data/videos/wave/w_0.avi")
    train, test = (load_clips("video:hmdb51", split, root="data") for split in ("train", "test"))
    assert train.classes == ("brush hair", "wave") and train.expected == 3570 and test.expected == 1530
    assert train.ids == [f"brush_hair/{names[0]}", f"brush_hair/{names[1]}", "wave/w_0.avi"]
    assert (train.labels.tolist(), train.groups.tolist()) == ([0, 0, 1], [0, 0, 1])
    assert test.ids == [f"brush_hair/{names[2]}"]  # tag 0 is in neither
    assert load_clips("video:hmdb51:2", "test", root="data").ids == [f"brush_hair/{names[0]}"]
    text(f"{lists}/wave_test_split1.txt", "w_0.avi 3")
    with pytest.raises(DataError, match=r"line 1 .*the tag is '3'"):
        load_clips("video:hmdb51", "train", root="data")


KINETICS = ("abc-_def123_000004_000014.mp4", "abc-_def123_000020_000030.mp4", "zyxwvutsrqp_000000_000010.mp4")


def test_kinetics_by_its_table(place):
    root = place(f"data/train/air drumming/{KINETICS[0]}", f"data/train/zumba/{KINETICS[2]}")
    place(f"data/train/air drumming/{KINETICS[1]}", f"data/val/zumba/{KINETICS[2]}")
    header = "label,youtube_id,time_start,time_end,split"
    rows = ("air drumming,abc-_def123,4,14,train", "air drumming,abc-_def123,20,30,train", "zumba,gone,0,10,train")
    text("data/train.csv", header, *rows, "zumba,zyxwvutsrqp,0,10,train")
    train = load_clips("video:kinetics400", "train", root=str(root / "data"))
    assert train.ids == [
        *(f"train/air drumming/{name}" for name in KINETICS[:2]),
        f"train/zumba/{KINETICS[2]}",
    ]
    assert (train.labels.tolist(), train.groups.tolist()) == ([0, 0, 1], [0, 0, 1])
    assert (train.expected, train.remark) == (4, "1 of the 4 listed videos are not there")
    assert train.classes == ("air drumming", "zumba")
    assert load_clips("video:kinetics400", "test", root="data").ids == [
        f"val/zumba/{KINETICS[2]}"
    ]  # no table, as it lies


def test_kinetics_by_a_list_of_paths_and_labels(place):
    place(*(f"data/train/zumba/{name}" for name in KINETICS))
    text("data/kinetics400_train_list_videos.txt", *(f"zumba/{name} 1" for name in KINETICS))
    train = load_clips("video:kinetics400", "train", root="data")
    assert (train.ids, train.labels.tolist()) == ([f"zumba/{name}" for name in KINETICS], [1, 1, 1])
    assert train.classes == ("class 0", "zumba") and train.groups.tolist() == [0, 0, 1]
    with pytest.raises(DataError, match="no val folder of Kinetics-400"):
        load_clips("video:kinetics400", "val", root="data")


def test_kinetics_is_shrunk_while_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(Path(f"data/train/zumba/{KINETICS[0]}"), greys(4, 320, 480), codec="mpeg4")
    assert load_clips("video:kinetics400", "train", root="data").read(0, 0, 2).shape == (2, 256, 384, 3)


def test_a_table(place):
    place("data/a.mkv", "data/sub/b.mkv")
    text(
        "data/t.csv",
        "path,label,source,start,end,split",
        "a.mkv,run,x,0.5,1.2,train",
        "a.mkv,walk,x,1.2,,train",
        "sub/b.mkv,,y,,,train",
        "sub/b.mkv,run,y,,,test",
    )
    train = load_clips("video:t.csv", "train", root="data")
    assert train.ids == ["a.mkv@0.5-1.2", "a.mkv@1.2-", "sub/b.mkv"]
    assert (train.classes, train.labels.tolist()) == (("run", "walk"), [0, 1, -1])
    assert train.groups.tolist() == [0, 0, 1]
    assert [train.num_frames(index) for index in range(3)] == [7, 8, 20]  # 10 frames a second
    assert train.read(0, 0, 7)[:, 0, 0, 0].tolist() == [6 * t for t in range(5, 12)]
    assert train.read(1, -1, 2)[:, 0, 0, 0].tolist() == [72, 72]
    with pytest.raises(BadClipError, match=r"a\.mkv@0\.5-1\.2 has 7 frames"):
        train.read(0, 5, 4)
    assert load_clips("video:t.csv", "val", root="data").ids == ["sub/b.mkv"]  # where there is no val
    text("data/t.csv", "path,start", "a.mkv,soon")
    with pytest.raises(DataError, match=r"start of a\.mkv is 'soon'"):
        load_clips("video:t.csv", "train", root="data")
    text("data/t.csv", "file,kind", "a.mkv,x")
    with pytest.raises(DataError, match="has columns file, kind"):
        load_clips("video:t.csv", "train", root="data")


def test_a_table_of_coclr(place):
    place("data/videos/Archery/v_Archery_g08_c01.avi", "data/videos/Archery/v_Archery_g08_c02.avi")
    author = "/datasets/ucf101/frame/Archery"
    text("data/train.csv", f"{author}/v_Archery_g08_c01,164", f"{author}/v_Archery_g08_c02,90")
    found = load_clips("video:train.csv", "train", root="data")
    assert found.ids == ["Archery/v_Archery_g08_c01.avi", "Archery/v_Archery_g08_c02.avi"]
    assert (found.classes, found.groups.tolist(), found.num_frames(0)) == (("Archery",), [0, 0], 20)


def test_folders(place):
    place("loose/a.mkv", "loose/b.mkv", "loose/.hidden.mkv")
    text("loose/note.txt", "not a video")
    found = [load_clips("video:loose", split) for split in ("train", "val", "test")]
    assert [source.ids for source in found] == [["a.mkv", "b.mkv"]] * 3
    assert found[0].classes == () and found[0].labels.tolist() == [-1, -1] and found[0].groups.tolist() == [0, 1]
    place("kinds/run/a.mkv", "kinds/walk/b.mkv", "kinds/c.mkv")
    kinds = load_clips("video:kinds", "train")
    assert (kinds.ids, kinds.labels.tolist()) == (["run/a.mkv", "walk/b.mkv"], [0, 1])
    assert kinds.remark == "1 videos outside the class folders of kinds are left out"
    place("parts/train/run/a.mkv", "parts/train/walk/b.mkv", "parts/test/walk/c.mkv")
    test = load_clips("video:parts", "test")
    assert (test.ids, test.labels.tolist(), test.classes) == (["test/walk/c.mkv"], [1], ("run", "walk"))
    place("parts/val/hop/c.mkv")
    with pytest.raises(DataError, match=r"class 'hop' of parts.val is not in parts.train"):
        load_clips("video:parts", "val")
    Path("empty").mkdir()
    for spec, said in (("video:empty", "holds no videos"), ("video:absent", "no folder at absent")):
        with pytest.raises(DataError, match=said):
            load_clips(spec, "train")
    with pytest.raises(UsageError, match="names nothing"):
        load_clips("video:", "train")


def test_check_and_require(place):
    place("loose/a.mkv")
    rows, wrong = check("video:loose")
    assert not wrong and [row[:2] for row in rows.rows] == [("train", 1), ("val", 1), ("test", 1)]
    require("video:loose", None)
    require("video:ucf101:2", None)
    with pytest.raises(DataError, match="no folder or table at absent"):
        require("video:absent", None)
    assert open_source("video:loose", "train", kind=None).name == "video:loose"
