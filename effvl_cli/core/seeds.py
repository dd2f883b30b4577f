"""Random streams derived from (seed, names): nothing random is ever stored."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed of the stream called `names` under `seed`."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for that stream."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


@contextlib.contextmanager
def global_stream(seed: int, *names: str | int) -> Iterator[None]:
    """Run the body with torch's global CPU generator set to that stream, and restore it afterwards.

    For library code that takes no generator (module initialisation, torchvision transforms).
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(derive(seed, *names))
    try:
        yield
    finally:
        torch.set_rng_state(state)
