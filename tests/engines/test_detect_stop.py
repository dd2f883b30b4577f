"""Requests to stop while `detect` looks at many files or compares them: real processes and signals."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from effvl_cli.core.errors import Preempted
from effvl_cli.engines.detect.coco_eval import evaluate
from tests.engines.coco_files import write_coco
from tests.processes import some, stop_when

COUNT = 1000


@pytest.fixture
def many(workdir) -> Path:
    """A set of many images, which are links to one of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    write_coco(workdir / "set", {"train": [{"file_name": "0.png", "pixels": pixels}]})
    content = json.loads((workdir / "set" / "train.json").read_text())
    (image,), (box,) = content["images"], content["annotations"]
    for number in range(1, COUNT):
        name = f"{number}.png"
        (workdir / "set" / "images" / name).symlink_to("0.png")
        content["images"].append(image | {"id": number + 1, "file_name": name})
        moved = [10 + 7 * (number % 19), 10 + 9 * (number // 19 % 11), 6, 6]  # so that the label guard keeps some
        content["annotations"].append(box | {"id": number + 1, "image_id": number + 1, "bbox": moved})
    (workdir / "set" / "train.json").write_text(json.dumps(content))
    return workdir


# each image is compared with the two hundred that are kept, twice
SEARCH = ("dedup", "--whole", "--scope", "all", "--signature", "ncc", "--keep", 0.5, "--max-gap", 0)
LINES = {
    "search": (SEARCH, "cache/frames/*/*", signal.SIGINT, 130),
    "check": (("convert", "--split", "train", "--check-only"), "r/config.yaml", signal.SIGTERM, 75),
}


@pytest.mark.parametrize("name", LINES)
def test_a_signal_ends_the_process_soon(many, name):
    words, begun, number, code = LINES[name]
    line = ("detect", *words, "--data", "coco:set", "--cache-dir", "cache", "--out", "r")
    found, output = stop_when(some(many, begun), number, *line)
    assert found == code, output
    assert f"stopped by {signal.Signals(number).name}" in output


def test_figures_of_parts_are_stopped_between_them():
    asked = []

    def stop():
        asked.append(1)
        if len(asked) == 3:
            raise Preempted("stop")

    with pytest.raises(Preempted):
        evaluate([], [], 1, {"a": [], "b": [], "c": []}, stop)
    assert len(asked) == 3
