"""`--weights VIEW=FILE,VIEW=RUN`."""

from collections.abc import Iterable

from effvl_cli.core.errors import UsageError


def weights_by_view(weights: Iterable[str]) -> dict[str, str]:
    """File or run folder of each view that --weights names.

    Raises:
        UsageError: it cannot be read, or names a view twice.
    """
    found: dict[str, str] = {}
    for item in weights:
        view, equals, path = item.partition("=")
        if not (view and equals and path):
            raise UsageError(f"--weights holds {item!r}", "Write VIEW=FILE or VIEW=RUN, e.g. rgb=a.safetensors")
        if view in found:
            raise UsageError(f"--weights names {view} twice", "Name each view once")
        found[view] = path
    return found
