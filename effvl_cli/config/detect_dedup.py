"""Options of `effvl detect dedup`, and of the skipping of near-duplicates in other commands."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from annotated_doc import Doc
from annotated_types import Ge

from effvl_cli.config.detect_data import BoxDataOptions
from effvl_cli.config.options import ARTEFACT, Checked, Count, Fraction, RunOptions

BITS, DISTANCE = 10, 0.02  # within which frames are near-duplicates
LEAK_DISTANCE = 0.05  # within which a frame is in two splits
HASHES = ("dhash", "phash")
BOTH: Final = "dhash+ncc"
MOST_COMPARED = 200_000  # images of which each is compared with each


@dataclass(frozen=True, kw_only=True)
class DedupOptions(Checked):
    """Which training images are left out as near-duplicates."""

    panel: ClassVar[str] = "Near-duplicates"

    signature: Annotated[
        Literal["dhash+ncc", "dhash", "phash", "ncc", "embed"],
        Doc(
            "what images are compared by: gradient hash, DCT hash, correlation of small images, features of "
            "--embed-model; dhash+ncc: both have to be near"
        ),
    ] = BOTH
    tau: Annotated[
        float | None,
        Ge(0),
        Doc(
            f"largest distance of a near-duplicate: differing bits of a hash (default: {BITS}), or 1 - correlation "
            f"(default: {DISTANCE}; with dhash+ncc too)"
        ),
    ] = None
    tau_bits: Annotated[Count, Doc("dhash+ncc: differing bits of the hash, besides --tau")] = BITS
    keep: Annotated[Fraction | None, Doc("share of the images to keep: the smallest --tau that reaches it")] = None
    scope: Annotated[
        Literal["seq", "source", "all"],
        Doc(
            "what an image is compared with: the last one kept of its sequence, the same with all sequences of a "
            "source as one, or every one kept"
        ),
    ] = "seq"
    max_gap: Annotated[Count, Doc("keep an image once so many in a row were skipped; 0: never for that reason")] = 30
    label_guard: Annotated[bool, Doc("skip an image only if it shows the same objects in about the same places")] = True
    guard_iou: Annotated[Fraction, Doc("overlap that each of its boxes needs with one of the other image")] = 0.8
    embed_model: Annotated[
        str | None, Doc("embed: the network, see `effvl list models` (default: the one of --embed-weights)")
    ] = None
    embed_weights: Annotated[
        str | None, ARTEFACT, Doc("embed: its run folder, file or pretrained tag that is cached")
    ] = None
    force: Annotated[
        bool, Doc(f"compare each image with each, even of more than {MOST_COMPARED:,} images; takes hours")
    ] = False

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.keep is not None and self.tau is not None:
            raise ValueError("--keep chooses --tau, and both are given. Leave one out")
        if self.signature in HASHES and self.tau is not None and not float(self.tau).is_integer():
            raise ValueError(f"--tau is {self.tau}, and {self.signature} differs in whole bits. Give a whole number")
        embedded = self.embed_model is not None or self.embed_weights is not None
        if self.signature == "embed" and not embedded:
            raise ValueError("--signature embed needs a network. Give --embed-model, --embed-weights or both")
        if embedded and self.signature != "embed":
            raise ValueError("--embed-model and --embed-weights belong to --signature embed. Give that too")


@dataclass(frozen=True, kw_only=True)
class DedupConfig(DedupOptions, BoxDataOptions, RunOptions):
    """Skip near-duplicates of a training split, and find images that another split has too."""

    panel: ClassVar[str] = "Images"
    common: ClassVar[tuple[str, ...]] = (
        *("data", "split", "signature", "tau", "keep", "scope", "max_gap", "label_guard", "leak_check", "fix", "out"),
    )

    split: Annotated[Literal["train", "val", "test"], Doc("images")] = "train"
    whole: Annotated[
        bool, Doc("also training images that are held out for validation where the data have no validation split")
    ] = False
    allow_eval: Annotated[bool, Doc("thin out a split that is not for training")] = False
    leak_check: Annotated[
        str | None,
        Doc("split (val, test), data set or annotation file that must share no image with it; sharing one is exit 8"),
    ] = None
    leak_tau: Annotated[
        float | None,
        Ge(0),
        Doc(
            f"largest distance of a shared image: 1 - correlation, besides --tau-bits of the hash, or 1 - cosine "
            f"(default: {LEAK_DISTANCE})"
        ),
    ] = None
    fix: Annotated[bool, Doc("leave shared images out too, instead of exit 8")] = False
    allow_leaks: Annotated[bool, Doc("report shared images, instead of exit 8")] = False

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.split != "train" and not self.allow_eval:
            raise ValueError(
                f"--split is {self.split}, and figures on a thinned-out split say something else. "
                "Give --allow-eval if that is meant"
            )
        if self.whole and (self.split != "train" or self.leak_check == "val"):
            raise ValueError("--whole takes all training images, those held out as val too. Leave --whole out")
        if self.leak_check == self.split:
            raise ValueError(f"--leak-check {self.split} is the split that is thinned out itself. Give another one")
        if self.leak_check is None and (self.fix or self.allow_leaks or self.leak_tau is not None):
            raise ValueError("--fix, --allow-leaks and --leak-tau belong to --leak-check. Give that too")
        if self.fix and self.allow_leaks:
            raise ValueError("--fix and --allow-leaks say different things of shared images. Give one of them")
