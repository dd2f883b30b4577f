"""Files of mined positives; `cpr-mine train --positives` reads the first."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from effvl_cli.core.files import write_bytes, write_text

POSITIVES, LINES, GRAPH = "positives.npz", "positives.jsonl", "graph.npz"


def write_positives(path: Path, indices: Tensor, scores: Tensor, ids: Sequence[str], query_ids: Sequence[str]) -> None:
    """Write indices (B, k), scores, valid and ids, the same bytes for the same content."""
    kind = np.int32 if len(ids) < 2**31 else np.int64
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        indices=indices.numpy().astype(kind),
        scores=scores.numpy(),
        valid=(indices >= 0).numpy(),
        ids=np.array(list(ids)),
        **({} if query_ids is ids else {"query_ids": np.array(list(query_ids))}),
    )
    write_bytes(path, buffer.getvalue())


def write_lines(path: Path, indices: Tensor, scores: Tensor, ids: Sequence[str], query_ids: Sequence[str]) -> None:
    """A line of JSON for each query: its name, the names of its positives, their scores."""
    lines = []
    for name, rows, values in zip(query_ids, indices.tolist(), scores.tolist(), strict=True):
        kept = [(ids[row], round(value, 6)) for row, value in zip(rows, values, strict=True) if row >= 0]
        lines.append(
            json.dumps({"id": name, "positives": [item for item, _ in kept], "scores": [value for _, value in kept]})
        )
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_graph(path: Path, indices: Tensor) -> None:
    """A symmetric matrix (N, N) for `scipy.sparse.load_npz`: 1 where one has the other as a positive, 2 where both."""
    from scipy import sparse

    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    columns = indices.numpy().ravel()
    kept = columns >= 0
    ones = np.ones(int(kept.sum()), np.float32)
    directed = sparse.csr_matrix((ones, (rows[kept], columns[kept])), shape=(len(indices), len(indices)))
    both = (directed + directed.T).tocsr()
    both.sort_indices()
    buffer = io.BytesIO()
    sparse.save_npz(buffer, both, compressed=False)
    write_bytes(path, buffer.getvalue())
