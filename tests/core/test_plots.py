"""What a picture must show, asked of the drawn objects."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from effvl_cli.core.plots import (
    Costed,
    _draw_curves,
    captioned_images,
    curves,
    fronts,
    heat_maps,
    image_grid,
    matrix,
    paired_bars,
)

pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def _widths(axes):
    """Of the line and of the markers, by the curves' names."""
    return {
        drawn.get_label(): (drawn.lines[0].get_linewidth(), drawn.lines[0].get_markersize())
        for drawn in axes.containers
    }


def test_a_curve_under_an_equal_one_stays_visible(axes):
    line = [(0.2, 90.0, 0.5), (0.4, 95.0, 0.5), (0.6, 97.0, 0.5)]
    other = [(x, y - 40, e) for x, y, e in line]
    almost = [(x, y + 0.1, e) for x, y, e in line]
    _draw_curves(axes, {"below": line, "apart": other, "same": list(reversed(line)), "almost": almost})
    found = _widths(axes)
    assert found["below"] > found["same"] > found["almost"] == found["apart"]
    assert all(found["below"][k] >= found["same"][k] + 2 for k in (0, 1))


def test_curves_that_only_cross_are_drawn_alike(axes):
    rising, falling = [(0.0, 0.0, 0), (1.0, 50.0, 0), (2.0, 100.0, 0)], [(0.0, 100.0, 0), (1.0, 50.0, 0), (2.0, 0.0, 0)]
    _draw_curves(axes, {"rising": rising, "falling": falling, "empty": []})
    assert len(set(_widths(axes).values())) == 1


