"""What mining costs of a training step of S3D: the row of `make bench-cpr-mine` (MoCo on clips of 32 frames of 128 px).

The step has B = 32 clips, queues of N = 2048 and a cascade of S = 7 stages in two views. Its encoders are timed on
`CLIPS` clips, whose activations fit into the memory of a small machine, and the time is multiplied by B / CLIPS:
convolutions take as long for each clip. The mining is timed as it is, with all 32 clips.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from effvl_cli.core.bench import Latency, timed
from effvl_cli.models.network import build
from effvl_cli.techniques.cpr_mine.cascade import mine
from effvl_cli.techniques.cpr_mine.cascade_moco import CascadeMoCo, ClipViews, Objective
from effvl_cli.techniques.cpr_mine.forbid import Forbid
from effvl_cli.techniques.cpr_mine.queue import Queues
from effvl_cli.techniques.cpr_mine.stages import official

BATCH, SLOTS, DIM, NUM_STAGES, TOP_K = 32, 2048, 128, 7, 5
FRAMES, SIZE, CLIPS = 32, 128, 2
MOST = 0.02


@dataclass(frozen=True)
class Share:
    """Times of a step and of the mining in it.

    Attributes:
        step: of `clips` clips, without mining.
        mining: of the whole batch.
        clips: that the step was timed with.
        batch: that it is meant for.
    """

    step: Latency
    mining: Latency
    clips: int
    batch: int

    @property
    def value(self) -> float:
        """Seconds of mining over those of a step of the whole batch, medians."""
        return self.mining.median_ms / (self.step.median_ms * self.batch / self.clips)

    def row(self) -> dict[str, object]:
        """As the benchmark prints it."""
        return {
            "what": f"mining in an S3D step, B={self.batch}, N={SLOTS}, S={NUM_STAGES}",
            "step_ms": self.step.median_ms * self.batch / self.clips,
            "mining_ms": self.mining.median_ms,
            "share": self.value,
            "target": f"below {MOST}",
            "passed": self.value < MOST,
        }


def measure(
    device: torch.device, *, model: str = "s3d", clips: int = CLIPS, frames: int = FRAMES, size: int = SIZE
) -> Share:
    """Time both in turn.

    Args:
        device: of the encoders.
        model: encoder of both views.
        clips: of the timed step.
        frames: of a clip.
        size: of a clip in px.
    """
    generator = torch.Generator().manual_seed(0)
    numbers = torch.arange(SLOTS)
    encoders = [build(f"{model}:dim={DIM}" if model == "tiny3d" else model, seed=seed).module for seed in (0, 1)]
    queues = Queues({"rgb": DIM, "flow": DIM}, SLOTS, generator)
    rows = {view: bank.clone() for view, bank in queues.banks.items()}
    queues.enqueue(rows, numbers, numbers // 4, numbers % 10)
    method = CascadeMoCo(encoders[0], "rgb", {"flow": encoders[1].to(device)}, queues, Objective()).to(device).train()
    noise = torch.rand(clips, 3, frames, size, size, generator=generator).to(device)
    few = numbers[:clips].to(device)
    views = ClipViews(noise, noise, {"flow": noise}, few, few // 4, few % 10)

    def step() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            method.step(views).loss.backward()
            method.encoder.zero_grad(set_to_none=True)

    return Share(*_times(step, _mining(method, generator, device), device), clips, BATCH)


def _mining(method: CascadeMoCo, generator: torch.Generator, device: torch.device) -> Callable[[], None]:
    """Mining as a step does it, for the whole batch."""
    queues = method.queues
    stages = official(SLOTS, ("flow", "rgb"), num_stages=NUM_STAGES, ratio=0.5, top_k=TOP_K)
    queries = {
        view: F.normalize(torch.randn(BATCH, DIM, generator=generator), dim=1).to(device) for view in queues.views
    }
    clips = torch.arange(BATCH, device=device)
    forbid = Forbid(clips, queues.clips, clips // 4, queues.groups)

    def run() -> None:
        mine(queries, queues.banks, stages, forbid=forbid, normalize=False, check=False)

    return run


def _times(step: Callable[[], None], mining: Callable[[], None], device: torch.device) -> tuple[Latency, Latency]:
    few = 3 if device.type == "cpu" else None  # a step takes ten seconds there, and the share is far from the target
    found = timed({"step": step, "mining": mining}, device, seconds=5.0, passes=few)
    return found["step"], found["mining"]


def main() -> int:
    """Print the row; 1 if mining costs too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    found = measure(torch.device(parser.parse_args().device))
    print(found.row())
    return int(found.value >= MOST)


if __name__ == "__main__":
    sys.exit(main())
