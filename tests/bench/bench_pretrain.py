"""Measured gains of shorter sequences in a SimCLR step beside those that multiply-adds imply: `make bench-pretrain`.

On the CPU: ViT-S/16 224, forward and backward pass, against the dense step; the dense step against lightly's of the
same network; the two augmented views against an accelerated step. With a GPU also ViT-B/16 in bfloat16, compiled.
Random weights: time does not depend on them. Exits 1 if a figure misses what is asked. Wants an idle machine.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effvl_cli.core.bench import Latency, ratio, timed
from effvl_cli.data.views import crop_batch, draw_noise, recolour, view_pair
from effvl_cli.techniques.pretrain.cost import forward_macs, units_per_sample
from effvl_cli.techniques.pretrain.method import View, Views, alone
from effvl_cli.techniques.pretrain.simclr import SimCLR
from effvl_cli.techniques.pretrain.tokens import count_kept, random_tokens
from effvl_cli.techniques.pretrain.vit import VisionTransformer, ViTShape

SMALL, BASE = ViTShape(384, 12, 6, 16, 224), ViTShape(768, 12, 12, 16, 224)
BATCH, GPU_BATCH = 8, 256
HIDDEN, OUT, TEMPERATURE = 2048, 128, 0.1
ASKED = 0.85  # of the ratio of multiply-adds
SLOWEST = 1.05  # of the peer's time, at the upper end of the interval
VIEWS = 0.2  # of an accelerated step
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312}  # dense bfloat16
DENSE, DROPPED, LARGE = (16, 1.0), (16, 0.25), (32, 1.0)  # patch side, keep rate


@dataclass(frozen=True)
class Row:
    """One comparison: what it is, times of both arms, and the gain that is asked of the second."""

    name: str
    slow: Latency
    fast: Latency
    asked: float
    note: str = ""

    def show(self) -> bool:
        """Print it; True if it is what was asked for."""
        gain = ratio(self.slow, self.fast)
        good = gain.value >= self.asked
        times = "  ".join(f"{t.median_ms:7.0f} ({t.p10_ms:.0f}-{t.p90_ms:.0f})" for t in (self.slow, self.fast))
        print(
            f"{self.name:42} {times:40} {gain.value:6.2f}x ({gain.low:.2f}-{gain.high:.2f})   "
            f"asked {self.asked:.2f}   {'PASS' if good else 'FAIL'}   {self.note}",
            flush=True,
        )
        return good


def views_of(images: Tensor, patch: int, keep: float) -> Views:
    """Two views at a patch side and a keep rate."""

    def view(seed: int) -> View:
        num_patches = (images.shape[-1] // patch) ** 2
        noise = torch.Generator().manual_seed(seed)
        kept = random_tokens(len(images), num_patches, count_kept(num_patches, keep), noise) if keep < 1 else None
        return View(images, patch, None if kept is None else kept.to(images.device))

    return Views([view(0)], [view(1)])


def step_of(method: SimCLR, images: Tensor, patch: int, keep: float) -> Callable[[], None]:
    """Forward and backward pass of a training step, as the loop runs it."""

    def step() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            method.loss(views_of(images, patch, keep), alone, 0.5).loss.backward()
            method.zero_grad(set_to_none=True)

    return step


def lightly_step(backbone: nn.Module, images: Tensor) -> Callable[[], None]:
    """The peer's step, as its documentation writes it, of the same network."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    head = SimCLRProjectionHead(backbone.shape.width, HIDDEN, OUT)
    criterion = NTXentLoss(temperature=TEMPERATURE)
    both = nn.ModuleList([backbone, head])

    def step() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            criterion(head(backbone(images)), head(backbone(images))).backward()
            both.zero_grad(set_to_none=True)

    return step


def two_views(pictures: Tensor) -> Callable[[], list[Tensor]]:
    """Both augmented views of a batch of pictures, as training makes them."""
    noise = [draw_noise(len(pictures), torch.Generator().manual_seed(i)) for i in range(2)]
    recipes = view_pair("simclr", SMALL.image_size)

    def make() -> list[Tensor]:
        side = SMALL.image_size
        return [recolour(crop_batch(pictures, side, r, n), r, n) for r, n in zip(recipes, noise, strict=True)]

    return make


