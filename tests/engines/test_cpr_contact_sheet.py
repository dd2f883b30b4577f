"""Contact sheets show what each stage of the cascade ranks first."""

import numpy as np
import pytest
import torch

from effvl_cli.core.cache import Cache
from effvl_cli.core.report import ReportBuilder
from effvl_cli.core.run import Run
from effvl_cli.engines.cpr_mine import contact_sheet
from effvl_cli.engines.cpr_mine.contact_sheet import SHOWN, SIDE, draw_sheets, thumbnail
from effvl_cli.techniques.cpr_mine.forbid import Forbid
from effvl_cli.techniques.cpr_mine.stages import Stage


@pytest.fixture
def run(tmp_path):
    device = torch.device("cpu")
    report = ReportBuilder(command="x", run_id="", seed=0, config_sha256="", recipe=None, device=device)
    return Run(tmp_path / "run", "x", device, Cache(tmp_path), report)


def at_angles(*degrees):
    angles = torch.tensor(degrees) / 180 * torch.pi
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_rows_are_the_stages_in_their_own_order(run, monkeypatch):
    """Flow ranks 1, 2, 3 beside sample 0; RGB ranks 2 before 1, and would take 4 first."""
    bank = {"flow": at_angles(0.0, 5, 10, 20, 90, 120), "rgb": at_angles(0.0, 30, 10, 60, 1, 90)}
    drawn = {}

    def keep(path, images, captions, *, title, columns):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        drawn[path.name] = (images[:, 0, 0, 0].reshape(-1, columns).tolist(), captions, title)

    monkeypatch.setattr(contact_sheet, "captioned_images", keep)
    monkeypatch.setattr(contact_sheet, "SHEETS", 6)
    ids = torch.arange(6)
    draw_sheets(
        run,
        lambda index: np.full((30, 40, 3), index, np.uint8),
        bank,
        [Stage("flow", 3), Stage("rgb", 2)],
        forbid=Forbid(query_ids=ids, bank_ids=ids),
        labels=np.array([0, 1, 0, -1, 0, 0]),
        classes=("walk", "run"),
    )
    assert sorted(drawn) == [f"positives-{number}.png" for number in range(1, 7)]
    pictures, captions, _ = next(sheet for sheet in drawn.values() if sheet[2].startswith("Query 0 "))
    white = 255
    assert pictures == [[0, 1, 2, 3, *[white] * (SHOWN - 3)], [0, 2, 1, *[white] * (SHOWN - 2)]]
    assert captions[: SHOWN + 1] == ["1. flow: best of 3\nwalk", "#1 other\nrun", "#2 same\nwalk", "#3", "", "", "", ""]
    assert captions[SHOWN + 1 : SHOWN + 4] == ["2. rgb: best of 2\nwalk", "#1 same\nwalk", "#2 other\nrun"]


def test_a_picture_is_really_drawn(run, drawn):
    bank = {"rgb": torch.eye(4)}
    draw_sheets(run, lambda index: np.full((8, 8, 3), 60 * index, np.uint8), bank, [Stage("rgb", 2)])
    assert [path.name for path in run.plots()] == ["positives-1.png", "positives-2.png", "positives-3.png"]
    assert run.plots()[0].read_bytes().startswith(b"\x89PNG")


def test_a_thumbnail_is_the_square_in_the_middle():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = 200
    found = thumbnail(image)
    assert found.shape == (SIDE, SIDE, 3) and (found == 200).all()
    small = thumbnail(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    assert (
        small.shape == (SIDE, SIDE, 3) and small[0, 0].tolist() == [0, 1, 2] and small[-1, -1].tolist() == [9, 10, 11]
    )
