"""Every figure that needs a GPU, in at most eight minutes on one: `make bench-gpu`.

Each row stands beside its bound (what the peak of the device, or the multiply-adds, allow) and beside what was asked;
then a checklist of the paths that only CUDA takes. What there was no time for is named. Random weights: time does not
depend on them. The JSON file is written anew after each part, so that nothing is lost to a limit on time. Exits 1 if a
row misses what was asked or a check fails. Without a GPU: `--miniature` runs every line of it on the CPU in seconds.
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from effvl_cli.cli.app import main as effvl
from effvl_cli.core import distributed
from effvl_cli.core.bench import timed
from effvl_cli.core.files import write_json
from effvl_cli.core.measure import count_macs
from effvl_cli.data.loader import Batch
from effvl_cli.models import network as networks
from effvl_cli.models.openclip_tower import OpenClipTower, tower_of
from effvl_cli.techniques.pretrain.cost import forward_macs, units_per_sample
from effvl_cli.techniques.pretrain.simclr import SimCLR
from effvl_cli.techniques.pretrain.vit import VisionTransformer, ViTShape
from effvl_cli.techniques.prompt_tune.text_cost import text_cost
from effvl_cli.techniques.prune_blocks.discover import discover
from effvl_cli.techniques.prune_blocks.score import BatchScores, Scorer
from effvl_cli.techniques.prune_blocks.scoring_cost import cost_model, measure_costs
from effvl_cli.techniques.prune_tokens.macs import TowerShape
from effvl_cli.techniques.prune_tokens.predictor import MixerPredictor
from effvl_cli.techniques.prune_tokens.ranking import alive_until, golden_ranking
from effvl_cli.techniques.prune_tokens.tower import PrunedVision, num_keep
from tests.bench import bench_prompt_tune
from tests.bench.bench_pretrain import BASE, step_of

PEAK_TFLOPS = {"H200": (989, 67), "H100": (989, 67), "A100": (312, 19.5)}  # dense: bfloat16, float32 without TF32
GAIN = 0.9  # of the ratio of multiply-adds: token pruning, search, scoring
STEP_GAIN = 0.85  # likewise of a compressed training step
COSINE = 0.999  # of embeddings in bfloat16 and float32
KEEP, LAYER, GROUP, UNTIL = 0.6, 3, 10, 0.3
DENSE, COMPRESSED = (16, 1.0), (16, 0.25)  # patch side, keep rate


@dataclass(frozen=True)
class Scale:
    """What is run, and for how long: seconds are for each arm of a row."""

    clip: str = "ViT-B-16"
    vit: ViTShape = BASE
    resnet: str = "cifar-resnet:56"
    batch: int = 256
    prompted: tuple[int, int, int] = (1000, 16, 32)  # classes, context tokens, images of a step
    ranked: int = 2
    seconds: float = 8.0
    compiler: str = "inductor"
    commands: tuple[str, ...] = (
        "prune-tokens --precision bf16 --shots 4",
        "pretrain --precision bf16 --budget 20k",
        "prune-blocks --precision bf16 --baseline-epochs 2 --finetune-epochs 1 --final-epochs 1 --force",
    )


MINIATURE = Scale(
    clip="tiny:clip",
    vit=ViTShape(32, 2, 2, 16, 64),
    resnet="cifar-resnet:8,width=4",
    batch=2,
    prompted=(5, 4, 2),
    ranked=1,
    seconds=0.0,
    compiler="eager",
    commands=("pretrain --num-images 32 --num-bank 16 --batch-size 8 --budget 50 --no-baseline --precision bf16",),
)


@dataclass(frozen=True)
class Row:
    """A figure, what bounds it, and what was asked of it (None: nothing)."""

    name: str
    value: float
    unit: str
    bound: float | None = None
    asked: float | None = None
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether it is what was asked for."""
        return self.asked is None or self.value >= self.asked

    def __str__(self) -> str:
        def shown(number: float | None) -> str:
            return "-" if number is None else f"{number:,.2f}"

        verdict = "" if self.asked is None else "PASS" if self.good else "FAIL"
        return (
            f"{self.name:52} {self.value:12,.2f} {self.unit:8} bound {shown(self.bound):>12}   "
            f"asked {shown(self.asked):>10}   {verdict:4}   {self.note}"
        )


