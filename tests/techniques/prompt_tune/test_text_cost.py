"""Multiply-adds of class features, by hand and against torch's counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effvl_cli.techniques.prompt_tune.text_cost import text_cost


@pytest.fixture
def counted():
    """Multiply-adds of a function, with attention by plain products, which every version counts."""
    torch.backends.mha.set_fastpath_enabled(False)

    def count(function):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops() // 2

    yield count
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_share": "off", "truncate": False},
        {"prefix_share": "off"},
        {"prefix_share": "on"},
        {"prefix_share": "on", "position": "middle"},
    ],
)
def test_a_forward_pass_is_counted_to_the_unit(make_network, make_learner, counted, options):
    learner = make_learner(make_network(), 5, **options)
    assert text_cost(learner).forward == counted(learner)


def test_a_step_by_hand(make_network, make_learner, counted):
    """Width 32, 3 blocks, MLP 128, 16 numbers out; 5 shared tokens; 4 names, the longest tail of t tokens."""
    learner = make_learner(make_network(), 4)
    shared, tail = learner.num_shared, learner.num_tail
    assert shared == 5 and tail == learner.index.shape[1] - 5
    tokens = 5 + 4 * tail
    linear = tokens * (2 * 12 + 2) * 32**2 + 4 * 10 * 32**2 + 4 * 32 * 16
    attention = 2 * 32 * (2 * (5 * 5 + 4 * tail * (5 + tail)) + 4 * (5 + tail))
    cost = text_cost(learner)
    assert (cost.linear, cost.attention) == (linear, attention)
    assert cost.step == 2 * linear + 3 * attention
    # The tails' own gradients end before the first block's projections: that is not counted, so that less is done.
    found = counted(lambda: learner().sum().backward())
    assert 0.85 * cost.step < found <= cost.step
