"""Detectors of boxes: Cascade R-CNN (arXiv 1712.00726) on torchvision's detection parts, `cascade-rcnn:PRESET`.

B images of any size, C classes of the data, n outputs beside background (C times the conditions with subclasses).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from effvl_cli.core.errors import UsageError
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models.detector_spec import FAMILY, DetectorSpec, Norm
from effvl_cli.models.detector_weights import adapt, fetch
from effvl_cli.models.network import Network
from effvl_cli.models.normalise import STATISTICS
from effvl_cli.models.tiny import thin_resnet_body
from effvl_cli.techniques.detect.box_pooling import PyramidRoIAlign
from effvl_cli.techniques.detect.cascade_head import CascadePredictor, CascadeRoIHeads
from effvl_cli.techniques.detect.proposals import Float32RPNHead, ProposalNetwork
from effvl_cli.techniques.detect.shared_batch import ALONE, use_generators
from effvl_cli.techniques.detect.subclass import conditions_of, parents_of

_POOL = 7  # cells of RoIAlign on a side
_LEVELS = ("0", "1", "2", "3")  # of the pyramid that boxes are pooled from
_LAYERS = ("layer4", "layer3", "layer2", "layer1", "conv1")
_GROUPS = 32
_LARGEST_GENERAL = 91  # classes of COCO with background, where no data say how many there are
Norms = Callable[[int], nn.Module]


class Resize(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's normalisation, resize and padding.

    An image that already has the size stays as it is, unless torchvision's stream is drawn from. Of several training
    sizes one is drawn for each image, from its generator where such are set; batches are padded to the largest image
    of all processes.
    """

    generators: Sequence[torch.Generator] | None = None

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        self.group = ALONE
        self._generator: torch.Generator | None = None

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Images (3, H, W) as one batch, and their targets with boxes at its size."""
        generators: Sequence[torch.Generator | None] = self.generators or [None] * len(images)
        self._waiting = iter(generators)
        found: tuple[ImageList, list[dict[str, Tensor]] | None] = super().forward(images, targets)
        return found

    def torch_choice(self, k: Sequence[int]) -> int:
        """One of the shortest sides."""
        draw = self._generator
        return (
            int(super().torch_choice(k))
            if draw is None
            else k[int(torch.randint(len(k), (), generator=draw, device=draw.device))]
        )

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The image (3, H, W) and its boxes at the network's size."""
        self._generator = next(self._waiting)
        height, width = image.shape[-2:]
        sizes = self.min_size if self.training else self.min_size[-1:]
        fits = len(sizes) == 1 and min(sizes[0] / min(height, width), self.max_size / max(height, width)) == 1
        if fits and not (self.training and self._generator is None):
            return image, target
        found: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
        return found

    def max_by_axis(self, the_list: list[list[int]]) -> list[int]:
        """Channels, height and width of the batch."""
        found: list[int] = super().max_by_axis(the_list)
        return [self.group.largest(side) for side in found] if self.training else found


