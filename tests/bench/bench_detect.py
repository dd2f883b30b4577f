"""Measured times of detectors beside those that are asked for: `make bench-detect`.

On the CPU: one stage against torchvision's Faster R-CNN of the same parts and weights, three stages against one, at
`light`, 480x864 px and 300 proposals; onnxruntime beside eager; the wait for data while `tiny` trains on cached scenes.
With a GPU also images per second of `light` in bfloat16. Random weights, with a background that leaves about as many
detections as a trained network has: time does not depend on more. Exits 1 if a figure misses what is asked.
Wants an idle machine.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FasterRCNN

from effvl_cli.cli.app import main as effvl
from effvl_cli.core.bench import Latency, ratio, timed
from effvl_cli.core.measure import count_macs
from effvl_cli.core.report import read_report
from effvl_cli.core.run_files import REPORT
from effvl_cli.engines.detect.bench import PARTS, part_passes
from effvl_cli.engines.detect.fixed_images import road_images
from effvl_cli.engines.detect.onnx_runner import OnnxDetector
from effvl_cli.models.detector import CascadeRCNN, detector
from effvl_cli.models.detector_graph import FixedSize
from effvl_cli.models.detector_onnx import properties, write_onnx
from effvl_cli.models.detector_spec import DetectorSpec

SIZE, CLASSES = (480, 864), ("pedestrian", "vehicle", "scooter", "bicycle")
SECONDS = 20.0  # of an arm
CASCADE = 1.35  # of the time of one stage, at most
PEER = 1.05  # of torchvision's time, at the upper end of the interval
PAIR_SECONDS, PAIR_PASSES = 50.0, 60  # of an arm beside torchvision's: the two are equal but for a few milliseconds
WAIT = 0.10  # of a training step
STEPS = 100
BACKGROUND = 3.0  # bias of the background's logit
GPU_BATCHES = (1, 16)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One comparison: time of an arm over that of a reference, and the most that is allowed (None: shown only).

    A peer's row passes if the upper end of the interval does, the others by their ratio.
    """

    name: str
    arm: Latency
    reference: Latency
    allowed: float | None
    macs: float | None = None
    of_peer: bool = False

    def show(self) -> bool:
        """Print it; True if it is what was asked for."""
        found = ratio(self.arm, self.reference)
        good = self.allowed is None or (found.high if self.of_peer else found.value) <= self.allowed
        times = "  ".join(f"{t.median_ms:8.1f} ({t.p10_ms:.1f}-{t.p90_ms:.1f})" for t in (self.arm, self.reference))
        asked = "" if self.allowed is None else f"   at most {self.allowed:.2f}   {'PASS' if good else 'FAIL'}"
        macs = "" if self.macs is None else f"   MACs {self.macs:.2f}x"
        span = f"{found.value:5.2f}x ({found.low:.2f}-{found.high:.2f})"
        print(f"{self.name:48} {times:46} {span}{macs}{asked}", flush=True)
        return good


def built(preset: str, stages: int, *, agnostic: bool = True, shared: CascadeRCNN | None = None) -> CascadeRCNN:
    """A detector in evaluation mode, with the backbone and proposals of another one if that is given."""
    module = detector(DetectorSpec.of(preset, num_stages=stages, class_agnostic=agnostic), len(CLASSES)).eval()
    for predictor in module.roi_heads.box_predictors:
        predictor.cls_score.bias.data[0] = BACKGROUND
    if shared is not None:
        module.backbone, module.rpn = shared.backbone, shared.rpn
    return module


def peer_of(module: CascadeRCNN) -> FasterRCNN:
    """torchvision's Faster R-CNN with the parts of a detector of one stage."""
    spec, heads = module.spec, module.roi_heads
    return FasterRCNN(
        module.backbone,
        rpn_anchor_generator=module.rpn.anchor_generator,
        rpn_head=module.rpn.head,
        box_head=heads.box_heads[0],
        box_predictor=heads.box_predictors[0],
        min_size=spec.min_size[-1],
        max_size=spec.max_size,
        rpn_pre_nms_top_n_test=spec.pre_nms[1],
        rpn_post_nms_top_n_test=spec.post_nms[1],
    ).eval()


