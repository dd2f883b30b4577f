"""The detector of a finished run or of an exported file, for images of any source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from effvl_cli.config.detect_predict import PredictConfig
from effvl_cli.config.detect_tag import NIGHT_THRESH
from effvl_cli.core.errors import ModelError
from effvl_cli.core.find_run import find_run
from effvl_cli.core.loop import autocast
from effvl_cli.core.run import Run
from effvl_cli.data.box_batches import Shrink
from effvl_cli.engines.detect.found_files import Detections
from effvl_cli.models import network as networks
from effvl_cli.models.detector_spec import FAMILY
from effvl_cli.techniques.detect.tagging import lightness

KEYS = ("boxes", "scores", "labels", "conditions")


@dataclass(frozen=True)
class Finder:
    """A detector, and how it is fed.

    Attributes:
        classes: names.
        shrink: to the size at which it looks at images.
        detect: from images (3, h, w) uint8 of one size, and whether each is of the night, to what is found in each,
            in its pixels.
        score: least score of what counts.
        gated: whether it has to know which images are of the night.
    """

    classes: tuple[str, ...]
    shrink: Shrink
    detect: Callable[[Sequence[Tensor], Sequence[bool]], list[Detections]]
    score: float
    gated: bool = False

    def pixels(self, image: Image.Image) -> Tensor:
        """(3, h, w) uint8 of an image as the detector sees it."""
        return self.shrink(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())

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
    """The detector of RUN.

    Raises:
        DataError: no run.
        ModelError: it holds no detector.
    """
    folder = find_run("detect", config.run)
    if not str(networks.manifest_of(str(folder)).get("model", "")).startswith(f"{FAMILY}:"):
        raise ModelError(f"{folder} holds no detector", "Give a run of `effvl detect` or `effvl detect train`")
    network = networks.load(None, str(folder), default=f"{FAMILY}:tiny", kind="detector", log=run.log)
    module, spec = network.module.to(run.device).eval(), network.module.spec
    module.roi_heads.score_thresh = config.score  # what is below could not suppress what is above
    run.report.model(network.name, network.source, module)

    def detect(images: Sequence[Tensor], night: Sequence[bool]) -> list[Detections]:
        with torch.inference_mode(), autocast(run.device, config.precision):
            targets = [{"condition": torch.tensor(int(dark), device=run.device)} for dark in night]
            found: list[Detections] = module([image.to(run.device) for image in images], targets)
        return found

    classes = tuple(network.manifest["classes"])
    return Finder(classes, Shrink(spec.min_size[-1], spec.max_size), detect, config.score, gated=spec.merge == "gated")