def test_points_of_a_front_have_error_bars(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("effvl_cli.core.plots._write", lambda figure, path: drawn.append(figure))
    points = [Costed(1.0, 90.0, "a", 0.5, (0.5, 3.0)), Costed(2.0, 95.0, "b", 0.25, (2.0, 2.0))]
    fronts(tmp_path / "x.png", {"cost": points}, title="", ylabel="")
    [axes] = drawn[0].axes
    across, along = ([c.lines[2][k].get_segments()[0][:, k].tolist() for c in axes.containers] for k in (0, 1))
    assert across == [[0.5, 3.0], [2.0, 2.0]] and along == [[89.5, 90.5], [94.75, 95.25]]


def test_equal_points_stand_side_by_side(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("effvl_cli.core.plots._write", lambda figure, path: drawn.append(figure))
    line = [(0.0, 90.0, 0.5), (0.3, 95.0, 0.5), (0.5, 100.0, 0.0)]
    words = {"title": "", "xlabel": "", "ylabel": ""}
    curves(tmp_path / "x.png", {"a": line, "b": line, "c": line}, apart=True, **words)
    [axes] = drawn[0].axes
    found = [container.lines[0].get_xdata().tolist() for container in axes.containers]
    # 0.15 of the smallest step, 0.2
    assert found == [pytest.approx([x + shift for x, _, _ in line]) for shift in (-0.03, 0.0, 0.03)]
    assert axes.get_legend() is None and len(drawn[0].legends) == 1  # beside the picture
    many = {str(k): line for k in range(21)}
    curves(tmp_path / "x.png", many, apart=True, **words)
    firsts = [container.lines[0].get_xdata()[0] for container in drawn[1].axes[0].containers]
    assert (firsts[0], firsts[-1]) == pytest.approx((-0.05, 0.05))
    curves(tmp_path / "x.png", {"a": line[:1], "b": line[:1]}, apart=True, **words)  # one x: no step
    curves(tmp_path / "x.png", {"a": line[::2], "b": line[::2]}, apart=True, **words)
    firsts = [container.lines[0].get_xdata()[0] for container in drawn[3].axes[0].containers]
    assert firsts == pytest.approx([-0.015, 0.015])  # of 0.5, where the only step is all there is


def test_numbers_that_are_nearly_equal_have_nearly_one_colour(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("effvl_cli.core.plots._write", lambda figure, path: drawn.append(figure))
    words = {"title": "", "xlabel": "", "ylabel": ""}
    for least in (98.9, 40.0):
        matrix(tmp_path / "x.png", [[least, None], [least, 100.0]], ["a", "b"], **words)
    limits = [figure.axes[0].images[0].get_clim() for figure in drawn]
    assert limits == [(90.0, 100.0), (40.0, 100.0)]


def test_values_of_bars_in_so_many_digits(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("effvl_cli.core.plots._write", lambda figure, path: drawn.append(figure))
    for digits in ({}, {"digits": 0}):
        paired_bars(tmp_path / "x.png", ["g"], {"a": [100.0], "b": [9.0]}, title="", ylabel="", **digits)
    found = [[text.get_text() for text in figure.axes[0].texts] for figure in drawn]
    assert found == [["100.00", "9.00"], ["100", "9"]]


def _overlapping(texts):
    """Pairs of neighbouring texts that cover one another, in the drawn picture."""
    boxes = [text.get_window_extent() for text in texts]
    return [(one, other) for k, one in enumerate(boxes) for other in boxes[k + 1 :] if one.overlaps(other)]


@pytest.mark.parametrize(("groups", "names"), [(8, "right\ncounter-clockwise"), (30, "aquatic mammals"), (1, "g")])
def test_values_over_bars_and_names_below_them_do_not_overlap(groups, names, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("effvl_cli.core.plots._write", lambda figure, path: drawn.append(figure))
    bars = {name: [0.5 + 0.001 * k for k in range(groups)] for name in ("flow", "rgb", "cascade", "cascade rgb")}
    paired_bars(tmp_path / "x.png", [f"{names}{k}" for k in range(groups)], bars, title="", ylabel="")
    drawn[0].canvas.draw()
    [axes] = drawn[0].axes
    assert not _overlapping(axes.texts) and len(axes.texts) == (0 if groups == 30 else 4 * groups)
    labels = axes.get_xticklabels()
    assert labels[0].get_rotation() == 45 if groups == 30 else not _overlapping(labels)
    assert drawn[0].get_figwidth() <= 16


def test_a_long_label_is_wrapped_and_curves_without_errors_have_no_bars(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("effvl_cli.core.plots._write", lambda figure, path: drawn.append(figure))
    stages = ", ".join(f"precomputed:{10**k}" for k in range(7, 0, -1))
    series = {"without": [(1.0, 1.0, 0.0), (2.0, 2.0, 0.0)], "with": [(1.0, 2.0, 0.1), (2.0, 1.0, 0.0)]}
    curves(tmp_path / "x.png", series, title="", xlabel=f"stage ({stages})", ylabel="")
    drawn[0].canvas.draw()
    [axes] = drawn[0].axes
    box = axes.xaxis.label.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= drawn[0].bbox.x1
    assert [container.has_yerr for container in axes.containers] == [False, True]


def test_a_single_map_fills_its_picture_and_names_its_rows(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("effvl_cli.core.plots._write", lambda figure, path: drawn.append(figure))
    names = [f"class {k}" for k in range(30)]
    heat_maps(tmp_path / "x.png", {"rate 0.5": np.eye(30)}, title="", columns=1, names=names)
    heat_maps(tmp_path / "x.png", {"a": np.eye(3), "b": np.eye(3)}, title="", columns=2, names=names[:3])
    for figure in drawn:
        figure.canvas.draw()
    box = drawn[0].axes[0].get_window_extent()
    assert box.width > drawn[0].bbox.width / 2 and box.height > drawn[0].bbox.height / 2
    labels = drawn[0].axes[0].get_yticklabels()
    assert [text.get_text() for text in labels] == names and not _overlapping(labels)
    assert not drawn[1].axes[0].axison


def _plain_pictures(count):
    """Pictures of 6 x 8 px in a colour each, and the colours."""
    colours = np.random.default_rng(0).integers(0, 200, (count, 3)).astype(np.uint8)
    return np.broadcast_to(colours[:, None, None], (count, 6, 8, 3)), colours


def _colours_at(figure, places):
    """Colours at places of the only axes of a drawn figure, in pixels of its picture."""
    figure.canvas.draw()
    [axes] = figure.axes
    rows = np.asarray(figure.canvas.buffer_rgba())
    points = axes.transData.transform(places).round().astype(int)
    return rows[len(rows) - 1 - points[:, 1], points[:, 0], :3]


def test_pictures_of_a_grid_stand_beside_their_labels(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("effvl_cli.core.plots._write", lambda figure, path: drawn.append(figure))
    pictures, colours = _plain_pictures(6)
    names = ["first", "second"], ["a", "b", "c"]
    grid = pictures.reshape(2, 3, 6, 8, 3)
    image_grid(tmp_path / "x.png", grid, title="t", row_labels=names[0], column_labels=names[1])
    [figure] = drawn
    [axes] = figure.axes
    down, across = axes.get_yticks(), axes.get_xticks()
    middles = [(x, y) for y in down for x in across]
    assert (_colours_at(figure, middles) == colours).all()
    between = [((across[0] + across[1]) / 2, down[0]), (across[0], (down[0] + down[1]) / 2)]
    assert (_colours_at(figure, between) == 255).all()
    assert [[text.get_text() for text in axis.get_ticklabels()] for axis in (axes.yaxis, axes.xaxis)] == [*names]


def test_words_stand_over_their_picture_and_over_no_other(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("effvl_cli.core.plots._write", lambda figure, path: drawn.append(figure))
    pictures, colours = _plain_pictures(5)
    captioned_images(tmp_path / "x.png", pictures, [f"one\ntwo\n{k}" for k in range(5)], title="t", columns=3)
    [figure] = drawn
    figure.canvas.draw()
    [axes] = figure.axes
    assert [text.get_text()[-1] for text in axes.texts] == ["0", "1", "2", "3", "4"]
    places = [text.get_position() for text in axes.texts]
    assert (_colours_at(figure, [(x, y + 3) for x, y in places]) == colours).all()
    shown = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    for text in axes.texts:  # nothing but the words and white
        box = text.get_window_extent()
        rows = shown[len(shown) - int(box.y1) : len(shown) - int(box.y0), int(box.x0) : int(box.x1)]
        assert (rows.max(axis=-1) == rows.min(axis=-1)).all() and rows.size
