"""What each method trains in the text tower."""

import copy

import torch
from torch import Tensor, nn

from effvl_cli.config.prompt_tune import FIXED_CONTEXT
from effvl_cli.core import seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.data.prompts import captions
from effvl_cli.engines.prompt_tune.context import Learning, context_words, num_tokens
from effvl_cli.models.openclip_prompts import check_room, word_ids
from effvl_cli.techniques.prompt_tune.learner import INIT_STD, PromptLearner, random_context
from effvl_cli.techniques.prompt_tune.text_finetuning import TextFinetuner

FIXED_WORDS = "a photo of a"  # the context of cls-tuning


def learner_of(context: Learning, method: str) -> nn.Module:
    """A module whose forward gives unit class features (K, D), on the device; it holds what is trained and no more.

    Raises:
        UsageError: class names do not fit beside the context, or a prefix that the tower cannot share.
    """
    device = context.run.device
    if method == "tenc-ft":
        return _whole_tower(context).to(device)
    config = context.config
    if config.prefix_share == "on" and not context.tower.splits:
        raise UsageError(
            f"--prefix-share is on, and the text tower of {context.network.name} does not allow it", "Give auto"
        )
    return PromptLearner(
        context.tower,
        context.pieces,
        _context_tokens(context, method).to(device),
        position=config.class_position,
        train_context=method not in FIXED_CONTEXT,
        train_names=method in ("full-prompt", "cls-tuning"),
        name_rows=_random_names(context).to(device) if method == "cls-random" else None,
        prefix_share=config.prefix_share,
        text_chunk=config.text_chunk,
    ).to(device)


def _context_tokens(context: Learning, method: str) -> Tensor:
    """(M, d), or with --csc (K, M, d), at the start of the training."""
    config, width = context.config, context.tower.width
    words = word_ids(context.network, FIXED_WORDS) if method in FIXED_CONTEXT else context_words(context)
    count = len(words) or num_tokens(context)
    check_room(context.pieces, count)
    classes = len(context.classes) if config.csc and method not in FIXED_CONTEXT else None
    if not words:
        return random_context(count, width, seeds.generator(config.seed, "context"), classes)
    with torch.no_grad():
        tokens = context.tower.embed(torch.tensor(words)).cpu()
    return tokens if classes is None else tokens.expand(classes, -1, -1)


def _random_names(context: Learning) -> Tensor:
    """(tokens of all names, d) in place of the names' embeddings: what the names themselves are worth."""
    count = sum(map(len, context.pieces.ids))
    generator = seeds.generator(context.config.seed, "names")
    return INIT_STD * torch.randn(count, context.tower.width, generator=generator)


def _whole_tower(context: Learning) -> TextFinetuner:
    """A copy of the text tower, all of which is trained."""
    network = context.network
    text = copy.deepcopy(network.module, {id(network.module.visual): None})
    for name in ("logit_scale", "logit_bias"):
        if hasattr(text, name):
            delattr(text, name)
    tokens = network.tokenize(captions(context.classes, context.templates))
    return TextFinetuner(text.requires_grad_(True), tokens.unflatten(0, (len(context.classes), -1)))
