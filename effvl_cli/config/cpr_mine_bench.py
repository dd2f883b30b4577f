"""Options of `effvl cpr-mine bench`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_doc import Doc
from annotated_types import Gt

from effvl_cli.config.cpr_mine_mine import size_of
from effvl_cli.config.options import MEMORY, Checked, Positive, RunOptions


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunOptions, Checked):
    """Time mining on this machine, beside a flat index of faiss where that is installed."""

    panel: ClassVar[str] = "Benchmark"

    num_items: Annotated[Positive, MEMORY, Doc("random items in the bank")] = 200_000
    num_queries: Annotated[Positive, Doc("random queries")] = 512
    dim: Annotated[Positive, Doc("numbers of an embedding")] = 128
    top_k: Annotated[tuple[Positive, ...], Doc("sizes of a single stage, which faiss can do too")] = (5, 1024)
    first_stage: Annotated[Positive, Doc("first stage of the cascade in two views, which halves it three times")] = 1024
    mem: Annotated[str, MEMORY, Doc("limit of the working buffers, e.g. 512M, 4G")] = "1G"
    seconds: Annotated[float, Gt(0), Doc("time for each row and program, at least five passes")] = 10.0

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        size_of(self.mem)
        if max(*self.top_k, self.first_stage) > self.num_items:
            raise ValueError(f"--num-items is {self.num_items}, fewer than a stage keeps. Give more")
