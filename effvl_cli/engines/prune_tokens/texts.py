"""Class weights under text prompts."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.engines.prune_tokens.context import AnyContext, C, Context
from effvl_cli.models.openclip_text import text_blocks
from effvl_cli.techniques.prune_tokens.prompts import Prompts
from effvl_cli.techniques.prune_tokens.text_prompts import TextPrompts


def class_texts(context: AnyContext, template: str) -> Tensor:
    """(C, T) int64 tokens of the classes, on the device."""
    return context.network.tokenize([template.format(name) for name in context.classes]).to(context.run.device)


def class_weights(context: AnyContext, text: TextPrompts, texts: Tensor) -> Tensor:
    """(E, C) unit class embeddings with the prompts in the texts, instead of the mean over templates."""
    module = context.network.module
    embedded = text.encode(module.encode_text, text_blocks(module, context.network.name), texts)
    return F.normalize(embedded.float(), dim=-1).T


def with_prompts(context: Context[C], prompts: Prompts | None) -> Context[C]:
    """The context whose class weights are those of the text prompts, if there are any."""
    if prompts is None or prompts.text is None:
        return context
    with torch.no_grad():
        weights = class_weights(context, prompts.text, class_texts(context, prompts.text.template))
    return dataclasses.replace(context, classifier=weights)
