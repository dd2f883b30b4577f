"""Initial prompts: those that leave the untuned towers' outputs, so that tuning starts from their accuracy."""

from effvl_cli.core import seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.prune_tokens.context import Tuning
from effvl_cli.engines.prune_tokens.selectors import prune
from effvl_cli.engines.prune_tokens.texts import class_texts
from effvl_cli.models.openclip_text import prompt_template, text_blocks
from effvl_cli.techniques.prune_tokens.prompts import CoupledPrompts, Prompts, VisualPrompts
from effvl_cli.techniques.prune_tokens.text_prompts import TextPrompts, context_states
from effvl_cli.techniques.prune_tokens.tower import Selector, mean_states

INIT_IMAGES = 64  # images whose kept patches initialise the visual prompts


def check_prompts(context: Tuning) -> None:
    """Refuse impossible prompts before the long search.

    Raises:
        UsageError: --prompt-start is not a block, or more text tokens than the text tower takes.
        ModelError: the text tower cannot take prompts.
    """
    config, network = context.config, context.network
    start = prompt_start(context)
    if start >= context.shape.depth:
        raise UsageError(
            f"--prompt-start is {start}, and {network.name} has {context.shape.depth} blocks",
            f"Give 0 to {context.shape.depth - 1}",
        )
    if config.prompts in ("text", "independent", "coupled"):
        text_blocks(network.module, network.name)
        prompt_template(network.tokenize, context.templates, config.num_text_tokens, context.classes)


def initial_prompts(context: Tuning, images: Decoded, selector: Selector, kept: int) -> Prompts:
    """Prompts of the kind that --prompts names; see `check_prompts`."""
    config, device = context.config, context.run.device
    text = None if config.prompts == "visual" else _text_prompts(context)
    if config.prompts == "text":
        return Prompts(None, text).to(device)
    start = prompt_start(context)
    depth = min(config.prompt_depth, text.depth) if text and config.prompts == "coupled" else config.prompt_depth
    plain = prune(context, selector, kept / context.shape.num_patches)
    rows = images[list(range(0, len(images), max(1, len(images) // INIT_IMAGES)))[:INIT_IMAGES]]
    mean = mean_states(plain, context.network.preprocess.normalise(rows.to(device)), start=start, depth=depth)
    noise = seeds.generator(config.seed, "prompts")
    pre_norm = config.prompt_start == 0  # asked for: MaPLe's placement
    if text is None or config.prompts == "independent":
        visual = VisualPrompts(mean, config.num_visual_tokens, start=start, generator=noise, pre_norm=pre_norm)
        return Prompts(visual, text).to(device)
    text = TextPrompts(text.tokens.detach()[: len(mean)], first=text.first, template=text.template)
    return Prompts(CoupledPrompts(text, mean, start=start, generator=noise, pre_norm=pre_norm)).to(device)


def _text_prompts(context: Tuning) -> TextPrompts:
    """Text prompts initialised with the states of the words before the class names."""
    config, network = context.config, context.network
    blocks = text_blocks(network.module, network.name)[: config.prompt_depth]
    template, first = prompt_template(network.tokenize, context.templates, config.num_text_tokens, context.classes)
    texts = class_texts(context, template)
    states = context_states(network.module.encode_text, blocks, texts, first=first, num_tokens=config.num_text_tokens)
    return TextPrompts(states, first=first, template=template)


def prompt_start(context: Tuning) -> int:
    """First block with visual prompts."""
    given = context.config.prompt_start
    return context.layer if given is None else given
