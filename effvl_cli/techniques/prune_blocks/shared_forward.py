"""Forward passes over one batch that share common computations.

Ours, for the scoring of arXiv 2312.16904; see `score`.
"""

import bisect
import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .trace import Forward, Trace, first_input

Buffers = Mapping[str, Tensor]


class DivergedError(RuntimeError):
    """The parts were called in another order than before."""


def run(network: nn.Module, images: Tensor, buffers: Buffers) -> Tensor:
    """Logits (B, C) float32 of a network with some buffers replaced."""
    logits: Tensor = functional_call(network, dict(buffers), (images,)) if buffers else network(images)
    return logits.float()


class Sweep:
    """Passes over one batch, with their shared outputs.

    Args:
        network: in evaluation mode.
        trace: of it.
        images: (B, 3, H, W), the batch.
        chain: keep only the newest output.
    """

    def __init__(self, network: nn.Module, trace: Trace, images: Tensor, *, chain: bool) -> None:
        self.network = network
        self.trace = trace
        self.images = images
        self.chain = chain
        self._levels: list[list[Any]] = [[]]  # outputs from call 0 on, then from each replaced call on
        self._next = 0  # number of the next call of this pass
        self._stand_ins: dict[int, Forward] = {}
        self._path: list[int] = []  # numbers of the replaced calls, ascending

    def forwards(self) -> dict[nn.Module, Forward]:
        """For `patched`, while the passes run."""
        return {module: partial(self._call, module, module.forward) for module in set(self.trace.modules)}

    def without(self, stand_ins: Mapping[int, Forward], buffers: Buffers) -> Tensor:
        """Logits (B, C) with other modules instead of some calls.

        Sets must come in the order of their calls' numbers, a set after all that begin with it; the empty one is last.

        Args:
            stand_ins: by number of the call.
            buffers: replacements, for modules that are called after the first of these calls.
        """
        path = sorted(stand_ins)
        pairs = zip(path, self._path, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._levels = [*self._levels[: same + 1], *([] for _ in path[same:])]
        self._stand_ins, self._path = dict(stand_ins), path
        return self._pass(buffers)

    def _pass(self, buffers: Buffers) -> Tensor:
        """The network on the images (B, 3, H, W) with some buffers replaced, to logits (B, C)."""
        self._next = 0
        logits = run(self.network, self.images, buffers)
        if self._next != len(self.trace.modules):
            raise DivergedError("not all parts are called in each pass")
        return logits

    def _call(self, module: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        number = self._next
        self._next += 1
        if number >= len(self.trace.modules) or self.trace.modules[number] is not module:
            raise DivergedError("the parts are not called in the same order in each pass")
        output = self._output(number, forward, args, kwargs)
        return output.clone() if number in self.trace.overwritten else output

    def _output(self, number: int, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        depth = bisect.bisect_right(self._path, number)
        level = self._levels[depth]
        place = number - (self._path[depth - 1] if depth else 0)
        if place < len(level):
            return level[place]
        output = self._stand_ins.get(number, forward)(*args, **kwargs)
        if depth < len(self._path):
            self._keep(level, number, output)
        return output

    def _keep(self, level: list[Any], number: int, output: Any) -> None:
        """Keep an output; in a chain, earlier ones on its level lose their storage, those on other levels do not."""
        if self.chain and number >= self.trace.chain_from and level:
            oldest = 0 if number == self.trace.chain_from else len(level) - 1
            level[oldest:] = [_without_storage(value) for value in level[oldest:]]
        level.append(output)


class StackedSweep(Sweep):
    """Passes over one batch of a chain in which candidates run side by side, as rows of one larger batch.

    The first rows are the network's own. Where a candidate's unit is called, its stand-in gets these rows, and
    its output is appended as further rows; in the pass of the last candidate the network's own rows end there.
    """

    def __init__(self, network: nn.Module, trace: Trace, images: Tensor) -> None:
        super().__init__(network, trace, images, chain=True)
        self._rows = 1

    def beside(self, stand_ins: Mapping[int, Forward]) -> list[Tensor]:
        """Logits (B, C) with each call replaced alone, by ascending number; of the network itself without any.

        Numbers ascend from pass to pass.
        """
        self._stand_ins, self._rows = dict(stand_ins), 1
        return list(self._pass({}).split(len(self.images)))

    def _output(self, number: int, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known, count = self._levels[0], len(self.images)
        if number < len(known):
            return known[number]
        last = max(self._stand_ins, default=-1)
        joins = number in self._stand_ins
        if joins:  # first: the call may overwrite its input
            aside = self._stand_ins[number](first_input(args, kwargs)[:count]).clone()
        output = forward(*args, **kwargs)
        if number <= last:
            self._keep(known, number, output if self._rows == 1 else output[:count])
        if joins:
            output = torch.cat([output[count if number == last else 0 :], aside])
            self._rows += 1
        return output


def _without_storage(value: Any) -> Any:
    """NaN of the same shape and type for floating-point tensors; anything else unchanged."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.new_full((), torch.nan).expand(value.shape)
    return value