def stages(images: list[Tensor]) -> list[Row]:
    """One stage against torchvision's, three against one."""
    three = built("light", 3)
    one, own = built("light", 1, shared=three), built("light", 1, agnostic=False, shared=three)
    peer = peer_of(own)
    with torch.inference_mode():
        same = all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(peer(images), own(images), strict=True))
    print(f"boxes of one stage and of torchvision: {'identical' if same else 'different'}", flush=True)
    pair: dict[str, Callable[[], object]] = {"peer": lambda: peer(images), "own": lambda: own(images)}
    times = timed(pair, CPU, seconds=PAIR_SECONDS, passes=PAIR_PASSES)
    times |= timed({"one": lambda: one(images), "three": lambda: three(images)}, CPU, seconds=SECONDS)
    macs = count_macs(three, images) / count_macs(one, images)
    with torch.inference_mode():
        parts = timed(part_passes(three, images), CPU, seconds=SECONDS / 4)
    print("three stages by part, ms: " + ", ".join(f"{name} {parts[name].median_ms:.0f}" for name in PARTS), flush=True)
    allowed = PEER if same else 0.0
    return [
        Row("light: one stage / torchvision, same parts", times["own"], times["peer"], allowed, of_peer=True),
        Row("light: three stages / one, 300 proposals", times["three"], times["one"], CASCADE, macs),
    ]


def in_onnxruntime(preset: str, size: tuple[int, int]) -> Row:
    """The exported detector against eager, from an image to its detections."""
    module, images = built(preset, 3), road_images(1, size, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(FixedSize(module, size, full=True), path, properties(module, CLASSES, size, "full"), 17)
        file = OnnxDetector(path)
        times = timed({"file": lambda: file(images), "eager": lambda: module(images)}, CPU, seconds=SECONDS / 2)
    return Row(f"{preset}: onnxruntime / eager, {size[0]}x{size[1]}", times["file"], times["eager"], None)


def data_wait() -> bool:
    """Share of a training of `tiny` that waits for data, once the scenes are cached."""
    with tempfile.TemporaryDirectory() as folder:
        common = ["--cache-dir", f"{folder}/cache", "--num-pictures", "0", "--select", "last", "--quiet"]
        for name, steps in (("first", 1), ("second", STEPS)):
            with contextlib.redirect_stdout(io.StringIO()):
                code = effvl(["detect", "train", "--steps", str(steps), "--out", f"{folder}/{name}", *common])
            assert code == 0, name
        found = read_report(Path(folder) / "second" / REPORT).technique["arms"]["train"]["data_wait_fraction"]
    good = bool(found < WAIT)
    verdict = "PASS" if good else "FAIL"
    print(f"tiny: share of {STEPS} steps that waits for data {found:.1%}   below {WAIT:.0%}   {verdict}", flush=True)
    return good


def on_gpu() -> None:
    """Images per second of `light` in bfloat16."""
    device = torch.device("cuda")
    module = built("light", 3).to(device)
    for batch in GPU_BATCHES:
        images = [image.to(device) for image in road_images(batch, SIZE, 0)]
        with torch.autocast("cuda", torch.bfloat16):
            found = timed({"light": lambda images=images: module(images)}, device, seconds=SECONDS / 2)["light"]
        speed, name = 1000 * batch / found.median_ms, torch.cuda.get_device_name()
        print(f"light on {name}, bf16, batch {batch}: {speed:.0f} images/s", flush=True)


def main() -> int:
    """Run everything."""
    torch.manual_seed(0)
    print(
        f"float32, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}. "
        "Milliseconds of the arm and of its reference, median (p10-p90); time over the reference's (95 % interval).",
        flush=True,
    )
    good = [row.show() for row in stages(road_images(1, SIZE, 0))]
    for preset, size in (("tiny", (160, 256)), ("light", SIZE)):
        in_onnxruntime(preset, size).show()
    good.append(data_wait())
    if torch.cuda.is_available():
        on_gpu()
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
