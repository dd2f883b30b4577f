"""Frames of videos by their numbers: seeks, damage, rotation, and the real clips."""

import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from effvl_cli.core.cache import Cache
from effvl_cli.data import video_index
from effvl_cli.data.clips import BadClipError
from effvl_cli.data.codec_motion import _upright, read_motion
from effvl_cli.data.video import VideoReader, index_video
from effvl_cli.data.video_index import cached_index
from tests.data.video_files import greys, write_sound, write_video

CLIPS = Path(os.environ.get("EFFVL_TEST_DATA", "missing")).absolute() / "videos"  # tests work in folders of their own
FRAMES = {
    "corrupted.mp4": 49,
    "demo.mp4": 280,
    "demo_spatiotemporal_det.mp4": 57,
    "flipping_a_pancake.mkv": 310,
    "test.avi": 164,
    "test.mp4": 300,
    "test_video_structuralize.mp4": 300,
    "unordered.mov": 4,
    "video_90.mov": 3,
}
real = pytest.mark.skipif(not CLIPS.is_dir(), reason="no real clips")


def reader_of(path: Path) -> VideoReader:
    return VideoReader(path, index_video(path))


def test_lossless_frames_are_those_that_were_written(tmp_path):
    reader = reader_of(write_video(tmp_path / "a.mkv", greys()))
    assert (reader.index.frames, reader.index.fps, reader.size) == (40, 10.0, (48, 64))
    assert np.array_equal(reader.read(0, 40), greys())
    assert reader.read(5, 4, 3)[:, 0, 0, 0].tolist() == [30, 48, 66, 84]


@pytest.mark.parametrize(("codec", "name"), [("ffv1", "a.mkv"), ("mpeg4", "a.avi"), ("mpeg4", "a.mp4")])
def test_a_seek_gives_the_same_bytes_from_every_start(tmp_path, codec, name):
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 255, (40, 6, 8, 3), dtype=np.uint8), 8, 1), 8, 2)
    reader = reader_of(write_video(tmp_path / name, frames, codec=codec))
    assert len(reader.index.keys) > 3
    whole = reader.read(0, 40, seek=False)
    for start in range(40):
        length = min(3, 40 - start)
        assert np.array_equal(reader.read(start, length, seek=True), whole[start : start + length])


def test_a_seek_decodes_no_more_than_from_the_key_frame_before(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    reader = reader_of(write_video(tmp_path / "a.avi", frames, codec="mpeg4"))
    before = max(key.number for key in reader.index.keys if key.number <= 35)
    assert before > 20
    assert [number for number, _ in reader.numbered(35, 36, seek=True)] == list(range(before, 37))


def test_frames_below_the_first_repeat_it(tmp_path):
    reader = reader_of(write_video(tmp_path / "a.mkv", greys(10)))
    assert reader.read(-22, 32)[:, 0, 0, 0].tolist() == [0] * 22 + [6 * t for t in range(10)]


def test_headers_that_count_wrongly_are_not_believed(tmp_path):
    path = write_video(tmp_path / "a.avi", greys(), codec="mpeg4")
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):  # dwTotalFrames, dwLength
        place = data.index(mark) + offset
        assert struct.unpack_from("<I", data, place)[0] == 40
        struct.pack_into("<I", data, place, 7)
    path.write_bytes(data)
    assert index_video(path).frames == 40


