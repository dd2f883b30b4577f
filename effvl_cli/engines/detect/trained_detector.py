"""The detector of a finished run or of an exported file, for images of any source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from effvl_cli.config.detect_predict import PredictConfig
from effvl_cli.config.detect_tag import NIGHT_THRESH
from effvl_cli.core.find_run import find_run
from effvl_cli.core.loop import autocast
from effvl_cli.core.run import Run
from effvl_cli.data.box_batches import Shrink
from effvl_cli.engines.detect.detecting import shrink_of
from effvl_cli.engines.detect.detectors import open_detector
from effvl_cli.engines.detect.found_files import Detections
from effvl_cli.engines.detect.onnx_runner import OnnxDetector
from effvl_cli.techniques.detect.tagging import lightness

KEYS = ("boxes", "scores", "labels", "conditions")


@dataclass(frozen=True)
class Finder:
    """A detector, and how it is fed.

    Attributes:
        classes: names.
        detect: from images (3, h, w) uint8 of one size, and whether each is of the night, to what is found in each,
            in its pixels.
        score: least score of what counts.
        shrink: to the size at which it looks at images; None: it does that itself.
        gated: whether it has to know which images are of the night.
    """

    classes: tuple[str, ...]
    detect: Callable[[Sequence[Tensor], Sequence[bool]], list[Detections]]
    score: float
    shrink: Shrink | None = None
    gated: bool = False

    def pixels(self, image: Image.Image) -> Tensor:
        """(3, h, w) uint8 of an image as the detector sees it."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels if self.shrink is None else self.shrink(pixels)

    def find(self, pixels: Sequence[Tensor], images: Sequence[Image.Image]) -> list[Detections]:
        """What is found in images, in their own pixels, on the CPU.

        Args:
            pixels: of each image, all of one size.
            images: of any size.
        """
        results = self.detect(pixels, [self.gated and _dark(image) for image in images])
        return [self._restored(found, own, image) for found, own, image in zip(results, pixels, images, strict=True)]

    def _restored(self, found: Detections, pixels: Tensor, image: Image.Image) -> Detections:
        kept = {key: found[key].cpu()[found["scores"].cpu() > self.score] for key in KEYS if key in found}
        height, width = pixels.shape[-2:]
        across, down = image.width / width, image.height / height
        return {**kept, "boxes": kept["boxes"].float() * torch.tensor([across, down, across, down])}


def _dark(image: Image.Image) -> bool:
    return lightness(torch.from_numpy(np.array(image.convert("L"))))[0] < NIGHT_THRESH


def finder_of(config: PredictConfig, run: Run) -> Finder:
    """The detector of RUN, or that of --onnx.

    Raises:
        DataError: no run.
        ModelError: it holds no detector.
        MissingPackageError: onnxruntime is not installed.
    """
    return _of_run(config, run) if config.onnx is None else _of_file(config.onnx, config.score, run)


def _of_run(config: PredictConfig, run: Run) -> Finder:
    network = open_detector(find_run("detect", config.run), run)
    module, spec = network.module.eval(), network.module.spec
    module.roi_heads.score_thresh = config.score  # what is below could not suppress what is above
    run.report.model(network.name, network.source, module)

    def detect(images: Sequence[Tensor], night: Sequence[bool]) -> list[Detections]:
        with torch.inference_mode(), autocast(run.device, config.precision):
            targets = [{"condition": torch.tensor(int(dark), device=run.device)} for dark in night]
            found: list[Detections] = module([image.to(run.device) for image in images], targets)
        return found

    return Finder(
        tuple(network.manifest["classes"]), detect, config.score, shrink_of(spec), gated=spec.merge == "gated"
    )


def _of_file(path: str, score: float, run: Run) -> Finder:
    detector = OnnxDetector(path)
    least = detector.props["score_thresh"]
    if score < least:
        run.warn(f"--score is {score:g}, and --onnx {path} finds nothing below {least:g}")
    return Finder(detector.classes, lambda images, night: list(detector(images)), score)
