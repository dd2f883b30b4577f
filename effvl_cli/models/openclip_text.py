"""open_clip's text towers, as far as learnable prompts need them."""

from collections.abc import Callable, Sequence

from open_clip.transformer import TextTransformer, Transformer
from torch import Tensor, nn

from effvl_cli.core.errors import ModelError, UsageError

FALLBACK = "a photo of a {}."
_FILLER = "X"


def text_blocks(model: nn.Module, name: str) -> Sequence[nn.Module]:
    """The blocks of a model's text tower; each gets token states (C, T, D) first.

    Raises:
        ModelError: the text tower is not open_clip's own.
    """
    text = getattr(model, "text", model)
    transformer = getattr(text, "transformer", None)
    if not isinstance(transformer, Transformer) or not (text is model or isinstance(text, TextTransformer)):
        raise ModelError(f"{name} has a text tower that takes no prompts", "Use --prompts visual or none")
    return list(transformer.resblocks)


def prompt_template(
    tokenize: Callable[[Sequence[str]], Tensor], templates: Sequence[str], count: int
) -> tuple[str, int]:
    """The words around a class name whose first `count` tokens prompts can replace.

    Args:
        tokenize: texts to (C, T) int64.
        templates: the data set's own, by preference.
        count: tokens that must stand before the class name.

    Returns:
        The first template with so many, else "a photo of a {}." with as many fillers as it takes, and the position of
        its first word: 1 behind a start token, 0 where the tokenizer has none.

    Raises:
        UsageError: the context is too short.
    """
    first = _common(tokenize, "{}")
    padded = (FALLBACK.replace("{}", f"{_FILLER} " * more + "{}") for more in range(count + 1))
    for template in (*templates, *padded):
        if _common(tokenize, template) - first >= count:
            return template, first
    context = tokenize(["a"]).shape[1]
    raise UsageError(f"--num-text-tokens {count} do not fit a text of {context} tokens", "Give fewer")


def _common(tokenize: Callable[[Sequence[str]], Tensor], template: str) -> int:
    """Leading tokens that do not depend on the class name."""
    one, other = tokenize([template.format("x"), template.format("7")])
    same = (one == other).long().cumprod(0)
    return 0 if same.all() else int(same.sum())  # all the same: the name was cut off
