"""Near-duplicates of a split are skipped: what its images are compared by, in which order, and what came of it."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from effvl_cli.config.detect_dedup import BITS, DISTANCE, HASHES, MOST_COMPARED, DedupOptions
from effvl_cli.config.detect_tag import NIGHT_THRESH
from effvl_cli.core.errors import UsageError
from effvl_cli.core.run import Run
from effvl_cli.data.boxes import BoxRecord, BoxSource
from effvl_cli.data.files import natural
from effvl_cli.engines.common.batches import LoaderOptions
from effvl_cli.engines.detect.frame_embeddings import frame_embeddings
from effvl_cli.engines.detect.frame_features import FrameFeatures, frame_features
from effvl_cli.techniques.detect.dedup import (
    Guard,
    Rule,
    Signatures,
    Skip,
    adjacent,
    banded,
    same_labels,
    smallest_bits,
    smallest_distance,
    walk,
    walk_all,
)

MOST_DISTANCE = 2.0  # of vectors that say the opposite
DISTANCE_BINS = tuple(k / 50 for k in range(51))
LOOK = 256  # frames between looks at requests to stop
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Frames:
    """The images of a split that can be compared, in the order of the walk.

    Attributes:
        source: the split.
        indices: (N,) positions in the split.
        signatures: N.
        night: N, by the tag or, where there is none, by the median luminance.
    """

    source: BoxSource
    indices: tuple[int, ...]
    signatures: Signatures
    night: tuple[bool, ...]

    def records(self) -> list[BoxRecord]:
        """In the same order."""
        return [self.source.records[index] for index in self.indices]


def frames_of(source: BoxSource, options: DedupOptions, run: Run, loading: LoaderOptions) -> Frames:
    """The readable images of a split in the order source, sequence, frame, name."""
    order = walk_order(source)
    seen = frame_features(source, order, loading, run)
    good = seen.readable.nonzero()[:, 0].tolist()
    indices = tuple(order[k] for k in good)
    signatures = _signatures(seen, options).take(good)
    if options.signature == "embed":
        signatures = Signatures(None, frame_embeddings(source, indices, options, loading, run))
    dark = seen.lightness[good, 0] < NIGHT_THRESH
    times = [source.records[index].time for index in indices]
    night = tuple(time == "night" if time else bool(below) for time, below in zip(times, dark, strict=True))
    return Frames(source, indices, signatures, night)


def walk_order(source: BoxSource) -> list[int]:
    """Positions by source, sequence and frame, whatever the order of the records.

    Frame numbers that occur twice in a sequence number something else: there the names decide.
    """
    places = {info.name: place for place, info in enumerate(source.sources)}
    numbers: dict[tuple[str, str], list[int | None]] = {}
    for record in source.records:
        numbers.setdefault((record.source, record.seq), []).append(record.frame)
    counted = {key for key, own in numbers.items() if None not in own and len(set(own)) == len(own)}

    def key(index: int) -> Any:
        record = source.records[index]
        frame = record.frame if (record.source, record.seq) in counted else 0
        return places.get(record.source, len(places)), natural(record.seq), frame, natural(record.file)

    return sorted(range(len(source)), key=key)


def _signatures(seen: FrameFeatures, options: DedupOptions) -> Signatures:
    bits = {"dhash+ncc": seen.dhash, "dhash": seen.dhash, "phash": seen.phash}.get(options.signature)
    return Signatures(bits, seen.vector if options.signature in ("dhash+ncc", "ncc") else None)


def rule_of(options: DedupOptions, tau: float | None = None) -> Rule:
    """When two images are near-duplicates, at the --tau of the options or another one."""
    tau = options.tau if tau is None else tau
    if options.signature in HASHES:
        return Rule(BITS if tau is None else int(tau), None)
    distance = DISTANCE if tau is None else tau
    return Rule(options.tau_bits if options.signature == "dhash+ncc" else None, distance)


def deduplicated(
    source: BoxSource, options: DedupOptions, run: Run, loading: LoaderOptions
) -> tuple[BoxSource, dict[str, Any]]:
    """A training split without its near-duplicates, and what `dedup.json` says of it.

    Images that cannot be read stay, and so do those of sources that are not to be thinned out.

    Args:
        source: images, tagged for the histograms by day and night.
        options: what near-duplicates are.
        run: cache, progress, warnings.
        loading: loader processes, and what an unreadable image does.

    Raises:
        DataError: an unreadable image.
        UsageError: --keep that no --tau reaches, or too many images for --scope all.
    """
    frames = frames_of(source, options, run, loading)
    rule = rule_of(options, None if options.keep is None else _tau_for(options.keep, frames, options, run))
    skips = skipped(frames, rule, options, run)
    kept = np.ones(len(source), dtype=bool)
    kept[[frames.indices[k] for k, skip in enumerate(skips) if skip]] = False
    return source.take(np.flatnonzero(kept)), _summary(frames, skips, kept, rule, options)


def heeding(items: Iterable[T], run: Run) -> Iterator[T]:
    """Items that take long, with looks at requests to stop; every process has as many."""
    for number, item in enumerate(items):
        if number % LOOK == 0:
            run.check_stop()
        yield item


def skipped(frames: Frames, rule: Rule, options: DedupOptions, run: Run) -> list[Skip | None]:
    """Which frames are skipped for which."""
    records = frames.records()
    fixed = {info.name for info in frames.source.sources if not info.dedup}
    free = [k for k, record in enumerate(records) if record.source not in fixed]
    _refuse_many(len(free), rule, options)
    own = [records[k] for k in free]
    sequences = [record.source if options.scope == "source" else (record.source, record.seq) for record in own]
    step = walk_all if options.scope == "all" else walk
    found = step(frames.signatures.take(free), sequences, rule, guard=_guard(own, options), max_gap=options.max_gap)
    skips: list[Skip | None] = [None] * len(records)
    for k, skip in zip(free, heeding(found, run), strict=True):
        skips[k] = skip and Skip(free[skip.kept], skip.distance)
    return skips


def _refuse_many(count: int, rule: Rule, options: DedupOptions) -> None:
    if options.scope == "all" and count > MOST_COMPARED and not banded(rule) and not options.force:
        raise UsageError(
            f"--scope all compares each of {count:,} images with each",
            "Give --scope seq, a hash with --tau 3 or less, or --force",
        )


def _guard(records: Sequence[BoxRecord], options: DedupOptions) -> Guard | None:
    """Whether two images show the same objects in about the same places."""
    if not options.label_guard:
        return None

    @lru_cache(maxsize=4096)
    def objects(k: int) -> tuple[Tensor, Tensor]:
        record = records[k]
        real = ~record.ignore
        return torch.from_numpy(record.boxes[real]), torch.from_numpy(record.labels[real])

    return lambda frame, kept: same_labels(*objects(frame), *objects(kept), options.guard_iou)


def _tau_for(keep: float, frames: Frames, options: DedupOptions, run: Run) -> float:
    """The smallest --tau at which no more than a share of the images is kept."""

    def share(tau: float) -> float:
        skips = skipped(frames, rule_of(options, tau), options, run)
        return sum(skip is None for skip in skips) / len(skips)

    if not len(frames.signatures):
        return 0.0
    if options.signature in HASHES:
        assert frames.signatures.bits is not None
        most: float = frames.signatures.bits.shape[1]
        found: float | None = smallest_bits(share, keep, int(most))
    else:
        most = MOST_DISTANCE
        found = smallest_distance(share, keep, most)
    if found is None:
        raise UsageError(
            f"--keep {keep:g} cannot be reached: at the largest --tau {share(most):.3f} of the images are kept",
            "Give a larger --keep, --no-label-guard, --max-gap 0, a wider --scope, or --signature without +ncc",
        )
    return found


def _summary(
    frames: Frames, skips: Sequence[Skip | None], kept: np.ndarray[Any, Any], rule: Rule, options: DedupOptions
) -> dict[str, Any]:
    source = frames.source
    sequences: dict[tuple[str, str], list[bool]] = {}
    for index in walk_order(source):
        record = source.records[index]
        sequences.setdefault((record.source, record.seq), []).append(bool(kept[index]))
    ids = [source.ids[index] for index in frames.indices]
    return {
        "params": {**_params(options), "bits": rule.bits, "distance": rule.distance},
        "n_in": len(source),
        "n_kept": int(kept.sum()),
        "per_seq": [
            {"source": key[0], "seq": key[1], "n_in": len(own), "n_kept": sum(own)} for key, own in sequences.items()
        ],
        "skipped": [
            {"file": ids[k], "kept_as": ids[skip.kept], "distance": round(skip.distance, 6)}
            for k, skip in enumerate(skips)
            if skip
        ],
        **histograms_of(frames),
    }


def _params(options: DedupOptions) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(DedupOptions)}


def rule_text(params: Mapping[str, Any]) -> str:
    """The rule of a summary in words."""
    limits = [
        text.format(params[key])
        for key, text in (("bits", "{} bits"), ("distance", "distance {:.3g}"))
        if params[key] is not None
    ]
    guard = "on" if params["label_guard"] else "off"
    return f"within {' and '.join(limits)} ({params['signature']}); label guard {guard}"


def histograms_of(frames: Frames) -> dict[str, Any]:
    """How far adjacent images of a sequence are apart, by day and by night.

    `hist_day` and `hist_night` hold `bits`, how often each number of bits differs, and `distance`, counts between the
    edges `distance_edges`.
    """
    sequences = [(record.source, record.seq) for record in frames.records()]
    later, bits, distance = adjacent(frames.signatures, sequences)
    night = torch.tensor([frames.night[k] for k in later.tolist()], dtype=torch.bool)
    found: dict[str, Any] = {"distance_edges": list(DISTANCE_BINS)}
    for name, own in (("hist_day", ~night), ("hist_night", night)):
        row: dict[str, Any] = {"n": int(own.sum())}
        if bits is not None and frames.signatures.bits is not None:
            row["bits"] = torch.bincount(bits[own], minlength=frames.signatures.bits.shape[1] + 1).tolist()
        if distance is not None:
            inside = distance[own].clamp(max=DISTANCE_BINS[-1]).numpy()
            row["distance"] = np.histogram(inside, DISTANCE_BINS)[0].tolist()
        found[name] = row
    return found
