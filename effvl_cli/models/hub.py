"""Downloads of weights: whether the other side answers is asked once, before a library that tries for a minute."""

import contextlib
import logging
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

PATIENCE = 10  # seconds for the first answer
_LOGGERS = ("huggingface_hub", "httpx", "httpx2")


def hub() -> str:
    """Address of the hub, which HF_ENDPOINT may move."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextlib.contextmanager
def reached(url: str) -> Iterator[None]:
    """Around a download: raises at once if nothing answers at this address, and keeps raw warnings off the terminal.

    Raises:
        ConnectionError: no answer; names the host.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        text = getattr(reason, "strerror", None) or str(reason)
        raise ConnectionError(f"{urllib.parse.urlsplit(url).netloc} does not answer: {text}") from error
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
