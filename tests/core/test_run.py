"""The run folder: whose its files are, what a resume believes, what a finished run still says."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from effvl_cli.core import run_files
from effvl_cli.core.cache import Cache
from effvl_cli.core.errors import StorageError, UsageError
from effvl_cli.core.files import write_csv, write_json, write_text
from effvl_cli.core.run import Run
from effvl_cli.core.run_files import clear, registered, remove_half_written
from tests.core.test_report import draft

LINE = ("pretrain", "--method", "supervised", "--model", "cifar-resnet:8,width=4", "--steps", 2, "--batch-size", 8)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run", "pretrain", torch.device("cpu"), Cache(tmp_path / "cache"), draft())


@pytest.fixture
def line(image_folder):
    return (*LINE, "--data", f"folder:{image_folder}", "--out", "run")


def test_what_a_run_registers_is_what_a_fresh_start_deletes(run):
    run.write("costs.json", write_json, {"a": 1})
    run.write("table.csv", write_csv, ["a", "b"], [{"a": 1, "c": 3}, {"a": 2, "b": None}])
    run.plot("curve", lambda path: write_text(path, "picture"))
    run.save_model({"w": torch.zeros(2)}, {"kind": "x"})
    (run.path("checkpoints") / "train").mkdir(parents=True)
    (run.folder / "checkpoints" / "train" / "state.pt").touch()
    assert (run.folder / "table.csv").read_text() == "a,b\n1,\n2,\n"
    assert [path.name for path in run.plots()] == ["curve.png"]
    names = [artifact.path for artifact in run.report.finish("completed").artifacts]
    assert names == ["costs.json", "table.csv", "plots/curve.png", "checkpoint.safetensors"]
    (run.folder / "notes.txt").write_text("mine")
    (run.folder / ".costs.json-x1y2").touch()  # what a kill leaves of a write
    run.path("../outside")  # a register that was tampered with
    (run.folder.parent / "outside").touch()
    clear(run.folder)
    assert [path.name for path in run.folder.iterdir()] == ["notes.txt"]
    assert (run.folder.parent / "outside").exists()


def test_what_kills_leave_of_writes_goes_with_the_next_attempt(run):
    run.write("costs.json", write_json, {"a": 1})
    steps = run.path("checkpoints") / "train"
    (steps / "step-00000002").mkdir(parents=True)
    (steps / ".step-00000004-a1b2_c3d").mkdir()
    (steps / ".step-00000004-a1b2_c3d" / "state.pt").touch()
    for name in (".costs.json-x1y2z3_4", "checkpoints/.phases.json-abcdefgh", ".notes-abcdefgh", ".costs.json-mine"):
        (run.folder / name).touch()
    remove_half_written(run.folder)
    left = sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*"))
    assert left == [
        *(".costs.json-mine", ".files", ".notes-abcdefgh", "checkpoints", "checkpoints/train"),
        *("checkpoints/train/step-00000002", "costs.json"),
    ]


def test_a_manifest_tells_the_figures_so_far(run):
    run.report.metric("top1", 0.5, split="test", n=10, se=0.1)
    run.save_model({"w": torch.zeros(2)}, {"kind": "x"})
    from effvl_cli.core.checkpoint import load_model

    manifest = load_model(run.folder / "checkpoint.safetensors")[1]
    assert manifest["figures"] == {"top1": {"value": 0.5, "n": 10, "se": 0.1}} and manifest["run"] == "x"


def test_only_the_first_process_writes(run, monkeypatch):
    monkeypatch.setattr(run_files.distributed, "is_main", lambda: False)
    assert run.write("costs.json", write_json, {}) is None
    run.save_model({"w": torch.zeros(2)}, {})
    assert run.path("table.csv") == run.folder / "table.csv"
    assert not run.folder.exists() and not run.report.finish("completed").artifacts


def test_every_file_of_a_job_is_registered(effvl, line, report):
    done = effvl(*line)
    assert done.code == 0, done.err
    folder = Path("run")
    known = registered(folder)
    assert len(known) == len(set(known))
    left = {path.name for path in folder.iterdir()} - {name.partition("/")[0] for name in known}
    assert left == {".lock", run_files.REGISTER}
    Path("run/plots").mkdir(exist_ok=True)
    Path("run/mine.txt").touch()
    assert effvl(*line, "--seed", 1, "--fresh").code == 0
    done = report("run")
    assert done.seed == 1 and done.resume.count == 0 and Path("run/mine.txt").exists()


def test_an_interrupted_fresh_start_leaves_no_checkpoint_to_resume(effvl, line, report):
    assert effvl(*line).code == 0
    Path("run/config.yaml").unlink()  # deleted first; the checkpoints of the old run are still there
    assert effvl(*line, "--seed", 1).code == 0
    assert report("run").resume.steps_done_before == 0


@pytest.mark.parametrize("part", [0.0, 0.3, 0.97])
def test_half_a_config_is_called_damaged(effvl, line, part):
    assert effvl(*line).code == 0
    text = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(text[: int(part * len(text))])
    outcome = effvl(*line)
    assert outcome.code == 2 and "config.yaml is damaged or incomplete. Give --fresh" in outcome.error
    assert effvl(*line, "--fresh").code == 0


def test_a_damaged_result_is_shown_with_a_warning(effvl, line):
    assert effvl(*line).code == 0
    path = Path("run/checkpoint.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    outcome = effvl(*line)
    assert outcome.code == 0 and "finished before" in outcome.err
    assert "warning: run/checkpoint.safetensors is damaged or has been changed" in outcome.err
    path.unlink()
    assert "warning: run/checkpoint.safetensors is missing" in effvl(*line).err


def test_changed_data_are_refused_by_a_finished_run_and_by_a_resume(effvl, line, image_folder):
    assert effvl(*line).code == 0
    victim = image_folder / "test" / "red_thing" / "img0.jpg"
    about = victim.stat()
    data = victim.read_bytes()
    shutil.copy(image_folder / "test" / "blue_thing" / "img0.jpg", victim)
    refusal = f"the data of run have changed since it read them (test of folder:{image_folder})"
    for _ in ("finished", "unfinished"):
        outcome = effvl(*line)
        assert outcome.code == 2 and refusal in outcome.error and "--fresh" in outcome.error
        Path("run/report.json").unlink(missing_ok=True)
    victim.write_bytes(data)
    os.utime(victim, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert effvl(*line).code == 0
    victim.write_bytes(data)  # the same bytes, written again later: what is known of them has changed
    os.utime(victim, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert effvl(*line).code == 2
    assert effvl(*line, "--fresh").code == 0 and effvl(*line).code == 0


def test_a_result_outlives_its_data(effvl, line, image_folder):
    assert effvl(*line).code == 0
    shutil.rmtree(image_folder)
    outcome = effvl(*line)
    assert outcome.code == 0 and "warning: no longer there" in outcome.err


def test_a_fresh_start_without_data_leaves_the_former_result(effvl, line, image_folder):
    assert effvl(*line).code == 0
    before = Path("run/report.json").read_bytes()
    shutil.rmtree(image_folder)
    assert effvl(*line, "--fresh").code == 3
    assert Path("run/report.json").read_bytes() == before and Path("run/checkpoint.safetensors").is_file()


def test_a_full_disk_has_its_own_code(effvl, line, monkeypatch):
    fsync = os.fsync

    def full(handle):
        if "model" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        outcome = effvl(*line)
    assert outcome.code == 9 and "no space left on device" in outcome.error and "Free some space" in outcome.error
    assert effvl(*line).code == 0


def test_a_full_disk_that_no_line_of_ours_noticed_is_no_internal_error(effvl, line, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")

    monkeypatch.setattr("effvl_cli.core.loop.fit", full)
    outcome = effvl(*line)
    assert outcome.code == 9 and "internal" not in outcome.error and "/tmp/x" in outcome.error


def test_an_unwritable_cache_names_its_option(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="or give another --cache-dir"):
        Cache(tmp_path / "file").entry("rankings", {})


def test_a_folder_that_does_not_say_what_is_the_runs_is_not_cleared(effvl, line):
    assert effvl(*line).code == 0
    (Path("run") / run_files.REGISTER).unlink()
    outcome = effvl(*line, "--fresh")
    assert outcome.code == 2 and "does not list the files of its run" in outcome.error
    assert UsageError.exit_code == 2


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_a_name_does_not_lead_out_of_the_runs(effvl, image_folder, tmp_path, extra):
    outcome = effvl(*LINE, "--data", f"folder:{image_folder}", "--name", "../../esc", *extra)
    assert outcome.code == 2 and "--name ../../esc leads out of runs/" in outcome.error
    assert not Path("../esc").exists() and not Path("esc").exists()


def test_a_run_folder_that_cannot_be_written_has_the_code_of_the_disk(effvl, line, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.mkdir", refused)
        outcome = effvl(*line)
    assert outcome.code == 9 and "run folder run: Permission denied" in outcome.error and "--out" in outcome.error
    Path("run").touch()
    outcome = effvl(*line)
    assert outcome.code == 2 and "--out" in outcome.error


def test_a_run_that_failed_before_it_computed_anything_gives_way_to_the_corrected_command(effvl, line, report):
    assert effvl(*line, "--weights", "none.pt").code == 4
    assert report("run").status == "failed"
    assert effvl(*line, "--weights", "other.pt").code == 4
    outcome = effvl(*line)
    assert outcome.code == 0, outcome.err
    assert report("run").status == "completed" and report("run").resume.count == 0
    outcome = effvl(*line, "--weights", "none.pt")
    assert outcome.code == 2 and "holds a run with other options" in outcome.error


def test_a_run_that_failed_with_something_to_keep_does_not_give_way(effvl, line):
    assert effvl(*line, "--weights", "none.pt").code == 4
    with Path("run/.files").open("a") as file:
        file.write("costs.json\n")
    Path("run/costs.json").write_text("{}")
    outcome = effvl(*line)
    assert outcome.code == 2 and "holds a run with other options" in outcome.error
    assert Path("run/costs.json").exists()


def test_mended_data_are_taken_by_the_same_command(effvl, line, image_folder, report):
    bad = image_folder / "train" / "red_thing" / "bad.jpg"
    bad.write_bytes(b"no picture")
    outcome = effvl("prune-tokens", "rank", *line[-4:], "--shots", "all", "--force")
    assert outcome.code == 3 and "bad.jpg" in outcome.error
    bad.unlink()
    outcome = effvl("prune-tokens", "rank", *line[-4:], "--shots", "all", "--force")
    assert outcome.code == 0, outcome.err
