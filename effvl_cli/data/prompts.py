"""Caption templates and class captions."""

from collections.abc import Sequence
from pathlib import Path

from effvl_cli.core.errors import UsageError

SIMPLE = ("a photo of a {}.",)
OWN, PLAIN, MANY = "coop", "simple", "imagenet80"  # names of sets


def choose_templates(given: str | None, default: Sequence[str]) -> tuple[str, ...]:
    """Templates of `--templates`: a text, several split by "|", a file with one per line, or a set; else the default.

    Sets are `coop`, the data set's own as CoOp gives them; `simple`; and `imagenet80`, the 80 of CLIP's authors.

    Raises:
        UsageError: a template without exactly one "{}".
    """
    if given in (None, OWN):
        return tuple(default) or SIMPLE
    if given == PLAIN:
        return SIMPLE
    if given == MANY:
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    assert given is not None
    try:
        from_file = "{}" not in given and Path(given).is_file()
        texts = Path(given).read_text(encoding="utf-8").splitlines() if from_file else given.split("|")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--templates: {given[:60]!r} is not a readable text file", "Give texts, or a UTF-8 file"
        ) from error
    templates = tuple(text.strip() for text in texts if text.strip())
    for template in templates:
        if not template.count("{}") == template.count("{") == template.count("}") == 1:
            raise UsageError(
                f"--templates: {template!r} has no single {{}}", "Write e.g. 'a photo of a {}.', or a file name"
            )
    if not templates:
        raise UsageError(f"--templates {given!r} holds no template", "Write e.g. 'a photo of a {}.'")
    return templates


def captions(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every class in every template, class by class."""
    return [template.format(name) for name in classes for template in templates]