def implied(method: SimCLR, patch: int, keep: float) -> float:
    """Multiply-adds of a dense step over those of a compressed one."""
    forward = forward_macs(SMALL, patch=patch, keep=keep) / forward_macs(SMALL)
    return 6 / units_per_sample(method.passes, forward, forward, 0.0)


def steps() -> list[Row]:
    """The comparisons on the CPU."""
    backbone = VisionTransformer(SMALL).train()
    method = SimCLR(backbone, hidden=HIDDEN, out=OUT, temperature=TEMPERATURE)
    images = torch.randn(BATCH, 3, SMALL.image_size, SMALL.image_size)
    pictures = torch.randint(0, 256, (BATCH, 3, 256, 256), dtype=torch.uint8)
    arms: dict[str, Callable[[], object]] = {
        "dense": step_of(method, images, *DENSE),
        "lightly": lightly_step(backbone, images),
        "dropped": step_of(method, images, *DROPPED),
        "large": step_of(method, images, *LARGE),
        "views": two_views(pictures),
    }
    times = timed(arms, torch.device("cpu"), seconds=60, passes=12)
    rows = [
        _against_macs("keep 0.25 / 0.25", times["dense"], times["dropped"], implied(method, *DROPPED)),
        _against_macs("patch 32", times["dense"], times["large"], implied(method, *LARGE)),
        Row("dense: lightly / effvl", times["lightly"], times["dense"], 1 / SLOWEST),
    ]
    for name, title in (("dropped", "keep 0.25 / 0.25"), ("large", "patch 32")):
        share = times["views"].median_ms / (times["views"].median_ms + times[name].median_ms)
        rows.append(
            Row(
                f"{title}: step / its two views",
                times[name],
                times["views"],
                1 / VIEWS - 1,
                f"views are {share:.1%} of views and step",
            )
        )
    return rows


def _against_macs(name: str, slow: Latency, fast: Latency, macs: float) -> Row:
    share = ratio(slow, fast).value / macs
    return Row(
        f"{name}: dense / compressed", slow, fast, ASKED * macs, f"MACs {macs:.2f}x, measured / implied {share:.2f}"
    )


def throughput(device: torch.device, shape: ViTShape, batch: int) -> None:
    """Images a second and model FLOP utilisation, bfloat16 and compiled, dense and compressed."""
    images = torch.randn(batch, 3, shape.image_size, shape.image_size, device=device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak = next((value for key, value in PEAK_TFLOPS.items() if key in name), None)
    for title, (patch, keep) in {"dense": DENSE, "keep 0.25 / 0.25": DROPPED, "patch 32": LARGE}.items():
        method = SimCLR(VisionTransformer(shape), hidden=HIDDEN, out=OUT, temperature=TEMPERATURE).to(device).train()
        method.backbone.compile(dynamic=False)
        step = step_of(method, images, patch, keep)

        def autocast(step: Callable[[], None] = step) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                step()

        found = timed({"step": autocast}, device)["step"]
        macs = 6 * batch * forward_macs(shape, patch=patch, keep=keep)
        rate = 2 * macs / found.median_ms / 1e9  # TFLOP/s
        used = "unknown" if peak is None else f"{rate / peak:.1%} of {peak}"
        print(
            f"{name}, batch {batch}, bf16, compiled, {title}: {1000 * batch / found.median_ms:.0f} images/s, "
            f"{rate:.0f} TFLOP/s, MFU {used}",
            flush=True,
        )


def main() -> int:
    """Run everything."""
    torch.manual_seed(0)
    print(
        f"SimCLR, ViT-S/16 224, batch {BATCH}, float32, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}.\n"
        "Milliseconds of both arms, median (p10-p90); their ratio (95 % interval); the ratio asked for.",
        flush=True,
    )
    good = [row.show() for row in steps()]
    if torch.cuda.is_available():
        throughput(torch.device("cuda"), BASE, GPU_BATCH)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
