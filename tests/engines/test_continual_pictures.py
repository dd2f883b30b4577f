"""What the pictures of continual show of tasks whose names or figures are alike."""

from effvl_cli.engines.continual import pictures

LONG = "photographs-of-animals"


class Drawn(dict):
    """In place of a run: what is to be drawn, by the picture's name."""

    def plot(self, name, draw, *values, **words):
        self[name] = (values, words)


def test_names_that_are_cut_alike_are_told_apart():
    names = [f"{LONG}-1", f"{LONG}-2", "free", "fish"]
    shown = ["1 photographs-of-...", "2 photographs-of-...", "3 free", "fish"]
    assert pictures.labels(names) == shown
    run = Drawn()
    pictures.capacity(run, {"conv": {"0": 20, "1": 40, "2": 10, "3": 10, "4": 20}}, names)
    (_, parts), _ = run["capacity"]
    assert parts == dict(zip([*shown, "free"], ([40], [10], [10], [20], [20]), strict=True))


def test_every_task_has_a_curve():
    rows = [
        {"name": f"{LONG}-{k}", "n_val": 101, "attempts": [{"val": 1.0}], "sweep": [{"ratio": 0.3, "val": 0.5}]}
        for k in (1, 2)
    ]
    run = Drawn()
    pictures.compaction(run, rows)
    (series,), words = run["compaction"]
    assert list(series.values()) == [[(0.0, 100.0, 0.0), (0.3, 50.0, 5.0)]] * 2  # sqrt(0.25 / 100) = 0.05
    assert words["apart"]


def test_a_name_that_a_legend_would_leave_out_has_its_number_in_front():
    assert pictures.labels(["a", "_", "_-_", "free"]) == ["a", "2 _", "3 _-_", "4 free"]
