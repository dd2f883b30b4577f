"""`effvl data check`: what there is, what is missing, and the exit code."""

from tests.data import layouts


def _row(outcome, split):
    (line,) = (line for line in outcome.out.splitlines() if line.startswith(f"{split} "))
    return line.split()


def test_a_usable_data_set(effvl, tmp_path):
    layouts.oxford_pets(tmp_path / "oxford_pets")
    outcome = effvl("data", "check", "oxford_pets", "--data-root", tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert _row(outcome, "train")[:4] == ["train", "24", "2944", "3"]
    assert _row(outcome, "test")[:8] == ["test", "15", "3669", "3", "15", "of", "3669", "images:"]
    assert "not comparable with published figures" in outcome.out
    assert (
        f"found in {tmp_path}/oxford_pets, divided by annotations/trainval.txt and annotations/test.txt" in outcome.out
    )


def test_a_split_with_absent_images_is_shown_beside_the_others(effvl, tmp_path):
    layouts.dtd(tmp_path / "dtd")
    (tmp_path / "dtd" / "images" / "banded" / "banded_0009.jpg").unlink()
    outcome = effvl("data", "check", "dtd", "--data-root", tmp_path)
    assert outcome.code == 3
    assert _row(outcome, "train")[1] == "12" and "not usable" in " ".join(_row(outcome, "test"))
    assert "1 of 12 images are not in" in outcome.error and "banded/banded_0009.jpg" in outcome.error


def test_one_that_is_not_there(effvl, tmp_path, workdir):
    outcome = effvl("data", "check", "food101")
    assert outcome.code == 3
    assert "no food101 under .: food-101 is missing" in outcome.error and "meta/train.json" in outcome.error
    assert outcome.out.count("food-101 is missing") == 1  # said once, not per split


def test_other_sources_can_be_checked_too(effvl, image_folder):
    outcome = effvl("data", "check", "folder:pictures", "--data-root", image_folder.parent)
    assert outcome.code == 0 and _row(outcome, "val") == ["val", "8", "-", "2", "ok"]
    assert _row(effvl("data", "check", "shape-captions"), "train")[1] == "endless"


def test_words_that_mean_nothing(effvl):
    assert effvl("data", "check", "oxford_pet").code == 2
    assert "Did you mean 'oxford_pets'" in effvl("data", "check", "oxford_pet").error
    assert effvl("data", "show", "dtd").code == 2


def test_a_report_repeats_that_figures_do_not_compare(effvl, report, tmp_path):
    layouts.eurosat(tmp_path / "eurosat")
    outcome = effvl(
        *("pretrain", "--method", "supervised", "--data", "eurosat", "--data-root", tmp_path, "--steps", 2),
        *("--batch-size", 4, "--name", "sat", "--workers", 0),
    )
    assert outcome.code == 0, outcome.err
    assert any("not comparable" in warning for warning in report("runs/pretrain/sat").warnings)