def test_a_truncated_file_gives_what_is_there(tmp_path):
    path = write_video(tmp_path / "a.mkv", np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader = reader_of(path)
    assert 10 < reader.index.frames < 30
    assert len(reader.read(0, reader.index.frames)) == reader.index.frames
    with pytest.raises(BadClipError, match="0 to 39 are wanted") as error:
        reader.read(0, 40)
    assert error.value.reason == "too_short"


def test_what_cannot_be_read_says_why(tmp_path):
    text, none = tmp_path / "a.mp4", write_sound(tmp_path / "a.mkv")
    text.write_text("no video")
    empty = write_video(tmp_path / "b.avi", greys(4), codec="mpeg4")
    data = empty.read_bytes()
    empty.write_bytes(data[: data.index(b"movi") + 4])
    reasons = {}
    for path in (text, none, empty, tmp_path / "absent.mp4"):
        with pytest.raises(BadClipError) as error:
            cached_index(path, Cache(tmp_path / "cache"))
        reasons[path.name] = error.value.reason
        assert path.name in error.value.message
        assert pickle.loads(pickle.dumps(error.value)).reason == error.value.reason  # loader processes send it
    assert reasons == {
        "a.mp4": "open_failed",
        "a.mkv": "no_video_stream",
        "b.avi": "zero_frames",
        "absent.mp4": "open_failed",
    }


def damaged(path: Path, first: int, count: int) -> Path:
    """Overwrite packets of a file of the lossless codec."""
    import av

    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for _, size in packets[first : first + count]:
        assert size
    for place, size in packets[first : first + count]:
        data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    return path


def test_damaged_packets_are_left_out_up_to_a_tenth_of_a_clip(tmp_path):
    path = damaged(write_video(tmp_path / "a.avi", greys(), codec="mjpeg"), 20, 3)
    reader = reader_of(path)
    assert reader.index.frames == 37
    assert reader.index.lost == (20, 20, 20)
    assert len(reader.read(2, 30)) == 30  # 27 of 30 packets and more
    assert len(reader.read(20, 17)) == 17
    with pytest.raises(BadClipError, match="3 of 13 packets") as error:
        reader.read(15, 10)
    assert error.value.reason == "decode_error"


def test_frames_that_have_gone_since_the_index_repeat_the_last(tmp_path):
    path = write_video(tmp_path / "a.mkv", greys())
    index = index_video(path)
    write_video(path, greys(37))
    assert VideoReader(path, index).read(0, 40)[35:, 0, 0, 0].tolist() == [210, 216, 216, 216, 216]
    with pytest.raises(BadClipError, match="7 of 10 frames"):
        VideoReader(path, index).read(30, 10)


def test_larger_frames_are_shrunk_to_a_short_side(tmp_path):
    path = write_video(tmp_path / "a.mkv", greys())
    assert VideoReader(path, index_video(path), 24).read(0, 2).shape == (2, 24, 32, 3)
    assert VideoReader(path, index_video(path), 256).read(0, 2).shape == (2, 48, 64, 3)


def test_an_index_is_made_once_until_the_file_changes(tmp_path, monkeypatch):
    path, cache, scanned = write_video(tmp_path / "a.mkv", greys()), Cache(tmp_path / "cache"), []
    monkeypatch.setattr(video_index, "index_video", lambda file: scanned.append(file) or index_video(file))
    assert cached_index(path, cache) == cached_index(path, cache) == index_video(path)
    assert len(scanned) == 1
    write_video(path, greys(12))
    assert cached_index(path, cache).frames == 12
    assert len(scanned) == 2


def test_motion_vectors_say_where_things_move(tmp_path):
    texture = np.random.default_rng(0).integers(0, 255, (20, 60, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    moving = np.stack([texture[:96, 2 * t : 2 * t + 128] for t in range(12)])  # what is seen moves 2 px to the left
    reader = reader_of(write_video(tmp_path / "a.avi", moving, codec="mpeg4", key_every=12, b_frames=0))
    motion = read_motion(reader, np.arange(2, 8))
    assert motion.shape == (6, 12, 16, 2)
    assert np.median(motion[..., 0]) == -2
    assert np.median(motion[..., 1]) == 0


def test_motion_turns_with_the_picture():
    grid = np.zeros((2, 3, 2), dtype=np.float32)
    grid[0, 2] = (1, 0)  # at the top right, to the right
    left = _upright(grid, 90)
    assert left.shape == (3, 2, 2)
    assert left[0, 0].tolist() == [0, -1]  # at the top left, up
    right = _upright(grid, -90)
    assert right[2, 1].tolist() == [0, 1]  # at the bottom right, down


@real
@pytest.mark.parametrize(("name", "frames"), FRAMES.items())
def test_real_clips_decode_to_as_many_frames_as_were_counted(name, frames):
    reader = reader_of(CLIPS / name)
    assert reader.index.frames == frames
    assert len(reader.index.lost) == (name == "corrupted.mp4")
    if name == "video_90.mov":
        assert reader.size == (568, 320)
        assert reader.read(0, 3).shape == (3, 568, 320, 3)
        import av

        with av.open(str(CLIPS / name)) as container:
            stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert np.array_equal(reader.read(0, 1)[0], np.rot90(stored, -1))


@real
@pytest.mark.parametrize("name", ["test.avi", "demo.mp4", "flipping_a_pancake.mkv"])
def test_a_seek_in_a_real_clip_gives_the_same_bytes(name):
    reader = reader_of(CLIPS / name)
    last = reader.index.frames - 3
    whole = reader.read(0, reader.index.frames, seek=False)
    for start in sorted({10, last, *(min(key.number + d, last) for key in reader.index.keys[1:] for d in (-1, 0, 1))}):
        assert np.array_equal(reader.read(start, 3, seek=True), whole[start : start + 3])


@real
def test_motion_of_a_real_clip_does_not_depend_on_where_decoding_begins():
    reader = reader_of(CLIPS / "demo.mp4")
    numbers = np.arange(190, 200)
    found = read_motion(reader, numbers)
    assert np.abs(found).max() > 0
    assert np.array_equal(found[4:], read_motion(reader, numbers[4:]))


def test_short_videos_and_early_clips_are_decoded_from_the_start(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 255, (80, 16, 16, 3), dtype=np.uint8)
    reader = reader_of(write_video(tmp_path / "a.avi", frames, codec="mpeg4"))
    assert next(reader.numbered(70, 70))[0] == 0
    monkeypatch.setattr("effvl_cli.data.video.FROM_START_FRAMES", 79)
    assert 60 < next(reader.numbered(70, 70))[0] <= 70
    assert next(reader.numbered(63, 70))[0] == 0


def test_packets_that_a_seek_does_not_know_lead_to_the_start(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.avi", frames, codec="mpeg4")
    index = index_video(path)
    odd = tuple(replace(key, stamp=(10**6, 10**6)) for key in index.keys)
    whole = VideoReader(path, index).read(0, 40, seek=False)
    assert np.array_equal(VideoReader(path, replace(index, keys=odd)).read(30, 5, seek=True), whole[30:35])
