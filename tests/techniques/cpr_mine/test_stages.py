"""Oracles 3 and 4, and what is refused."""

import pytest

from effvl_cli.techniques.cpr_mine.stages import CascadeError, Stage, described, most_stages, official, parse

RGB_FLOW = ("rgb", "flow")


def sizes(stages):
    return [stage.n for stage in stages]


def test_official_sizes():
    found = official(2048, ("flow", "rgb"), num_stages=7, ratio=0.5, top_k=5)
    assert sizes(found) == [1024, 512, 256, 128, 64, 32, 5]
    assert [stage.view for stage in found] == ["flow", "rgb", "flow", "rgb", "flow", "rgb", "flow"]
    assert sizes(official(11, RGB_FLOW, num_stages=4, ratio=0.7, top_k=3)) == [7, 5, 3, 3]  # an iterated floor: 7, 4, 2
    assert sizes(official(1000, RGB_FLOW, num_stages=2, ratio=0.29, top_k=1)) == [290, 1]  # 1000 * 0.29 is below 290


def test_views_of_the_stages():
    def turn(count, views=("m", "a"), **more):
        return [s.view for s in official(1 << 20, views, num_stages=count, ratio=0.5, top_k=1, **more)]

    assert turn(1) == ["m"] and turn(2) == ["m", "m"]  # the released code crashes here
    assert turn(4) == ["m", "a", "m", "m"] and turn(5) == ["m", "a", "m", "a", "m"]
    assert turn(6, ("x", "y", "z")) == ["x", "y", "z", "x", "y", "x"]
    assert turn(4, ("x", "y", "z"), last="y") == ["x", "y", "z", "y"] and turn(3, ("m",)) == ["m"] * 3


def test_sizes_below_k_are_refused_with_the_largest_number_of_stages():
    with pytest.raises(CascadeError, match=r"stage 2 keeps 0.*m:3,a:0,m:3.*largest valid.*2") as caught:
        official(10, ("m", "a"), num_stages=3, ratio=0.3, top_k=3)
    assert caught.value.code == "E_STAGE_SIZE"
    assert most_stages(10, 0.3, 3) == 2 and most_stages(10, 0.3, 4) == 1 and most_stages(10, 1.0, 4) is None
    for ratio, items, k in ((0.5, 2048, 5), (0.3, 2048, 5), (0.7, 2048, 10), (0.5, 8, 2), (0.5, 2048, 2048)):
        most = most_stages(items, ratio, k)
        official(items, ("m", "a"), num_stages=most, ratio=ratio, top_k=k)
        with pytest.raises(CascadeError):
            official(items, ("m", "a"), num_stages=most + 1, ratio=ratio, top_k=k)
    assert (most_stages(2048, 0.3, 5), most_stages(2048, 0.5, 10)) == (5, 8)


def test_syntax():
    found = parse("flow:0.5, rgb:0.5,flow:0.25,rgb:64,flow", 2048, RGB_FLOW, 5)
    assert found == (Stage("flow", 1024), Stage("rgb", 1024), Stage("flow", 512), Stage("rgb", 64), Stage("flow", 5))
    assert described(found) == "flow:1024,rgb:1024,flow:512,rgb:64,flow:5"
    assert parse("flow:mv:9,flow:mv", 20, ("flow:mv",), 2) == (Stage("flow:mv", 9), Stage("flow:mv", 2))
    assert parse("rgb:1.0,rgb:3", 20, RGB_FLOW, 5) == (Stage("rgb", 20), Stage("rgb", 3))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("rgb,flow:5", "E_CASCADE", "'rgb' has no size"),
        ("rgb:0.0,flow", "E_CASCADE", "share of 0.0"),
        ("rgb:1.5,flow", "E_CASCADE", "share of 1.5"),
        ("rgb:many,flow", "E_CASCADE", "'many'"),
        ("rgb:nan.0,flow", "E_CASCADE", "'nan.0'"),
        ("depth:9,flow", "E_CASCADE", "no view 'depth'"),
        ("", "E_CASCADE", "no view ''"),
        ("rgb:8,flow:9,rgb:5", "E_STAGE_SIZE", "stage 2 keeps more than stage 1 (rgb:8,flow:9,rgb:5)"),
        ("rgb:4,flow:5", "E_STAGE_SIZE", "stage 1 keeps 4, fewer than the 5"),
        ("rgb:-4,flow:5", "E_STAGE_SIZE", "stage 1 keeps -4"),
        ("rgb:0", "E_STAGE_SIZE", "keeps nothing"),
        ("rgb:30", "E_STAGE_SIZE", "30 positives of 20"),
        ("rgb:21,flow:5", "E_STAGE_SIZE", "stage 1 keeps 21 of 20 items (rgb:21,flow:5)"),
    ],
)
def test_refused(text, code, words):
    with pytest.raises(CascadeError) as caught:
        parse(text, 20, RGB_FLOW, 5)
    assert caught.value.code == code and words in str(caught.value)


def test_a_first_stage_keeps_everything_at_most():
    assert official(20, ("m", "a"), num_stages=2, ratio=0.5, top_k=5, first=20)[0] == Stage("m", 20)
    with pytest.raises(CascadeError, match="stage 1 keeps 21 of 20 items"):
        official(20, ("m", "a"), num_stages=2, ratio=0.5, top_k=5, first=21)