class CascadeRCNN(nn.Module):
    """Backbone, proposals, and boxes refined stage by stage.

    Attributes:
        spec: what it is made of.
        num_classes: C.
        expose: in evaluation, give the proposals and the results of every stage too.
    """

    def __init__(
        self, spec: DetectorSpec, num_classes: int, backbone: nn.Module, rpn: nn.Module, roi_heads: CascadeRoIHeads
    ) -> None:
        super().__init__()
        self.spec, self.num_classes = spec, num_classes
        mean, std = STATISTICS["imagenet"]
        self.transform = Resize(spec.min_size, spec.max_size, mean, std)
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads

    @property
    def expose(self) -> bool:
        """Whether results have `proposals` (P, 4), `stage_boxes` (K, P, 4) and `stages` (K detections)."""
        return self.roi_heads.expose_stages

    @expose.setter
    def expose(self, value: bool) -> None:
        self.roi_heads.expose_stages = value

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        generators: list[torch.Generator] | None = None,
    ) -> Any:
        """Losses in training, detections in evaluation.

        Args:
            images: (3, H, W) each, float32 in 0..1 or uint8.
            targets: of each image; in training boxes (N, 4) in pixels of the image, labels (N,) int64 in 1..n, perhaps
                ignore (N,) bool and labelled (1 + C,) bool; in evaluation perhaps condition (), for merge="gated".
            generators: for each image, of the samplers and of the training size; None: the device's own stream.

        Returns:
            In training scalars by name: loss_classifier_s{k}, loss_box_reg_s{k}, loss_objectness, loss_rpn_box_reg. In
            evaluation for each image boxes (D, 4) in its pixels, labels (D,) in 1..C, scores (D,), conditions (D,).
        """
        use_generators(self, generators)
        sizes = [tuple(image.shape[-2:]) for image in images]
        floats = [image.float() / 255 if image.dtype == torch.uint8 else image for image in images]
        batch, resized = self.transform(floats, targets if self.training else None)
        results, losses = self.at_size(batch, resized if self.training else targets)
        if self.training:
            return losses
        pairs = zip(results, batch.image_sizes, sizes, strict=True)
        return [_restored(result, inside, outside) for result, inside, outside in pairs]

    def at_size(
        self, batch: ImageList, targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """Detections and losses of images that are normalised, resized and padded, in pixels of these."""
        features = self.backbone(batch.tensors)
        proposals, losses = self.rpn(batch, features, targets if self.training else None)
        results, own = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return results, own | losses


def _restored(result: dict[str, Any], inside: tuple[int, int], outside: tuple[int, ...]) -> dict[str, Any]:
    """A result with its boxes in pixels of the image as it came."""
    found = dict(result)
    for name in {"boxes", "proposals"} & result.keys():
        found[name] = resize_boxes(result[name], inside, outside)
    if "stages" in result:
        found["stage_boxes"] = torch.stack([resize_boxes(boxes, inside, outside) for boxes in result["stage_boxes"]])
        found["stages"] = [_restored(stage, inside, outside) for stage in result["stages"]]
    return found


def build(argument: str, *, num_classes: int | None = None) -> Network:
    """Registry builder: `PRESET[,WORD=VALUE,...]`, see models/detector_spec.py.

    Raises:
        UsageError: it cannot be read, or does not fit together.
    """
    spec = DetectorSpec.parse(argument)
    module = detector(spec, num_classes or _LARGEST_GENERAL - 1)
    mean, std = STATISTICS["imagenet"]
    preprocess = Preprocess(size=(spec.min_size[-1], spec.max_size), mean=mean, std=std, interpolation="bilinear")
    return Network(spec.name, "detector", module, preprocess, fetch=partial(fetch, spec), adapt=adapt)


def spec_of(network: Network) -> DetectorSpec:
    """The spec of a detector.

    Raises:
        UsageError: another network.
    """
    family, _, argument = network.name.partition(":")
    if family != FAMILY:
        raise UsageError(f"--model {network.name} is no detector", f"Give {FAMILY}:tiny, :light or :paper")
    return DetectorSpec.parse(argument)


def detector(spec: DetectorSpec, num_classes: int) -> CascadeRCNN:
    """A detector with random weights.

    Args:
        spec: what it is made of.
        num_classes: C.
    """
    backbone = _backbone(spec)
    anchors = AnchorGenerator(tuple((side,) for side in spec.anchors), ((0.5, 1.0, 2.0),) * len(spec.anchors))
    rpn = ProposalNetwork(
        anchors,
        Float32RPNHead(spec.fpn, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=dict(zip(("training", "testing"), spec.pre_nms, strict=True)),
        post_nms_top_n=dict(zip(("training", "testing"), spec.post_nms, strict=True)),
        nms_thresh=0.7,
    )
    return CascadeRCNN(spec, num_classes, backbone, rpn, _heads(spec, num_classes))


def _heads(spec: DetectorSpec, num_classes: int) -> CascadeRoIHeads:
    present, conditions = spec.present(num_classes), max(1, len(spec.conditions))
    parents = parents_of(num_classes, conditions, present)
    return CascadeRoIHeads(
        PyramidRoIAlign(output_size=_POOL, aligned=spec.roi_aligned),
        [TwoMLPHead(spec.fpn * _POOL**2, spec.head_width) for _ in range(spec.num_stages)],
        [
            CascadePredictor(spec.head_width, len(parents), class_agnostic=spec.class_agnostic)
            for _ in range(spec.num_stages)
        ],
        fg_iou=spec.iou,
        reg_weights=spec.stage_weights,
        loss_weights=spec.loss_weights,
        batch_size_per_image=spec.rois,
        class_agnostic=spec.class_agnostic,
        box_loss_beta=spec.box_loss_beta,
        resample=spec.resample,
        score_avg=spec.score_avg,
        score_thresh=spec.score_thresh,
        nms_thresh=spec.nms_thresh,
        detections_per_img=spec.detections,
        parents=parents,
        conditions=conditions_of(num_classes, conditions, present),
        merge=spec.merge,
        stage_grad_scale=spec.stage_grad_scale,
    )


def _backbone(spec: DetectorSpec) -> nn.Module:
    norm = _NORMS[spec.norm]
    body = thin_resnet_body(norm) if spec.preset == "tiny" else resnet18(weights=None, norm_layer=norm)
    trained = _LAYERS[: spec.trainable_layers] + (("bn1",) if spec.trainable_layers == len(_LAYERS) else ())
    for name, parameter in body.named_parameters():
        if not name.startswith(trained):
            parameter.requires_grad_(False)
    widths = [body.get_submodule(f"layer{k}")[-1].bn2.weight.numel() for k in range(1, 5)]  # type: ignore[index]
    returned = {f"layer{k + 1}": level for k, level in enumerate(_LEVELS)}
    return BackboneWithFPN(body, returned, widths, spec.fpn, LastLevelMaxPool())  # type: ignore[no-any-return]


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)


_NORMS: Mapping[Norm, Norms] = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d, "group": _group_norm}
