"""`cpr-mine embed --cache-views` on video files through the real command: motion is found once."""

from pathlib import Path

import numpy as np

from effvl_cli.models import network as networks
from effvl_cli.models.clip_encoders import ClipInput, save_encoder
from tests.data.video_files import write_video


def test_the_second_run_reads_what_the_first_has_kept(here, tmp_path, monkeypatch):
    calls = []

    def by_hand(frames):  # stands for OpenCV: the change of the mean grey
        calls.append(len(frames))
        means = frames[..., :3].float().mean((2, 3, 4))
        return (means[:, 1:] - means[:, :-1])[:, None, :, None, None].expand(-1, 2, -1, *frames.shape[2:4])

    monkeypatch.setattr("effvl_cli.data.video_views.clip_flow", lambda method, file: by_hand)
    rng = np.random.default_rng(0)
    for name in ("a/one.mkv", "b/two.mkv"):
        write_video(Path("v", name), rng.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8))
    network = networks.build("tiny3d", seed=1)
    save_encoder(tmp_path / "dis", network, ClipInput("flow:dis", 6, size=20, crop=20))
    weights = ("--weights", f"flow:dis={tmp_path / 'dis'}")
    line = ("cpr-mine", "embed", *weights, "--data", "video:v", "--split", "train", "--windows", "center")
    kept = ("--cache-views", "--cache-dir", tmp_path / "kept", "--fresh")
    first = here(*line, *kept, "--out", "first")
    assert "motion of 2 videos" in first.err and calls
    assert len(list((tmp_path / "kept").rglob("clip-views/*/*.u8.npz"))) == 2
    calls.clear()
    second = here(*line, *kept, "--out", "second")
    assert not calls and "motion of" not in second.err
    rows = [np.load(next(Path(run).rglob("flow*.npy"))) for run in ("first", "second")]
    assert rows[0].shape[0] == 2 and np.array_equal(*rows) and not np.array_equal(rows[0][0], rows[0][1])
