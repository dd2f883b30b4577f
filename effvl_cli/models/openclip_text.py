"""The parts of open_clip's text towers that learnable prompts need."""

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
        raise ModelError(f"{name} has a text tower that cannot take prompts", "Use --prompts visual or none")
    return list(transformer.resblocks)


Tokenize = Callable[[Sequence[str]], Tensor]


def prompt_template(
    tokenize: Tokenize, templates: Sequence[str], count: int, classes: Sequence[str] = ()
) -> tuple[str, int]:
    """The words around a class name whose first `count` tokens prompts can replace.

    Args:
        tokenize: texts to (C, T) int64.
        templates: the data set's own, in order of preference.
        count: tokens that must stand before the class name.
        classes: names that must fit after them.

    Returns:
        The first template with enough tokens, else "a photo of a {}." with as many fillers as needed, and the place of
        its first word: 1 after a start token, 0 where the tokenizer has none.

    Raises:
        UsageError: the context is too short, for all names or for some.
    """
    template, first = _roomy(tokenize, templates, count)
    cut = cut_off(tokenize, template, classes)
    if cut:
        most = count
        while most and cut_off(tokenize, _roomy(tokenize, templates, most)[0], classes):
            most -= 1
        raise UsageError(
            f"--num-text-tokens {count} leave no room for {len(cut)} class names ({', '.join(cut[:3])})",
            f"Give 1 to {most}" if most else "Use --prompts visual",
        )
    return template, first


def _roomy(tokenize: Tokenize, templates: Sequence[str], count: int) -> tuple[str, int]:
    """A template with `count` tokens before the name, and the place of the first."""
    first = _common(tokenize, "{}")
    padded = (FALLBACK.replace("{}", f"{_FILLER} " * more + "{}") for more in range(count + 1))
    for template in (*templates, *padded):
        if _common(tokenize, template) - first >= count:
            return template, first
    context = tokenize(["a"]).shape[1]
    raise UsageError(f"--num-text-tokens {count} do not fit a text of {context} tokens", "Give fewer")


def cut_off(tokenize: Tokenize, template: str, classes: Sequence[str]) -> list[str]:
    """Names whose end is cut off by the tokenizer: appending a letter changes nothing."""
    if not classes:
        return []
    texts, longer = (tokenize([template.format(name + more) for name in classes]) for more in ("", "x"))
    return [name for name, same in zip(classes, (texts == longer).all(1).tolist(), strict=True) if same]


def _common(tokenize: Tokenize, template: str) -> int:
    """Leading tokens that do not depend on the class name."""
    one, other = tokenize([template.format("x"), template.format("7")])
    same = (one == other).long().cumprod(0)
    return 0 if same.all() else int(same.sum())  # all the same: the name was cut off
