"""Speed and memory of cascade mining: `make bench-cpr-mine [ARGS="--device cuda --million"]`.

- one stage against faiss's flat index, same neighbours: 512 queries, 200,000 x 128, k = 1024: at least 3 times as fast;
- `effvl cpr-mine mine` on 50,000 x 128 in two views, first stage 1,024: within 60 s on two idle cores, which are 120
  CPU seconds;
- working buffers of both methods, counted tensor by tensor: within --mem;
- mining in a training step of S3D: below 2 % (cpr_mine_step.py);
- decoding of videos beside a plain loop of PyAV: at least 0.95 times as fast (video_decoding.py);
- with --million: a million queries against a million items on a GPU, first stage 1,024, and its memory.

Exits 1 if a row misses its target. About five minutes on an idle core.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from effvl_cli.cli.app import main as effvl
from effvl_cli.core.report import read_report
from effvl_cli.techniques.cpr_mine.cascade import mine
from effvl_cli.techniques.cpr_mine.forbid import Forbid
from effvl_cli.techniques.cpr_mine.stages import official
from tests.alive import Alive
from tests.bench import video_decoding
from tests.bench.cpr_mine_step import measure

FASTER, SAME = 3.0, 0.999
CPU_SECONDS = 120.0
LIMIT = 64 * 2**20
MILLION, MINUTES, GPU_BYTES = 1_000_000, 3.0, 24 * 2**30


def shown(name: str, figure: str, target: str, passed: bool) -> bool:
    """Print a row."""
    print(f"{'PASS' if passed else 'MISS'}  {name}: {figure} (target: {target})", flush=True)
    return passed


def against_faiss(folder: Path) -> bool:
    """The verb `bench`, whose first rows are the comparison."""
    assert effvl(["cpr-mine", "bench", "--quiet", "--device", "cpu", "--out", str(folder / "bench")]) == 0
    good = True
    for row in read_report(folder / "bench" / "report.json").technique["rows"]:
        if row["speedup"] is None:
            continue
        low, high = row["speedup_ci95"]
        figure = (
            f"{row['ms']:.0f} ms, faiss {row['faiss_ms']:.0f} ms, {row['speedup']:.2f}x ({low:.2f} to {high:.2f}), "
            f"{100 * row['agreement']:.3f} % the same"
        )
        target = f"{FASTER}x" if row["k"] == 1024 else "none"
        passed = row["agreement"] >= SAME and (row["k"] != 1024 or low >= FASTER)
        good &= shown(f"512 queries, 200,000 x 128, k = {row['k']}", figure, target, passed)
    return good


def two_views(folder: Path) -> bool:
    """The verb `mine`, with what it computes beside the cascade."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(folder / f"{name}.npy", generator.normal(size=(50_000, 128)).astype(np.float32))
    started, cpu = time.perf_counter(), time.process_time()
    line = ["cpr-mine", "mine", "--features", f"{folder}/a.npy,{folder}/b.npy", "--num-stages", "4"]
    assert effvl([*line, "--first-stage", "1024", "--quiet", "--device", "cpu", "--out", str(folder / "mine")]) == 0
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    about = read_report(folder / "mine" / "report.json")
    figure = (
        f"{cpu:.0f} CPU-s, {wall:.0f} s on {torch.get_num_threads()} threads, of which mining "
        f"{about.efficiency['mining_s']:.0f} s ({about.technique['method']})"
    )
    return shown("50,000 x 128 x 2 views, first stage 1,024", figure, f"{CPU_SECONDS:.0f} CPU-s", cpu <= CPU_SECONDS)


def buffers() -> bool:
    """Tensors alive at once, of both methods."""
    generator, good = torch.Generator().manual_seed(0), True
    bank = {view: torch.randn(50_000, 128, generator=generator) for view in "ab"}
    ids = torch.arange(50_000)
    queries = {view: rows[:300] for view, rows in bank.items()}
    for method, ratio in (("gather", 0.02), ("mask", 0.5)):
        stages = official(50_000, tuple(bank), num_stages=3, ratio=ratio, top_k=5)
        with Alive() as alive:
            mine(queries, bank, stages, forbid=Forbid(ids[:300], ids), mem_bytes=LIMIT, method=method)
        figure = f"{alive.most / 2**20:.1f} MiB"
        good &= shown(f"working buffers of {method}, 50,000 x 128 x 2", figure, "64 MiB", alive.most <= LIMIT)
    return good


def in_a_step(device: torch.device) -> bool:
    """Mining in a training step of S3D."""
    row = measure(device).row()
    figure = f"{row['mining_ms']:.1f} ms of {row['step_ms']:.0f} ms, {100 * float(str(row['share'])):.3f} %"
    return shown(str(row["what"]), figure, str(row["target"]), bool(row["passed"]))


def decoding(folder: Path) -> bool:
    """Frames per second of a video that is written here."""
    row = video_decoding.measure(video_decoding.written(folder)).row()
    low, high = row["ratio_ci95"]  # type: ignore[misc]
    figure = (
        f"{row['frames_per_s']:.0f} frames/s, PyAV {row['plain_frames_per_s']:.0f}, {row['ratio']:.2f}x "
        f"({low:.2f} to {high:.2f})"
    )
    return shown(str(row["what"]), figure, str(row["target"]), bool(row["passed"]))


def a_million(device: torch.device) -> bool:
    """A million queries, all items of the bank."""
    generator = torch.Generator(device=device).manual_seed(0)
    bank = {view: torch.randn(MILLION, 128, generator=generator, device=device) for view in "ab"}
    ids = torch.arange(MILLION, device=device)
    stages = official(MILLION, ("a", "b"), num_stages=4, ratio=0.5, top_k=5, first=1024)
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    found = mine(bank, bank, stages, forbid=Forbid(ids, ids), mem_bytes=8 * 2**30)
    torch.cuda.synchronize(device)
    minutes, peak = (time.perf_counter() - started) / 60, torch.cuda.max_memory_allocated(device)
    assert found.valid.all()
    figure = (
        f"{minutes:.2f} minutes, {peak / 2**30:.1f} GiB ({found.plan.method}, {torch.cuda.get_device_name(device)})"
    )
    target = f"{MINUTES:.0f} minutes, 24 GiB"
    return shown("a million by a million, 128 x 2", figure, target, minutes <= MINUTES and peak <= GPU_BYTES)


def main() -> int:
    """Run every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--million", action="store_true", help="the row for a GPU alone")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.million:
        return int(not (a_million(device) & in_a_step(device)))
    with tempfile.TemporaryDirectory() as folder:
        good = against_faiss(Path(folder))
        good &= two_views(Path(folder))
        good &= decoding(Path(folder))
    good &= buffers()
    good &= in_a_step(device)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