@dataclass
class Bench:
    """The device, the scale, and when to end."""

    device: torch.device
    scale: Scale
    deadline: float

    @property
    def peaks(self) -> tuple[float | None, float | None]:
        """FLOP/s in bfloat16 and in float32, where the device's are known."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        found = next((peak for key, peak in PEAK_TFLOPS.items() if key in name), (None, None))
        return tuple(None if peak is None else 1e12 * peak for peak in found)

    def left(self) -> float:
        """Seconds until the end."""
        return self.deadline - time.monotonic()

    def milliseconds(self, arms: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """Median of passes that are made in turn; fewer where the time ends."""
        seconds = min(self.scale.seconds, max(0.0, self.left()) / len(arms))
        return {name: found.median_ms for name, found in timed(arms, self.device, seconds=seconds).items()}

    def noise(self, *shape: int) -> Tensor:
        """Of the standard normal distribution, on the device."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(self.device)


def per_second(milliseconds: float, images: int) -> float:
    """Images a second."""
    return 1000 * images / milliseconds


def at_peak(peak: float | None, macs: float) -> float | None:
    """Images a second at so many FLOP/s, of so many multiply-adds each."""
    return None if peak is None else peak / (2 * macs)


# --- rows -------------------------------------------------------------------------------------------------------------


def tower_on(bench: Bench) -> tuple[OpenClipTower, TowerShape, int]:
    """The image tower with random weights, its sizes, and the block before which patches are dropped."""
    module = networks.build(bench.scale.clip, seed=0).module.to(bench.device).eval().requires_grad_(False)
    tower = tower_of(module)
    return tower, TowerShape.of(tower), min(LAYER, tower.depth - 1)


def towers(bench: Bench) -> Iterator[Row]:
    """Dense and pruned images a second in bfloat16, as they are and compiled."""
    tower, shape, layer = tower_on(bench)
    keep = num_keep(KEEP, shape.num_patches)
    selector = MixerPredictor(shape.num_patches, tower.num_prefix).to(bench.device).eval()
    pruned = PrunedVision(tower, layer=layer, num_keep=keep, selector=selector).eval()
    images = bench.noise(bench.scale.batch, 3, *tower.image_size)
    macs = {"dense": shape.dense(), "pruned": shape.pruned(keep, layer) + shape.mixer(64)}
    networks_ = {"dense": tower.module, "pruned": pruned}
    for how in ("eager", "compiled"):

        def arm(network: nn.Module, how: str = how) -> Callable[[], Tensor]:
            call = torch.compile(network, dynamic=False, backend=bench.scale.compiler) if how == "compiled" else network

            def run() -> Tensor:
                with torch.autocast(bench.device.type, torch.bfloat16):
                    return call(images)

            return run

        times = bench.milliseconds({name: arm(network) for name, network in networks_.items()})
        for name, found in times.items():
            rate, bound = per_second(found, len(images)), at_peak(bench.peaks[0], macs[name])
            yield Row(f"{bench.scale.clip} bf16 {how}, {name}", rate, "images/s", bound, note=utilisation(rate, bound))
        implied = macs["dense"] / macs["pruned"]
        gain = times["dense"] / times["pruned"]
        yield Row(f"{bench.scale.clip} bf16 {how}, pruned over dense", gain, "x", implied, GAIN * implied)


def utilisation(rate: float, bound: float | None) -> str:
    """Share of the peak."""
    return "" if bound is None else f"MFU {rate / bound:.1%}"


