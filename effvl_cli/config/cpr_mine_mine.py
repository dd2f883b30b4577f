"""Options of `effvl cpr-mine mine`."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc

from effvl_cli.config.options import ARTEFACT, MEMORY, VOLATILE, Checked, Fraction, Positive, RunOptions

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
FIRST_OF_INDEX = 1024  # candidates of the first stage where an index finds them


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(Checked):
    """What is mined."""

    panel: ClassVar[str] = "Embeddings"

    run: Annotated[
        str | None,
        ARTEFACT,
        Doc(
            "folder with views.json, of `cpr-mine embed` or `pretrain eval --save-features` "
            "(default: the newest run with one, unless --features are given)"
        ),
    ] = None
    features: Annotated[
        tuple[str, ...], ARTEFACT, Doc("one .npy file (N, D) for each view, comma separated; row k of each is one item")
    ] = ()
    view_names: Annotated[tuple[str, ...], Doc("their names (default: of the files, without .npy)")] = ()
    labels: Annotated[
        str | None, ARTEFACT, Doc(".npy (N,) of classes, -1 unknown; for the report alone (default: RUN's)")
    ] = None
    groups: Annotated[
        str | None,
        ARTEFACT,
        Doc(".npy (N,) of sources, -1 unknown: items of one source are no positives of each other"),
    ] = None
    ids: Annotated[
        str | None, ARTEFACT, Doc("text file with a name for each row (default: RUN's, else row numbers)")
    ] = None
    query_features: Annotated[
        tuple[str, ...], ARTEFACT, Doc("a .npy file for each view: queries other than the items themselves")
    ] = ()
    query_labels: Annotated[str | None, ARTEFACT, Doc("classes of the queries")] = None
    query_groups: Annotated[str | None, ARTEFACT, Doc("sources of the queries")] = None
    query_ids: Annotated[str | None, ARTEFACT, Doc("names of the queries; an item of the same name is no positive")] = (
        None
    )

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.features and self.run:
            raise ValueError("RUN and --features both give embeddings. Give one of them")
        if self.view_names and len(self.view_names) != len(self.features):
            raise ValueError(
                f"--view-names has {len(self.view_names)} names for {len(self.features)} --features. Give one for each"
            )
        if len(set(self.view_names)) < len(self.view_names):
            raise ValueError("--view-names names the same view twice. Name each once")
        if not self.query_features and (self.query_labels or self.query_groups or self.query_ids):
            raise ValueError("--query-labels, --query-groups and --query-ids describe --query-features. Give these too")


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The stages of the cascade."""

    panel: ClassVar[str] = "Cascade"
    alternatives: ClassVar[tuple[str, ...]] = ("cascade", "num_stages+ratio+main+aux+first_stage")

    cascade: Annotated[
        str | None,
        Doc(
            "stages VIEW:SIZE, comma separated, a share of the items with a point, else a number; the last may go "
            "without: flow:0.5,rgb:64,flow (default: from the options below)"
        ),
    ] = None
    num_stages: Annotated[
        Positive | None,
        Doc("stages; odd ones and the last rank in the main view, the others in turn (default: 7, or as many as fit)"),
    ] = None
    ratio: Annotated[Fraction, Doc("share of the items that a stage keeps of those before it")] = 0.5
    main: Annotated[str | None, Doc("main view (default: the last one)")] = None
    aux: Annotated[tuple[str, ...], Doc("views between, in turn (default: all others)")] = ()
    first_stage: Annotated[
        Positive | None,
        Doc(f"items that the first stage keeps (default: --ratio of all; with --stage1-index {FIRST_OF_INDEX})"),
    ] = None
    top_k: Annotated[Positive, Doc("positives of each query")] = 5


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Checked):
    """How it is computed."""

    panel: ClassVar[str] = "Search"

    mem: Annotated[str, VOLATILE, MEMORY, Doc("limit of the working buffers, e.g. 512M, 4G")] = "1G"
    method: Annotated[
        Literal["auto", "gather", "mask"],
        Doc("gather: rows of the candidates; mask: similarities to all items in every view; both are exact"),
    ] = "auto"
    block_size: Annotated[Positive | None, VOLATILE, Doc("queries at a time (default: as many as fit)")] = None
    pool: Annotated[
        Positive | None, Doc("items that each query sees, drawn anew for each: imitates a queue of that length")
    ] = None
    stage1_index: Annotated[
        Literal["faiss-flat", "faiss-ivf", "faiss-hnsw"] | None,
        Doc("find the candidates of the first stage by an index of faiss (an extra); the report has its recall"),
    ] = None
    tf32: Annotated[bool, Doc("allow the GPU's shortened float32 products")] = False
    force: Annotated[bool, Doc("mine on a CPU what takes hours there")] = False

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        size_of(self.mem)
        if self.pool and self.stage1_index:
            raise ValueError("--pool and --stage1-index both choose the candidates of the first stage. Give one")


@dataclass(frozen=True, kw_only=True)
class MineConfig(EmbeddingOptions, StageOptions, SearchOptions, RunOptions):
    """Retrieve positives of saved embeddings by a cascade over their views, and report how good they are."""

    panel: ClassVar[str] = "Results"
    run_holds: ClassVar[str] = "views.json"
    in_place_of_run: ClassVar[str] = "features"
    common: ClassVar[tuple[str, ...]] = (
        *("run", "features", "view_names", "labels", "groups", "ids"),
        *("cascade", "num_stages", "ratio", "main", "top_k", "first_stage", "pool", "mem", "dedupe", "jsonl", "graph"),
        *("device", "out"),
    )

    dedupe: Annotated[bool, Doc("two items that are alike in every view (cosine > 0.9999) are no positives")] = False
    jsonl: Annotated[bool, Doc("also write positives.jsonl, a line for each query")] = False
    graph: Annotated[bool, Doc("also write graph.npz: who has whom among its positives, a symmetric CSR matrix")] = (
        False
    )

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.graph and self.query_features:
            raise ValueError("--graph joins items that are queries too, and --query-features are others. Leave one out")


def size_of(text: str) -> int:
    """Bytes of e.g. "512M" or "4GiB", in powers of 1024.

    Raises:
        ValueError: it says no size.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if not size:
        raise ValueError(f"--mem is {text}. Write e.g. 512M or 4G")
    return size
