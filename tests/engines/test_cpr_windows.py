"""Windows of videos: each frame where it belongs, each video decoded as little as possible, failures counted."""

import numpy as np
import pytest

from effvl_cli.core.errors import DataError
from effvl_cli.data.clips import BadClipError
from effvl_cli.engines.cpr_mine import window_stream
from effvl_cli.engines.cpr_mine.window_stream import Failures, Geometry, Window, WindowStream, windows_of


class Numbered:
    """Video i has `lengths[i]` frames; all pixels of frame t are t. A length of None cannot be read."""

    kind, name, split, endless = "clips", "numbered", "test", False

    def __init__(self, lengths, sizes=None):
        self.lengths, self.sizes = lengths, sizes or [(4, 6)] * len(lengths)
        self.ids = [f"v{k}" for k in range(len(lengths))]
        self.labels = np.arange(len(lengths))
        self.reads = []

    def __len__(self):
        return len(self.lengths)

    def num_frames(self, index):
        if self.lengths[index] is None:
            raise failed("open_failed")
        return self.lengths[index]

    def read(self, index, start, length, stride=1):
        self.reads.append((index, start, length, stride))
        if self.lengths[index] == 13:
            raise failed("decode_error")
        times = np.arange(start, start + length * stride, stride)
        return np.broadcast_to(times.astype(np.uint8)[:, None, None, None], (length, *self.sizes[index], 3)).copy()


def failed(reason):
    return BadClipError("no", "", reason)


def frames_of(source, geometry, windows, **options):
    failures = options.pop("failures", None) or Failures("error", len(source))
    stream = WindowStream(source, windows, geometry, batch_size=3, workers=0, failures=failures)
    return {
        (window.index, window.start): clip[:, 0, 0, 0].tolist()
        for found, clips in stream
        for window, clip in zip(found, clips, strict=True)
    }


def test_windows_have_the_frames_that_they_name_and_overlapping_ones_are_read_once():
    source, geometry = Numbered([40, 9]), Geometry(4, 2)
    windows = [Window(0, start, 40) for start in (0, 3, 20, 30)] + [Window(1, 1, 9)]
    found = frames_of(source, geometry, windows)
    assert found == {(w.index, w.start): [w.start + 2 * k for k in range(4)] for w in windows}
    assert source.reads == [(0, 0, 37, 1), (1, 1, 4, 2)]


def test_a_long_video_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(window_stream, "SPAN", 12)
    source, geometry = Numbered([60]), Geometry(4, 2)
    windows = [Window(0, start, 60) for start in range(0, 50, 3)]
    found = frames_of(source, geometry, windows)
    assert found == {(0, w.start): [w.start + 2 * k for k in range(4)] for w in windows}
    assert max(length * stride for _, _, length, stride in source.reads) <= 12


def test_batches_have_one_frame_size():
    source = Numbered([5, 5, 5, 5], [(4, 4), (4, 4), (2, 8), (4, 4)])
    windows = [Window(k, 0, 5) for k in range(4)]
    stream = WindowStream(source, windows, Geometry(2, 1), batch_size=3, workers=0, failures=Failures("error", 4))
    assert [(len(found), tuple(clips.shape[2:4])) for found, clips in stream] == [(2, (4, 4)), (1, (2, 8)), (1, (4, 4))]


def test_the_center_is_in_the_middle():
    windows = windows_of(Numbered([20, 10]), Geometry(4, 2), Failures("error", 2), center=True, step=None)
    assert windows == [Window(0, 6, 20), Window(1, 1, 10)]


def test_windows_are_those_of_the_official_code():
    """Half overlapping, T/2 - 1 apart; before a short video its first frame is repeated, one of half a clip is out."""
    geometry = Geometry(32, 1)
    assert geometry.starts(100, center=False, step=None) == [0, 15, 30, 45, 60]  # 68 are available
    assert geometry.starts(100, center=False, step=32) == [0, 32, 64]
    assert geometry.starts(32, center=False, step=None) == [0] == geometry.starts(32, center=True, step=None)
    assert geometry.starts(101, center=True, step=None) == [34]
    assert geometry.starts(18, center=False, step=None) == [-14]
    with pytest.raises(DataError, match="17 frames") as caught:
        geometry.starts(17, center=False, step=None)
    assert caught.value.reason == "too_short"
    short = Window(0, Geometry(32, 1).starts(20, center=True, step=None)[0], 20).frames(geometry).tolist()
    assert short == [0] * 12 + list(range(20))
    assert Geometry(8, 6).starts(300, center=False, step=None) == list(range(0, 253, 23))


def test_views_that_need_more_repeat_the_last_frame_and_move_no_window():
    alone, more = Geometry(4, 2), Geometry(4, 2, context=1)
    for length in (7, 8, 9, 20):
        for center in (True, False):
            starts = alone.starts(length, center=center, step=None)
            assert starts == more.starts(length, center=center, step=None)
    assert Window(0, 12, 20).frames(more).tolist() == [12, 14, 16, 18, 19]
    source = Numbered([20])
    windows = [Window(0, 12, 20), Window(0, 0, 20)]
    assert frames_of(source, more, windows) == {(0, 12): [12, 14, 16, 18, 19], (0, 0): [0, 2, 4, 6, 8]}


def test_a_short_video_with_a_stride_repeats_its_first_frame():
    geometry, source = Geometry(5, 2), Numbered([8])
    (window,) = windows_of(source, geometry, Failures("error", 1), center=True, step=None)
    assert window.start == -2 and frames_of(source, geometry, [window]) == {(0, -2): [0, 0, 2, 4, 6]}
    odd = Window(0, -3, 5)
    assert frames_of(Numbered([5]), geometry, [odd]) == {(0, -3): [0, 0, 1, 3, 4]}


def test_failures_are_counted_by_reason_and_the_limit_is_for_unreadable_ones():
    source = Numbered([20, None, 13, 20])
    failures = Failures("skip", 200)
    failures.meet(failed("too_short"), 0)
    failures.meet(failed("too_short"), 3)
    failures.meet(failed("too_short"), 4)
    windows = windows_of(source, Geometry(4, 1), failures, center=True, step=None)
    assert [w.index for w in windows] == [0, 2, 3]
    found = frames_of(source, Geometry(4, 1), windows, failures=failures)
    assert sorted(index for index, _ in found) == [0, 3]
    assert failures.counts() == {"too_short": 3, "decode_error": 1, "open_failed": 1}
    with pytest.raises(DataError, match="more than 1%"):
        failures.meet(failed("zero_frames"), 5)


def test_an_error_stops_where_all_are_needed():
    with pytest.raises(DataError):
        windows_of(Numbered([None]), Geometry(4, 1), Failures("error", 1), center=True, step=None)
    with pytest.raises(DataError):
        frames_of(Numbered([13]), Geometry(4, 1), [Window(0, 0, 13)])
