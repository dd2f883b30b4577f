"""The wheel: built, installed and used outside the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_works_where_there_is_no_checkout(workdir, tmp_path):
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    build = (*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, ROOT)
    subprocess.run(build, check=True)
    [wheel] = wheels.glob("effvl-*.whl")
    subprocess.run((*pip, "install", "--no-deps", "--no-index", "--target", site, wheel), check=True)

    def effvl(*words):
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "effvl_cli", *words], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import effvl_cli; print(effvl_cli.__file__)"
    shown = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, env={"PYTHONPATH": str(site)})
    assert Path(shown.stdout.strip()).is_relative_to(site)
    listed = effvl("list", "recipes")
    assert "prune-tokens/vit-b16-dtd" in listed and "tables/pretrain-in1k" in listed
    assert "0 done" in effvl("sweep", "tables/prune-tokens", "--dry-run")
    effvl("pretrain", "--recipe", "supervised-digits", "--epochs", "1", "--out", "run")
    assert str(site) in Path("run/report.json").read_text()  # the recipe was the wheel's own