def search(bench: Bench) -> Iterator[Row]:
    """Ranked images a second, and a candidate beside a dense forward pass."""
    tower, shape, layer = tower_on(bench)
    images = bench.noise(bench.scale.ranked, 3, *tower.image_size)
    tokens = 1 << 16 if bench.device.type == "cuda" else 2048
    rank = functools.partial(golden_ranking, tower, layer=layer, group=GROUP, rank_until=UNTIL, candidate_tokens=tokens)
    many = images[:1].expand(max(1, tokens // (shape.num_patches + tower.num_prefix)), -1, -1, -1)
    times = bench.milliseconds({"search": lambda: rank(images), "dense": lambda: tower.module(many)})
    kept = kept_counts(shape.num_patches)
    macs = sum(shape.candidate(count, layer) for count in kept)
    rate = per_second(times["search"], len(images))
    bound = at_peak(bench.peaks[1], macs)
    yield Row(f"{bench.scale.clip} search fp32, {len(kept)} passes per image", rate, "images/s", bound,
              note=utilisation(rate, bound))  # fmt: skip
    implied = len(kept) * shape.dense() / macs
    gain = len(kept) * len(images) * times["dense"] / len(many) / times["search"]
    yield Row(f"{bench.scale.clip} search, dense pass over candidate", gain, "x", implied, GAIN * implied)


def kept_counts(num_patches: int) -> list[int]:
    """Patches that each candidate of one image's search keeps."""
    alive, counts = num_patches, []
    stop = alive_until(UNTIL, num_patches)
    while alive > stop:
        counts += [alive - 1] * alive
        alive -= min(GROUP, alive - stop)
    return counts + [alive - 1] * alive


def steps(bench: Bench) -> Iterator[Row]:
    """A SimCLR step of the dense and of the compressed ViT, as it is and compiled."""
    shape = bench.scale.vit
    images = bench.noise(bench.scale.batch, 3, shape.image_size, shape.image_size)
    for how in ("eager", "compiled"):
        arms, macs = {}, {}
        for name, (patch, keep) in {"dense": DENSE, "compressed": COMPRESSED}.items():
            method = SimCLR(VisionTransformer(shape), hidden=2048, out=128, temperature=0.1).to(bench.device).train()
            if how == "compiled":
                method.backbone.compile(dynamic=False, backend=bench.scale.compiler)
            arms[name] = _in_bf16(bench, step_of(method, images, patch, keep))
            forward = forward_macs(shape, patch=patch, keep=keep)
            macs[name] = units_per_sample(method.passes, forward, forward, 0)
        times = bench.milliseconds(arms)
        for name, found in times.items():
            rate, bound = per_second(found, len(images)), at_peak(bench.peaks[0], macs[name])
            yield Row(f"SimCLR step bf16 {how}, {name}", rate, "images/s", bound, note=utilisation(rate, bound))
        implied, gain = macs["dense"] / macs["compressed"], times["dense"] / times["compressed"]
        yield Row(f"SimCLR step bf16 {how}, compressed over dense", gain, "x", implied, STEP_GAIN * implied)


def _in_bf16(bench: Bench, step: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            step()

    return run


def scoring(bench: Bench) -> Iterator[Row]:
    """Every block of a ResNet left out once, naively and sharing what candidates have in common."""
    network = networks.build(bench.scale.resnet, seed=0, num_classes=10).module.to(bench.device).eval()
    images = bench.noise(bench.scale.batch, 3, 32, 32)
    labels = torch.arange(len(images), device=bench.device) % 10
    units = discover(network, images[:2]).units
    implied = cost_model(*measure_costs(network, units, images[:1], count_macs)).ratio
    found: dict[str, BatchScores] = {}

    def arm(name: str, sharing: Any) -> Callable[[], None]:
        scorer = Scorer(network, units, sharing)

        def run() -> None:
            found[name] = scorer.batch(images, labels)

        return run

    with _deterministic():
        times = bench.milliseconds({"naive": arm("naive", "off"), "shared": arm("shared", "auto")})
    rate = per_second(times["shared"], len(images))
    yield Row(f"scoring {bench.scale.resnet}, {len(units)} blocks", rate, "images/s")
    gain = times["naive"] / times["shared"]
    yield Row(f"scoring {bench.scale.resnet}, naive over shared", gain, "x", implied, GAIN * implied)
    equal = torch.equal(found["naive"].loss, found["shared"].loss)
    yield Row(f"scoring {bench.scale.resnet}, bits equal", float(equal), "", 1.0, 1.0)


def prompts(bench: Bench) -> Iterator[Row]:
    """A training step of learned prompts in bfloat16, image features at hand."""
    classes, context, batch = bench.scale.prompted
    network = networks.build(bench.scale.clip, seed=0)
    network.module.to(bench.device)
    learner = bench_prompt_tune.learner_of(network, classes, context, bench.device)
    features = F.normalize(bench.noise(batch, learner.tower.embed_dim), dim=-1)
    labels = torch.arange(batch, device=bench.device) % classes
    step = _in_bf16(bench, bench_prompt_tune.step_of(learner, lambda: features, labels))
    rate = per_second(bench.milliseconds({"step": step})["step"], batch)
    bound = at_peak(bench.peaks[0], text_cost(learner).step / batch)
    yield Row(f"{bench.scale.clip} prompt step bf16, {classes} classes", rate, "images/s", bound,
              note=utilisation(rate, bound))  # fmt: skip


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


# --- checklist --------------------------------------------------------------------------------------------------------


def bf16(bench: Bench) -> str:
    """Embeddings in bfloat16 point where those in float32 do."""
    tower, _, _ = tower_on(bench)
    images = bench.noise(2, 3, *tower.image_size)
    with torch.no_grad():
        exact = tower.module(images)
        with torch.autocast(bench.device.type, torch.bfloat16):
            rounded = tower.module(images).float()
    lowest = float(F.cosine_similarity(exact, rounded).min())
    assert lowest > COSINE, f"cosine {lowest:.5f}"
    return f"lowest cosine {lowest:.5f}"


def memory(bench: Bench) -> str:
    """A search that does not fit goes on with half as many candidates, down to what fits, and ranks alike."""
    tower, shape, _ = tower_on(bench)
    image = bench.noise(1, 3, *tower.image_size)
    fits = 4 * (shape.num_patches + tower.num_prefix)
    rank = functools.partial(golden_ranking, tower, image, layer=0, group=0, rank_until=UNTIL)
    expected = rank(candidate_tokens=fits)
    with _little_memory(bench, tower, fits):
        found = rank(candidate_tokens=64 * fits)
    assert found.candidate_tokens < 64 * fits, "nothing was halved"
    gap = (found.removal_score - expected.removal_score).abs().max()
    assert gap < 1e-5, f"scores differ by {gap:.1e}"
    return f"{64 * fits} tokens at once became {found.candidate_tokens}"


@contextlib.contextmanager
def _little_memory(bench: Bench, tower: OpenClipTower, tokens: int) -> Iterator[None]:
    """On CUDA a true limit, a little above what is held; elsewhere blocks that refuse more than so many tokens."""
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved(bench.device) + tokens * tower.width * 4 * 64
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, room / torch.cuda.get_device_properties(bench.device).total_memory), bench.device
        )
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
        return
    block = tower.block

    def refusing(index: int, states: Tensor, *more: Any, **options: Any) -> Tensor:
        if states.shape[0] * states.shape[1] > 8 * tokens:
            raise torch.OutOfMemoryError("as if")
        return block(index, states, *more, **options)

    tower.block = refusing
    try:
        yield
    finally:
        del tower.block


def pinned(bench: Bench) -> str:
    """A batch in pinned memory arrives whole while the device works."""
    images = torch.randint(0, 256, (bench.scale.batch, 3, 64, 64), dtype=torch.uint8)
    batch = Batch(images, torch.arange(len(images)), torch.arange(len(images)))
    if bench.device.type == "cuda":
        batch = dataclasses.replace(batch, **{n: getattr(batch, n).pin_memory() for n in ("images", "labels")})
        assert batch.images.is_pinned()
    busy = bench.noise(512, 512)
    for _ in range(8):
        busy = busy @ busy / 512
    moved = batch.to(bench.device)
    assert torch.equal(moved.images.cpu(), images) and torch.equal(moved.labels.cpu(), batch.labels)
    return f"{images.numel():,} bytes"


def collectives(bench: Bench) -> str:
    """The reductions of a run over nccl (gloo on the CPU), with one process: one device has no second."""
    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            rows = bench.noise(3, 2).requires_grad_()
            assert distributed.all_reduce_max(7) == 7
            assert distributed.broadcast_json({"a": [1, None]}) == {"a": [1, None]}
            assert torch.equal(distributed.gather_rows(rows.detach().cpu(), 3), rows.detach().cpu())
            distributed.gather_with_gradient(rows).square().sum().backward()
            assert torch.allclose(rows.grad, 2 * rows)
        finally:
            dist.destroy_process_group()
    return backend


def compiled(bench: Bench) -> str:
    """A compiled backbone has the loss of the same one that is not."""
    shape = bench.scale.vit
    torch.manual_seed(0)
    backbone = VisionTransformer(shape).to(bench.device).eval()
    images = bench.noise(2, 3, shape.image_size, shape.image_size)
    again = copy.deepcopy(backbone)
    again.compile(dynamic=False, backend=bench.scale.compiler)
    with torch.no_grad():
        gap = float((backbone(images) - again(images)).abs().max())
    assert gap < 1e-3, f"features differ by {gap:.1e}"
    return f"features within {gap:.1e}"


def commands(bench: Bench) -> str:
    """The real commands on the device."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for line in bench.scale.commands:
                if bench.left() < 0:
                    return "ended early: out of time"
                words = [*line.split(), "--device", bench.device.type, "--cache-dir", "cache", "--quiet"]
                with contextlib.redirect_stdout(sys.stderr):
                    code = effvl(words)
                assert code == 0, f"`effvl {line}` ended with {code}"
        finally:
            os.chdir(here)
    return f"{len(bench.scale.commands)} run"


PARTS: tuple[Callable[[Bench], Iterator[Row]], ...] = (towers, search, steps, scoring, prompts)
CHECKS: tuple[Callable[[Bench], str], ...] = (bf16, memory, pinned, collectives, compiled, commands)


def run(bench: Bench, out: Path) -> dict[str, Any]:
    """All rows and checks for which there is time; the file holds what is known so far."""
    found: dict[str, Any] = {"device": _name(bench.device), "torch": torch.__version__, "rows": [], "checks": {}}
    found["left_out"] = [part.__name__ for part in (*PARTS, *CHECKS)]
    for part in PARTS:
        if bench.left() <= 0:
            break
        for row in part(bench):
            print(row, flush=True)
            found["rows"].append(dataclasses.asdict(row) | {"good": row.good})
            write_json(out, found)
            if bench.left() <= 0:
                break
        else:
            found["left_out"].remove(part.__name__)
    for check in CHECKS:
        if bench.left() <= 0:
            break
        found["checks"][check.__name__] = result = _result(check, bench)
        found["left_out"].remove(check.__name__)
        print(f"{check.__name__:52} {result}", flush=True)
        write_json(out, found)
    if found["left_out"]:
        print(f"out of time: {', '.join(found['left_out'])} left out or not finished", flush=True)
    write_json(out, found)
    return found


def _result(check: Callable[[Bench], str], bench: Bench) -> str:
    try:
        return f"PASS {check(bench)}"
    except Exception as error:  # one that fails must not take the others with it
        return f"FAIL {type(error).__name__}: {error}"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu.json"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--miniature", action="store_true", help="tiny networks on the CPU")
    options = parser.parse_args(arguments)
    if not options.miniature and not torch.cuda.is_available():
        print("no CUDA device; --miniature runs every line of this on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.miniature else "cuda")
    scale = MINIATURE if options.miniature else Scale()
    torch.manual_seed(0)
    found = run(Bench(device, scale, time.monotonic() + 60 * options.minutes), options.out)
    good = all(row["good"] for row in found["rows"]) and all(t.startswith("PASS") for t in found["checks"].values())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
