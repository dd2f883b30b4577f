"""Caption templates and class captions."""

from collections.abc import Sequence
from pathlib import Path

from effvl_cli.core.errors import UsageError

SIMPLE = ("a photo of a {}.",)


def choose_templates(given: str | None, default: Sequence[str]) -> tuple[str, ...]:
    """Templates of `--templates`: a text, several separated by "|", or a file with one a line; else the default.

    Raises:
        UsageError: a template without exactly one "{}".
    """
    if given is None:
        return tuple(default) or SIMPLE
    if "{}" not in given and Path(given).is_file():
        texts = [line.strip() for line in Path(given).read_text().splitlines()]
    else:
        texts = [text.strip() for text in given.split("|")]
    templates = tuple(text for text in texts if text)
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1:
            raise UsageError(
                f"--templates: {template!r} has no single {{}}", "Write e.g. 'a photo of a {}.', or a file name"
            )
    if not templates:
        raise UsageError(f"--templates {given!r} holds no template", "Write e.g. 'a photo of a {}.'")
    return templates


def captions(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class in every template, class by class."""
    return [template.format(name) for name in classes for template in templates]
