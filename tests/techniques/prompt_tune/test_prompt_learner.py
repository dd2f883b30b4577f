"""Prompts put together from pieces give what the tower's own `encode_text` gives."""

import torch
import torch.nn.functional as F

from effvl_cli.models import network as networks
from effvl_cli.models.openclip_prompts import name_pieces, prompt_tower, word_ids
from effvl_cli.techniques.prompt_tune.learner import PromptLearner

NAMES = ("red ring", "blue square", "green cross")


def test_words_as_context_are_the_text_itself():
    network = networks.load("tiny:clip", None, default="", kind="clip")
    tower = prompt_tower(network)
    pieces = name_pieces(network, NAMES)
    words = torch.tensor(word_ids(network, "a photo of a"))
    learner = PromptLearner(tower, pieces, tower.embed(words))
    texts = network.tokenize([f"a photo of a {name}." for name in NAMES])
    expected = F.normalize(network.module.encode_text(texts), dim=-1)
    assert (learner() - expected).abs().max() < 1e-5
    assert [name for name, _ in learner.named_parameters()] == ["context"] == list(learner.state_dict())
