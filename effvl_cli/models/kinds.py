"""What a network is for: a row for each kind, which the networks of `effvl list models` and of plug-ins are one of."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkKind:
    """What can be relied on of the networks of a kind.

    Attributes:
        gives: what it makes of images (B, 3, H, W), or of what it names.
        needs: what its module has beside a forward pass.
        images: attribute that takes the images alone; empty: the module itself does.
    """

    gives: str
    needs: tuple[str, ...] = ()
    images: str = ""


KINDS: Mapping[str, NetworkKind] = {
    "clip": NetworkKind(
        "embeddings (B, E) in a space that texts have too", ("encode_image", "encode_text", "logit_scale"), "visual"
    ),
    "classifier": NetworkKind("logits (B, classes)"),
    "backbone": NetworkKind("features (B, D)"),
    "video": NetworkKind("embeddings (B, D) of clips (B, C, T, H, W)", ("backbone", "projection")),
    "detector": NetworkKind(
        "boxes, scores and labels of a list of images (3, H, W)", ("backbone", "rpn", "roi_heads", "spec")
    ),
}
