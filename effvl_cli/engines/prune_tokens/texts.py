"""Class weights under text prompts."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.engines.prune_tokens.setup import Setup
from effvl_cli.models.openclip_text import text_blocks
from effvl_cli.techniques.prune_tokens.prompts import Prompts
from effvl_cli.techniques.prune_tokens.text_prompts import TextPrompts


def class_texts(setup: Setup, template: str) -> Tensor:
    """(C, T) int64 tokens of the classes, on the device."""
    return setup.network.tokenize([template.format(name) for name in setup.classes]).to(setup.run.device)


def class_weights(setup: Setup, text: TextPrompts, texts: Tensor) -> Tensor:
    """(E, C) unit class embeddings with the prompts in the texts, in the place of the templates' mean."""
    module = setup.network.module
    embedded = text.encode(module.encode_text, text_blocks(module, setup.network.name), texts)
    return F.normalize(embedded.float(), dim=-1).T


def with_prompts(setup: Setup, prompts: Prompts | None) -> Setup:
    """The setup whose class weights are those of the text prompts, if there are any."""
    if prompts is None or prompts.text is None:
        return setup
    with torch.no_grad():
        weights = class_weights(setup, prompts.text, class_texts(setup, prompts.text.template))
    return dataclasses.replace(setup, classifier=weights)
