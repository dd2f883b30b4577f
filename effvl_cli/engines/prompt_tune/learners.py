"""What each method trains in the text tower."""

import torch
from torch import nn

from effvl_cli.core import seeds
from effvl_cli.engines.prompt_tune.context import Learning, context_words, num_tokens
from effvl_cli.techniques.prompt_tune.learner import PromptLearner, random_context


def learner_of(context: Learning, method: str) -> nn.Module:
    """A module whose forward gives unit class features (K, D), on the device; it holds what is trained alone."""
    config, tower = context.config, context.tower
    count = num_tokens(context)
    words = context_words(context)
    classes = len(context.classes) if config.csc else None
    if words:
        with torch.no_grad():
            tokens = tower.embed(torch.tensor(words)).cpu()
        tokens = tokens if classes is None else tokens.expand(classes, -1, -1)
    else:
        generator = seeds.generator(config.seed, "context")
        tokens = random_context(count, tower.width, generator, classes)
    learner = PromptLearner(
        tower,
        context.pieces,
        tokens.to(context.run.device),
        position=config.class_position,
        train_names=method == "full-prompt",
        prefix_share=config.prefix_share,
        text_chunk=config.text_chunk,
    )
    return learner.to(context.run.device)
