"""Small CLIPs of every supported kind with the shipped tokenizer, and learners of theirs."""

from collections.abc import Callable

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from effvl_cli.models import network as networks
from effvl_cli.models.network import Network
from effvl_cli.models.openclip_prompts import name_pieces, prompt_tower
from effvl_cli.techniques.prompt_tune.learner import PromptLearner

NAMES = ("red ring", "blue square", "a striped green cross", "cat (big)")
VIT = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
RN = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 16}
TEXT = {"width": 32, "heads": 2, "layers": 3}
KINDS = {"CLIP ViT": (CLIP, VIT), "CLIP RN": (CLIP, RN), "CustomTextCLIP ViT": (CustomTextCLIP, VIT),
         "CustomTextCLIP RN": (CustomTextCLIP, RN)}  # fmt: skip


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """A CLIP by kind, with random weights whose text embeddings differ."""

    def make(kind: str = "CLIP ViT", context: int = 24, **text: object) -> Network:
        shipped = networks.build("tiny:clip", seed=0)
        build, vision = KINDS[kind]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sizes = {"context_length": context, "vocab_size": shipped.tokenize.vocab_size}
            module = build(16, vision, {**TEXT, **sizes, **text})
            nn.init.normal_(getattr(module, "text", module).token_embedding.weight, std=0.1)
        read = shipped.tokenize

        def tokenize(texts: list[str]) -> torch.Tensor:
            return read(texts, context)

        return Network(f"test:{kind}", "clip", module, shipped.preprocess, tokenize=tokenize)

    return make


@pytest.fixture
def make_learner() -> Callable[..., PromptLearner]:
    """A learner with M random tokens, or as many for each class."""

    def make(network: Network, num_context: int = 4, names: tuple[str, ...] = NAMES, *, csc: bool = False,
             **options: object) -> PromptLearner:  # fmt: skip
        shape = (num_context, 32) if not csc else (len(names), num_context, 32)
        context = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
        return PromptLearner(prompt_tower(network), name_pieces(network, names), context, **options)

    return make
