"""What a user meets first: few items, a text file, a run without embeddings, and videos without splits."""

from pathlib import Path

import numpy as np
import pytest

from tests.engines import few_clips


def test_fewer_stages_where_seven_would_keep_too_little(effvl, report):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(f"{name}.npy", rng.normal(size=(60, 8)).astype(np.float32))
    done = effvl("cpr-mine", "mine", "--features", "a.npy,b.npy", "--top-k", 3, "--out", "r")
    assert done.code == 0, done.err
    assert [stage["n"] for stage in report("r").technique["stages"]] == [30, 15, 7, 3, 3]  # 60 / 2 .. 60 / 16, and k
    refused = effvl("cpr-mine", "mine", "--features", "a.npy,b.npy", "--top-k", 3, "--num-stages", 7, "--out", "s")
    assert refused.code == 2 and "E_STAGE_SIZE" in refused.error


def test_more_positives_than_items_and_queries_with_too_few(effvl):
    rng = np.random.default_rng(0)
    np.save("a.npy", rng.normal(size=(20, 4)).astype(np.float32))
    np.save("g.npy", np.array([0] * 17 + [1, 2, 3]))
    line = ("cpr-mine", "mine", "--features", "a.npy,a.npy", "--view-names", "a,b", "--num-stages", 1)
    refused = effvl(*line, "--top-k", 20)
    assert refused.code == 2 and "20 positives of 19 candidates" in refused.error and "at most 19" in refused.error
    done = effvl(*line, "--top-k", 4, "--groups", "g.npy", "--out", "r")
    assert done.code == 0 and "17 queries have fewer positives than were asked for" in done.out


def test_fixed_positives_and_a_cascade_are_refused(effvl):
    Path("p.npz").write_bytes(b"")
    done = effvl("cpr-mine", "train", "--positives", "p.npz", "--cascade", "rgb:5", "--steps", 1)
    assert done.code == 2 and "--cascade mines positives, and --positives gives them" in done.error


def test_a_text_file_is_no_array(effvl):
    Path("a.npy").write_text("1 2 3\n")
    done = effvl("cpr-mine", "mine", "--features", "a.npy,a.npy", "--view-names", "a,b")
    assert done.code == 3 and "does not begin as such a file does" in done.error and "unsafe" not in done.error


def test_a_folder_without_embeddings_says_what_writes_them(effvl):
    Path("run").mkdir()
    done = effvl("cpr-mine", "mine", "run")
    assert done.code == 4 and "See effvl cpr-mine mine --help for what writes one" in done.error
    done = effvl("cpr-mine", "mine", "rum")
    assert done.code == 4 and "there is no run folder rum" in done.error
    assert "of `cpr-mine embed` or" in " ".join(effvl("cpr-mine", "mine", "--help").out.replace("│", " ").split())


def test_test_videos_that_are_training_videos_are_refused(effvl, monkeypatch):
    few_clips.register(monkeypatch)
    monkeypatch.setattr(few_clips.FewClips, "__init__", _same_ids(few_clips.FewClips.__init__))
    line = ("cpr-mine", "eval", "--weights", "rgb=none", "--model", "tiny3d", "--frames", 8, "--image-size", 20)
    done = effvl(*line, "--data", few_clips.NAME)
    assert done.code == 3 and "16 of the 16 test videos of few-clips are training videos too" in done.error


def _same_ids(original):
    def build(self, argument, split):
        original(self, argument, split)
        self.ids = [f"v{k:03d}" for k in range(len(self.labels))]

    return build


@pytest.fixture(autouse=True)
def here(workdir):
    return workdir
