"""Dense motion between neighbouring frames by OpenCV or torchvision. B clips of T frames of H x W pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.core.errors import MissingPackageError, ModelError, UsageError

SHORT_SIDE = 160  # px at which motion is found; that of larger frames is enlarged
FARNEBACK = (0.5, 3, 15, 3, 5, 1.2, 0)  # pyramid scale, levels, window, iterations, and the polynomials' size and sigma
RAFT_MULTIPLE, RAFT_LEAST = 8, 128  # px: what sides are padded to

PairFlow = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]
"""From two grey frames (H, W) to (H, W, 2) px to the right and down."""
ClipFlow = Callable[[Tensor], Tensor]
"""From frames (B, T, H, W, 3) uint8 to (B, 2, T - 1, H, W) float32 px."""


def clip_flow(method: str, argument: str = "", short_side: int = SHORT_SIDE) -> ClipFlow:
    """Motion from each frame to the next.

    Args:
        method: dis (Kroeger et al., arXiv 1603.03590, preset fast), farneback (2003), tvl1 (Zach et al., 2007), each
            with OpenCV's parameters, or raft (Teed and Deng, arXiv 2003.12039).
        argument: raft: file of the weights of torchvision's raft_small or raft_large.
        short_side: px to which larger frames are shrunk before.

    Raises:
        MissingPackageError: OpenCV is not installed, or without what the method needs.
        ModelError: weights that are missing or damaged.
        UsageError: unknown method.
    """
    if method == "raft":
        return _shrunk(_raft(argument), short_side)
    if method not in _BY_OPENCV:
        raise UsageError(f"unknown view flow:{method}", f"Known: {', '.join(f'flow:{known}' for known in METHODS)}")
    return _shrunk(_by_pairs(_BY_OPENCV[method](_opencv())), short_side)


def _shrunk(flow: ClipFlow, short_side: int) -> ClipFlow:
    def compute(clips: Tensor) -> Tensor:
        height, width = clips.shape[2:4]
        scale = short_side / min(height, width)
        if scale >= 1:
            return flow(clips)
        size = (round(height * scale), round(width * scale))
        planes = clips[..., :3].flatten(0, 1).permute(0, 3, 1, 2).float()
        small = F.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)
        small = small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).unflatten(0, clips.shape[:2])
        found = flow(small).transpose(1, 2)
        large = F.interpolate(found.flatten(0, 1), (height, width), mode="bilinear", align_corners=False)
        ratio = large.new_tensor([width / size[1], height / size[0]])[:, None, None]
        moved: Tensor = (large * ratio).unflatten(0, found.shape[:2]).transpose(1, 2)
        return moved

    return compute


# --- OpenCV ----------------------------------------------------------------------------------------------------------


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError("OpenCV is not installed, and finds motion", "pip install 'effvl[flow]'") from error
    return cv2


def _dis(cv2: Any) -> PairFlow:
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    return lambda first, second: finder.calc(first, second, None)


def _farneback(cv2: Any) -> PairFlow:
    return lambda first, second: cv2.calcOpticalFlowFarneback(first, second, None, *FARNEBACK)


def _tvl1(cv2: Any) -> PairFlow:
    if not hasattr(cv2, "optflow"):
        raise MissingPackageError(
            "this OpenCV has no optflow, which holds TV-L1", "pip install opencv-contrib-python-headless"
        )
    finder = cv2.optflow.createOptFlow_DualTVL1()
    return lambda first, second: finder.calc(first, second, None)


_BY_OPENCV: dict[str, Callable[[Any], PairFlow]] = {"dis": _dis, "farneback": _farneback, "tvl1": _tvl1}


METHODS = (*_BY_OPENCV, "raft")


def _by_pairs(flow: PairFlow) -> ClipFlow:
    def compute(clips: Tensor) -> Tensor:
        made = np.empty((*clips.shape[:4], 2), np.float32)[:, 1:]
        for clip, found in zip(grey(clips).cpu().numpy(), made, strict=True):
            for time in range(len(found)):
                found[time] = flow(clip[time], clip[time + 1])
        return torch.from_numpy(made).to(clips.device).permute(0, 4, 1, 2, 3)

    return compute


def grey(clips: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 to (B, T, H, W) uint8, by the weights of ITU-R BT.601."""
    luma = torch.tensor([0.299, 0.587, 0.114], device=clips.device)
    found: Tensor = torch.tensordot(clips[..., :3].float(), luma, dims=1).round().byte()
    return found


# --- RAFT ------------------------------------------------------------------------------------------------------------


def _raft(weights: str) -> ClipFlow:
    """Raises ModelError if the file is neither of torchvision's two."""
    network = _load_raft(weights)

    def compute(clips: Tensor) -> Tensor:
        network.to(clips.device)
        frames = clips[..., :3].permute(0, 1, 4, 2, 3).float().div_(127.5).sub_(1)
        height, width = frames.shape[-2:]
        tall, wide = (max(RAFT_LEAST, -(-side // RAFT_MULTIPLE) * RAFT_MULTIPLE) for side in (height, width))
        edges = [(wide - width) // 2, (wide - width + 1) // 2, (tall - height) // 2, (tall - height + 1) // 2]
        made = []
        for clip in frames:
            padded = F.pad(clip, edges, mode="replicate")
            with torch.no_grad():
                found = network(padded[:-1].contiguous(), padded[1:].contiguous())[-1]
            made.append(found[..., edges[2] : edges[2] + height, edges[0] : edges[0] + width])
        return torch.stack(made).transpose(1, 2)

    return compute


def _load_raft(weights: str) -> Any:
    from torchvision.models.optical_flow import raft_large, raft_small

    if not weights:
        raise UsageError("the view flow:raft names no weights", "Give flow:raft:FILE, weights of torchvision's RAFT")
    if not Path(weights).is_file():
        raise ModelError(f"no weights at {weights}", "Give flow:raft:FILE, weights of torchvision's RAFT")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives raise nearly anything
        raise ModelError(f"{weights} cannot be read as weights: {error}".split("\n")[0], "Save it again") from error
    for build in (raft_small, raft_large):
        network = build(weights=None).eval().requires_grad_(False)
        try:
            network.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError):
            continue
        return network
    raise ModelError(f"{weights} holds no weights of raft_small or raft_large", "Give a file of torchvision's")
