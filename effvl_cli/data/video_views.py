"""Views of a clip: its frames, their differences, and the motion between them.

`make_view` gives a view by name; called with the frames of B clips it gives (B, C, T', H, W). A view that needs
neighbours of a frame gives fewer frames than it is given: `context` says how many, so that clips of T view frames take
T + context frames, and view frame t of all views of a clip belongs to frame t.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.registry import nearest
from effvl_cli.data.optical_flow import METHODS, ClipFlow, clip_flow

LUMA = (0.299, 0.587, 0.114)
WINDOW, TIKHONOV, LIMIT = 5, 1e-3, 2.0  # px, added to the diagonal, px of the level
PYRAMID, SMALL = 3, 32  # levels; frames with a shorter side get one level
FAR = 20.0  # px of motion that a flow view writes as 1; 2 for gradflow at one level, which cannot find more

CODEC, STORED, OWN = slice(3, 5), slice(5, 7), slice(7, 10)
"""Channels of frames that carry the codec's motion, motion kept in files, and a user's pictures (`carried_views`)."""


@dataclass(frozen=True)
class View:
    """What a clip looks like to one encoder.

    Attributes:
        name: as the user writes it.
        channels: C; the first two of motion are to the right and down.
        context: frames that it needs beyond those it gives.
        compute: from frames (B, T, H, W, 3) uint8 to (B, C, T - context, H, W) float32.
        local: whether a frame of it depends on its own frame and the `context` ones after it alone, so that the view
            of a clip is a part of the view of its video.
    """

    name: str
    channels: int
    context: int
    compute: Callable[[Tensor], Tensor]
    local: bool = False

    def __call__(self, clips: Tensor) -> Tensor:
        """(B, T, H, W, 3 or more) uint8 to (B, C, T - context, H, W) float32: colours in 0..1, motion in -1..1."""
        return self.compute(clips)


Make = Callable[[str, str, Mapping[str, Any]], View]
"""From the name, the argument behind its colon, and options."""


def view_names() -> tuple[str, ...]:
    """What can be asked for."""
    plain = [name for name in _VIEWS if name not in ("flow", "precomputed")]
    return (*plain, *(f"flow:{method}" for method in ("mv", *METHODS)), "precomputed:DIR")


def make_view(name: str, **options: Any) -> View:
    """A view by its name, e.g. "rgb", "gradflow", or "gradflow:1" for one level of it.

    Args:
        name: as the user writes it.
        options: of views that have any; others pass over them.

    Raises:
        UsageError: unknown.
    """
    kind, _, argument = name.partition(":")
    if kind in _VIEWS and name != "flow" and not name.endswith(":"):
        return _VIEWS[kind](name, argument, options)
    raise UsageError(f"unknown view {name!r}", nearest(name, view_names()) or f"Known: {', '.join(view_names())}")


def is_motion(name: str) -> bool:
    """Whether a view's first two channels are motion."""
    return name.partition(":")[0] in ("gradflow", "flow")


# --- colours ---------------------------------------------------------------------------------------------------------


def as_floats(clips: Tensor) -> Tensor:
    """(B, T, H, W, C) uint8 to (B, 3, T, H, W) in 0..1."""
    return clips[..., :3].permute(0, 4, 1, 2, 3).float().div_(255)


def _difference(clips: Tensor) -> Tensor:
    frames = as_floats(clips)
    return (frames[:, :, 1:] - frames[:, :, :-1]).mul_(0.5).add_(0.5)


def _residual(clips: Tensor) -> Tensor:
    frames = as_floats(clips)
    return (frames - frames.mean(2, keepdim=True)).mul_(0.5).add_(0.5)


# --- motion by gradients ---------------------------------------------------------------------------------------------


def gradient_flow(clips: Tensor, levels: int = 1) -> Tensor:
    """Motion from each frame to the next by windowed least squares (Lucas and Kanade, 1981), coarse to fine.

    Args:
        clips: (B, T, H, W, 3) uint8.
        levels: of a pyramid, each half as large as the next; at each one, motion up to 2 px is found.

    Returns:
        (B, 2, T - 1, H, W) px to the right and down.
    """
    grey = torch.tensordot(clips[..., :3].float().div_(255), torch.tensor(LUMA, device=clips.device), dims=1)
    count, length, height, width = grey.shape
    first, second = (part.reshape(-1, 1, height, width) for part in (grey[:, :-1], grey[:, 1:]))
    pyramid = [(first, second)]
    while len(pyramid) < levels and min(pyramid[-1][0].shape[2:]) >= 2 * WINDOW:
        pyramid.append(tuple(F.avg_pool2d(part, 2, ceil_mode=True) for part in pyramid[-1]))  # type: ignore[arg-type]
    flow = first.new_zeros(len(first), 2, *pyramid[-1][0].shape[2:])
    for one, two in reversed(pyramid):
        if flow.shape[2:] != one.shape[2:]:
            # ceil_mode: the coarse picture may be a pixel larger than half, and each of its pixels is two of these
            wide = F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=False)
            flow = 2 * wide[:, :, : one.shape[2], : one.shape[3]]
            two = _warped(two, flow)
        flow = flow + _increment(one, two)
    found: Tensor = flow.reshape(count, length - 1, 2, height, width).transpose(1, 2)
    return found


def _increment(first: Tensor, second: Tensor) -> Tensor:
    """(M, 1, H, W) pairs to (M, 2, H, W), each component within LIMIT px."""
    middle, change = (first + second) / 2, second - first
    padded = F.pad(middle, (1, 1, 1, 1), mode="replicate")
    across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    products = torch.cat([across * across, across * down, down * down, across * change, down * change], 1)
    sums = _window_sums(products)
    xx, xy, yy, xt, yt = sums.unbind(1)
    xx, yy = xx + TIKHONOV, yy + TIKHONOV
    determinant = xx * yy - xy * xy
    flow = torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], 1) / determinant[:, None]
    return flow.clamp(-LIMIT, LIMIT)


