"""Report, metrics, cache, files."""

import json
import math
from pathlib import Path

import pytest
import torch

from effvl_cli.core import metrics, report
from effvl_cli.core.cache import Cache, default_root
from effvl_cli.core.errors import EffvlError, ModelError
from effvl_cli.core.files import atomic_folder, write_bytes, write_json
from effvl_cli.core.report import ReportBuilder, read_report, schema, write


def draft() -> ReportBuilder:
    return ReportBuilder(
        command="prune-tokens eval", run_id="x", seed=3, config_sha256="ab", recipe=None, device=torch.device("cpu")
    )


def test_the_shipped_schema_is_that_of_the_code():
    shipped = json.loads((Path(report.__file__).parent / "report.schema.json").read_text())
    assert shipped == schema()


def test_a_report_is_read_back_as_it_was_written(tmp_path):
    d = draft()
    d.metric("top1", 0.5, split="test", n=10, se=0.1)
    d.technique["rows"] = [{"a": 1.0, "b": None}]
    d.resume(1, 40)
    d.resume(1, 2)
    done = d.finish("completed")
    write(done, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == done
    assert done.resume.count == 1 and done.resume.steps_done_before == 42


def test_what_is_not_finite_becomes_null(tmp_path):
    d = draft()
    d.metric("bad", float("nan"))
    d.metric("fine", 0.5, se=float("nan"))
    d.technique["deep"] = {"x": [math.inf, 1]}
    done = d.finish("failed", "reason")
    write(done, tmp_path / "report.json")
    text = json.loads((tmp_path / "report.json").read_text())
    assert text["metrics"]["bad"]["value"] is None
    assert text["technique"]["deep"]["x"] == [None, 1]
    assert text["metrics"]["fine"] | {"value": 0.5, "se": None} == text["metrics"]["fine"]
    assert text["warnings"] == ["bad is not finite", "fine.se is not finite", "technique.deep.x is not finite"]


def test_published_figures_stand_beside_ours():
    d = draft()
    d.reference(
        {"expected": [{"metric": "top1", "value": "0.52", "tolerance": "0.03"}, {"metric": "other", "value": "null"}]}
    )
    d.metric("top1", 0.5)
    first, second = d.finish("completed").comparison
    assert (first.expected, first.actual, first.within) == (0.52, 0.5, True)
    assert (second.expected, second.actual, second.within) == (None, None, None)


def test_another_schema_is_refused(tmp_path):
    (tmp_path / "report.json").write_text('{"schema_version": 1}')
    with pytest.raises(ModelError, match="not a report of this version"):
        read_report(tmp_path / "report.json")


def test_accuracy_figures_by_hand():
    a, b = torch.tensor([1.0, 1, 1, 0, 0]), torch.tensor([1.0, 0, 0, 1, 0])
    assert metrics.standard_error(a) == pytest.approx(math.sqrt(0.3 / 5))
    mean, se = metrics.paired_difference(a, b)  # differences 0 1 1 -1 0
    assert (mean, se) == pytest.approx((0.2, math.sqrt(0.7 / 5)))
    assert metrics.mcnemar(a, b) == (2, 1)
    low, high = metrics.wilson(8, 10)  # by the closed form with z = 1.96
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert metrics.wilson(0, 0) == (0.0, 1.0)
    logits = torch.tensor([[3.0, 2, 1], [1, 2, 3]])
    assert metrics.top_k(logits, torch.tensor([1, 1]), 1).tolist() == [0, 0]
    assert metrics.top_k(logits, torch.tensor([1, 1]), 2).tolist() == [1, 1]


def test_the_mean_over_classes_weighs_each_class_alike():
    correct, labels = torch.tensor([1, 1, 0, 0, 1]), torch.tensor([7, 7, 7, 2, 2])
    assert metrics.mean_per_class(correct, labels) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_cache_is_keyed_by_content_and_survives_damage(tmp_path):
    cache, warnings = Cache(tmp_path), []
    entry = cache.entry("rankings", {"layer": 1, "grid": [2, 2]})
    assert cache.entry("rankings", {"grid": [2, 2], "layer": 1}) == entry
    assert cache.entry("rankings", {"grid": [2, 2], "layer": 0}) != entry
    assert json.loads((entry.folder / "key.json").read_text()) == {"layer": 1, "grid": [2, 2]}
    entry.save("a", {"x": torch.arange(8)[::2]})
    assert entry.load("a", warnings.append)["x"].tolist() == [0, 2, 4, 6]
    path = entry.folder / "a.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    assert entry.load("a", warnings.append) is None
    assert "damaged" in warnings[0] and not path.exists() and entry.load("a", warnings.append) is None


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "f.json"
    write_json(target, {"old": 1})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EffvlError, match="no space left on device; what was saved before is untouched"):
        write_bytes(target, b"new")
    assert json.loads(target.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["f.json"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "step"
    for text in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / "f").write_text(text)
    assert (target / "f").read_text() == "new"
    with pytest.raises(EffvlError, match="no space left"), atomic_folder(target) as folder:
        (folder / "f").write_text("half")
        raise OSError(28, "No space left on device")
    assert (target / "f").read_text() == "new" and [p.name for p in tmp_path.glob("*step*")] == ["step"]


def test_the_former_folder_is_whole_until_the_new_one_stands(tmp_path, monkeypatch):
    target = tmp_path / "step"
    with atomic_folder(target) as folder:
        (folder / "f").write_text("old")
    seen = []
    rename = Path.rename

    def watched(self, to):
        done = rename(self, to)
        seen.append(sorted(p.read_text() for p in tmp_path.rglob("f")))
        return done

    monkeypatch.setattr(Path, "rename", watched)
    with atomic_folder(target) as folder:
        (folder / "f").write_text("new")
    assert seen == [["new", "old"], ["new", "old"]]

    def broken(self, to):
        if Path(to) == target and not self.name.endswith("-former"):
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(EffvlError, match="input/output error"), atomic_folder(target) as folder:
        (folder / "f").write_text("newer")
    assert (target / "f").read_text() == "new" and [p.name for p in tmp_path.glob("*step*")] == ["step"]


def test_cache_root(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("EFFVL_CACHE", "/e")
    assert default_root() == Path("/e")
    monkeypatch.setenv("EFFVL_CACHE", "")  # as good as not set
    assert default_root() == Path("/x/effvl")


def test_one_class_only_is_said():
    class Source:
        name, split, classes, remark, endless = "folder:x", "test", ("cat",), "", True

        def fingerprint(self):
            return "1"

    d = draft()
    d.data(Source())
    assert d.warnings == ["folder:x has only one class, 'cat': its accuracies are meaningless"]
