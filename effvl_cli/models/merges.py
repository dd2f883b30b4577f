"""Learns the byte-pair merges of the tiny models' tokenizer from a word list (Sennrich et al., arXiv 1508.07909).

`python -m effvl_cli.models.merges` writes them in the format that open_clip's SimpleTokenizer reads: gzip, a header
line, one merge a line, no newline at the end; the gzip time stamp is 0 so that the bytes depend on the words only.
"""

import gzip
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from effvl_cli.core.files import write_bytes

NUM_MERGES = 1500
Pair = tuple[str, str]


def learn(words: Iterable[str], num_merges: int) -> list[Pair]:
    """The most frequent adjacent pairs, each merged before the next is counted; ties go to the smaller pair."""
    spelled = Counter((*word[:-1], f"{word[-1]}</w>") for word in words if word)
    merges: list[Pair] = []
    while len(merges) < num_merges:
        pairs: Counter[Pair] = Counter()
        for symbols, count in spelled.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged: Counter[tuple[str, ...]] = Counter()
        for symbols, count in spelled.items():
            merged[_apply(symbols, best)] += count
        spelled = merged
    return merges


def _apply(symbols: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    result: list[str] = []
    position = 0
    while position < len(symbols):
        if symbols[position : position + 2] == pair:
            result.append("".join(pair))
            position += 2
        else:
            result.append(symbols[position])
            position += 1
    return tuple(result)


def pack(merges: Iterable[Pair]) -> bytes:
    """The merges as SimpleTokenizer reads them."""
    text = "\n".join(["#version: effvl", *(" ".join(pair) for pair in merges)])
    return gzip.compress(text.encode(), mtime=0)


def main() -> None:
    """Rebuild the shipped list."""
    assets = Path(__file__).parent / "assets"
    words = (assets / "words.txt").read_text().split()
    write_bytes(assets / "merges.txt.gz", pack(learn(words, NUM_MERGES)))


if __name__ == "__main__":
    main()
