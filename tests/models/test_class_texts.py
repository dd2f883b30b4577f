"""Class names that the text tower does not read to their end."""

import pytest
import torch

from effvl_cli.core.errors import DataError
from effvl_cli.models import network as networks

LONG = " ".join(["a", "very", "long", "name", "of", "common", "words"] * 5)  # more than the context of tiny:clip
TEMPLATES = ("a photo of a {}.",)


@pytest.fixture(scope="module")
def tiny():
    return networks.load("tiny:clip", None, default="", kind="clip")


def test_names_that_are_cut_to_the_same_tokens_are_refused(tiny):
    names = (f"{LONG} cat", f"{LONG} dog", "red circle")
    assert torch.equal(*tiny.tokenize([f"a photo of a {name}." for name in names[:2]]))
    with pytest.raises(DataError, match=r"2 class names are identical .* cat' and .* dog'") as caught:
        networks.zero_shot_classifier(tiny, names, TEMPLATES, torch.device("cpu"), lambda text: None)
    assert "Shorten" in caught.value.hint and "\n" not in caught.value.message


def test_names_that_are_only_cut_are_named_in_a_warning(tiny):
    said = []
    names = (f"red {LONG}", f"blue {LONG}", "green ring")
    networks.zero_shot_classifier(tiny, names, TEMPLATES, torch.device("cpu"), said.append)
    assert len(said) == 1 and "does not read 2 class names to their end" in said[0] and "'red a very long" in said[0]


def test_names_that_fit_are_not_spoken_of_and_equal_names_are(tiny):
    assert networks.check_class_texts(tiny, ("red circle", "blue circle"), TEMPLATES) == []
    said = networks.check_class_texts(tiny, ("crane", "ring", "Crane"), TEMPLATES)  # published lists have such
    assert len(said) == 1 and "'crane', 'Crane'" in said[0]


def test_the_shortest_template_decides_whether_names_can_be_told_apart(tiny):
    """In the longer template both are cut to the same."""
    tail = "very long name of words "
    names, templates = (f"{tail}cat", f"{tail}dog"), ("{}", "a bad photo of what is to be seen here, a {}")
    rows = [tiny.tokenize([template.format(name) for name in names]) for template in templates]
    assert not torch.equal(*rows[0]) and torch.equal(*rows[1])
    assert "does not read 2" in networks.check_class_texts(tiny, names, templates)[0]


def test_prune_tokens_refuses_them_in_one_line(effvl, tmp_path):
    (tmp_path / "t.csv").write_text(f"path,label,split\na.jpg,{LONG} cat,train\nb.jpg,{LONG} dog,train\n")
    outcome = effvl("prune-tokens", "--data", f"csv:{tmp_path / 't.csv'}")
    assert outcome.code == 3 and "identical to tiny:clip" in outcome.error