def _window_sums(values: Tensor) -> Tensor:
    """Sums over WINDOW x WINDOW pixels, zeros beyond the border: along rows, then along columns."""
    half, (height, width) = WINDOW // 2, values.shape[2:]
    padded = F.pad(values, (half, half, half, half))
    rows = sum((padded[:, :, :, k : k + width] for k in range(1, WINDOW)), start=padded[:, :, :, :width])
    return sum((rows[:, :, k : k + height] for k in range(1, WINDOW)), start=rows[:, :, :height])


def _warped(images: Tensor, flow: Tensor) -> Tensor:
    """Pictures (M, 1, H, W) looked up at x + flow(x), (M, 2, H, W)."""
    height, width = images.shape[2:]
    size = torch.tensor([width, height], device=images.device, dtype=images.dtype)
    y, x = (torch.arange(side, device=images.device, dtype=images.dtype) for side in (height, width))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1) + flow.permute(0, 2, 3, 1)
    grid = (2 * grid + 1) / size - 1
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _gradflow(name: str, argument: str, options: Mapping[str, Any]) -> View:
    if argument not in ("", "1", "2", "3", "4"):
        raise UsageError(f"unknown view {name!r}", "Give gradflow, or gradflow:LEVELS with 1 to 4 levels")

    def compute(clips: Tensor) -> Tensor:
        levels = int(argument) if argument else 1 if min(clips.shape[2:4]) < SMALL else PYRAMID
        return (gradient_flow(clips, levels) / (LIMIT if levels == 1 else FAR)).clamp_(-1, 1)

    return View(name, 2, 1, compute, local=True)


# --- motion by others ------------------------------------------------------------------------------------------------


def encode(flow: Tensor, *, whole: bool) -> Tensor:
    """Motion as a picture of three channels.

    Args:
        flow: (B, 2, T, H, W) px.
        whole: as the code of CoCLR stores it: clipped to 20 px, rounded to 0..255, third channel 128, then in 0..1;
            else divided by 20 px, third channel 0.

    Returns:
        (B, 3, T, H, W).
    """
    scaled = (flow / FAR).clamp(-1, 1)
    if whole:
        scaled = (scaled + 1).mul_(127.5).round_().div_(255)  # halves to even: no motion becomes 128
    third = torch.full_like(scaled[:, :1], 128 / 255 if whole else 0.0)
    return torch.cat([scaled, third], 1)


def _flow(name: str, argument: str, options: Mapping[str, Any]) -> View:
    whole = "uint8" in argument.split(":")[1:]
    finder = flow_finder(name)
    if finder is None:
        return View(name, 3, 0, lambda clips: encode(_carried_motion(clips, CODEC, name), whole=whole))

    def compute(clips: Tensor) -> Tensor:
        if clips.shape[-1] >= STORED.stop:
            return encode(_carried_motion(clips, STORED, name)[:, :, :-1], whole=whole)
        return encode(finder(clips), whole=whole)

    return View(name, 3, 1, compute)


def flow_finder(name: str) -> ClipFlow | None:
    """How a view of motion is made of frames; None for one that is not.

    Raises:
        UsageError: unknown.
        MissingPackageError: what it needs is not installed.
        ModelError: weights that are missing or damaged.
    """
    kind, _, argument = name.partition(":")
    method, *words = argument.split(":")
    sizes = [int(word) for word in words if word.isdecimal()]
    files = [word for word in words if word != "uint8" and not word.isdecimal()]
    if kind != "flow":
        return None
    if len(sizes) > (method != "mv") or len(files) > (method == "raft") or 0 in sizes:
        raise UsageError(
            f"unknown view {name!r}", "Give e.g. flow:dis, flow:dis:uint8 or flow:dis:256 (short side, px)"
        )
    return None if method == "mv" else clip_flow(method, "".join(files), *sizes)


def _carried_motion(clips: Tensor, place: slice, name: str) -> Tensor:
    """(B, 2, T, H, W) px."""
    return (
        (_carried(clips, place, name).float() - 127.5).mul_(FAR / 127.5).where(_carried(clips, place, name) != 128, 0)
    )


def _carried(clips: Tensor, place: slice, name: str) -> Tensor:
    if clips.shape[-1] < place.stop:
        raise DataError(f"these frames carry nothing for the view {name}", "Give a data set of video files")
    return clips[..., place].permute(0, 4, 1, 2, 3)


def _precomputed(name: str, argument: str, options: Mapping[str, Any]) -> View:
    if not argument:
        raise UsageError(f"unknown view {name!r}", "Give precomputed:DIR")
    return View(name, 3, 0, lambda clips: _carried(clips, OWN, name).float().div_(255))


def _plain(channels: int, context: int, compute: Callable[[Tensor], Tensor], *, local: bool) -> Make:
    def make(name: str, argument: str, options: Mapping[str, Any]) -> View:
        if argument:
            raise UsageError(f"unknown view {name!r}", f"Give {name.partition(':')[0]}")
        return View(name, channels, context, compute, local)

    return make


_VIEWS: dict[str, Make] = {
    "rgb": _plain(3, 0, as_floats, local=True),
    "diff": _plain(3, 1, _difference, local=True),
    "residual": _plain(3, 0, _residual, local=False),
    "gradflow": _gradflow,
    "flow": _flow,
    "precomputed": _precomputed,
}
