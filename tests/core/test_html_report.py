"""`report.html`: one file that says everything, fetches nothing and lets no text become markup."""

import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from effvl_cli.core import html_page, html_report, plots
from effvl_cli.core.table import Table
from tests.core.test_report import draft

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags in order, each closed by its own end, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def report():
    d = draft()
    d.metric("top1_pruned", 0.5, split="test", n=100, se=0.05)
    d.metric("top1_delta", None)
    d.metric("latency_ratio", 0.42, unit="ratio")
    d.metric("equal", 1, unit="boolean")
    d.warn("5 images < 10 & few")
    d.reference({"expected": [{"metric": "top1_pruned", "value": "0.52", "tolerance": "0.03"}]})
    d.technique["ranking"] = {"seconds": 75.2}
    return d.finish("completed")


@pytest.fixture
def page(tmp_path):
    plots.curves(tmp_path / "one.png", {"a": [(0.0, 1.0, 0.1), (1.0, 2.0, 0.1)]}, title="t", xlabel="x", ylabel="y")
    table = Table("rows", ("unit", "top-1 %"), (("<b>layer1.0</b>", 98.3), ("layer2", None)), ("a note",))
    return html_report.of_run(
        report(), table, ["effvl", "prune-blocks", "--templates", "a photo of a {}."], [tmp_path / "one.png"]
    )


def test_it_is_whole_fetches_nothing_and_escapes(page):
    found = Page(page)
    text = " ".join(found.text)
    assert "effvl prune-blocks --templates 'a photo of a {}.'" in text
    for words in ("50.00 %", "± 9.80 %", "0.42x", "yes", "5 images < 10 & few", "a note", "within", "1 min 15 s"):
        assert words in text, words
    assert "<b>layer1.0</b>" in text and not any(tag == "b" and "style" not in a for tag, a in found.tags)
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in found.named("img"))
    assert not re.search(r"(https?:|src=\"/|@import|url\()", page)
    assert found.named("meta")[2]["content"].startswith("default-src 'none'")


def test_it_can_be_read_without_eyes_or_on_a_phone(page):
    found = Page(page)
    assert found.named("html")[0]["lang"] == "en"
    assert any(attrs.get("name") == "viewport" for attrs in found.named("meta"))
    assert all(attrs.get("alt") for attrs in found.named("img"))
    assert all(attrs.get("scope") in ("col", "row") for attrs in found.named("th"))
    assert all(attrs.get("aria-label") for attrs in found.named("div") if attrs.get("role") == "region")
    assert [tag for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)].count("h1") == 1
    assert "prefers-color-scheme:dark" in page


def _luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_texts_stand_out_from_what_is_behind_them(scheme):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    blocks = re.findall(r":root\{([^}]*)\}", html_page._STYLE)
    colours = {}
    for name, value in re.findall(r"--(\w+):(#\w+)", blocks[scheme].replace("\n", "")):
        colours[name] = value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:])
    on = {"card": ("text", "dim", "accent"), "band": ("text", "dim"), "back": ("text", "dim")}
    on |= {"goodback": ("good",), "badback": ("bad",), "warnback": ("warn", "dim")}
    for back, texts in on.items():
        for text in texts:
            low, high = sorted((_luminance(colours[back]), _luminance(colours[text])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, back)


def test_an_interval_stays_in_its_track():
    assert "left:0.00%;width:10.00%" in html_page.interval(-0.2, 0.05, 0.1)
    assert "left:95.00%;width:5.00%" in html_page.interval(0.95, 1.0, 1.2)


def test_a_sweep_tells_its_claims_first():
    claims = Table("claims", ("", "claim", "margin"), (("PASS", "a.x > 0", "+1"), ("FAIL", "b.x > 0", "-1")))
    page = html_report.of_sweep(
        "Depth", "mini.yaml", [Table("runs", ("figure", "a"), (("x", "98.3 ± 0.2"),)), claims], []
    )
    Page(page)
    assert "1 of 2 claims hold" in page and page.index("a.x &gt; 0") < page.index("98.3 ± 0.2")
    assert '<span class="badge good">PASS</span>' in page and '<span class="badge bad">FAIL</span>' in page


def test_every_run_leaves_one(effvl, image_folder):
    line = ("pretrain", "--method", "supervised", "--model", "cifar-resnet:8,width=4", "--steps", 2, "--batch-size", 8)
    line = (*line, "--data", f"folder:{image_folder}", "--log-every", 1, "--out", "run")
    assert effvl(*line).code == 0
    found = Page(Path("run/report.html").read_text())
    text = " ".join(found.text)
    assert "effvl pretrain --method supervised" in text and "top1" in text and "completed" in text
    rows = Path("run/metrics.csv").read_text().splitlines()
    assert rows[0].startswith("event,phase,step,loss") and len(rows) == 1 + 3  # two steps, one evaluation
    (image_folder / "train" / "red_thing" / "img0.jpg").write_bytes(b"no picture")
    (image_folder / "test" / "red_thing" / "img0.jpg").write_bytes(b"no picture")
    assert effvl(*line, "--fresh").code == 3
    text = " ".join(Page(Path("run/report.html").read_text()).text)
    assert "failed" in text and "img0.jpg" in text


def test_figures_of_many_seconds_are_words():
    assert [html_report._clock(s) for s in (0.21, 59.9, 61, 3725)] == ["0.2 s", "59.9 s", "1 min 1 s", "1 h 2 min"]
    assert time.strftime("%Y") in html_report._lead(report())
