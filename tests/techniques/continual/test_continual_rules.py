"""Schedules, selection, packing and accounting of continual learning (oracles 1, 11, 14, 15, 16)."""

import pytest
import torch
from torch import nn

from effvl_cli.techniques.continual import accounting, bits
from effvl_cli.techniques.continual.ratio_choice import (
    adopt_retrained,
    choose,
    choose_at_limit,
    mandatory_ratio,
    next_move,
    sweep_goes_on,
)
from effvl_cli.techniques.continual.sparsity_schedule import Ramp

# --- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (50, 0.4375), (90, 0.4995), (100, 0.5), (150, 0.5)])
def test_cubic_ramp(step, share):
    assert Ramp(0.0, 0.5, 0, 100)(step) == pytest.approx(share, abs=1e-12)


def test_a_stage_starts_where_the_one_before_ended():
    assert Ramp(0.3, 0.5, 0, 100)(25) == pytest.approx(0.415625, abs=1e-12)


@pytest.mark.parametrize("every", [1, 7, 10, 1000])
def test_the_last_update_is_at_the_end_of_the_ramp(every):
    ramp = Ramp(0.1, 0.7, 4, 40, every)
    updates = {step: share for step in range(60) if (share := ramp.update_at(step)) is not None}
    assert updates[40] == 0.7
    assert min(updates) == 4
    assert max(updates) == 40
    assert len(updates) == len(range(4, 40, every)) + 1


def test_an_empty_ramp_prunes_at_once():
    ramp = Ramp(0.0, 0.3, 0, 0)
    assert [ramp.update_at(step) for step in (0, 1)] == [0.3, None]


# --- selection -------------------------------------------------------------------------------------------------------

RECORDED = {0: 0.90, 0.1: 0.91, 0.2: 0.89, 0.3: 0.90}


def test_the_deepest_stage_that_reaches_the_goal():
    assert choose(RECORDED, 0.90).ratio == 0.3
    assert next_move(0.90, 0.95, 1.0, 1.5) == "grow"
    assert next_move(0.90, 0.95, 1.5, 1.5) == "limit"
    assert next_move(0.95, 0.95, 1.0, 1.5) == next_move(0.1, None, 1.0, 1.5) == "sweep"


def test_no_stage_reaches_the_goal():
    found = choose({0: 0.9, 0.1: 0.8}, 0.85)
    assert (found.ratio, found.reached) == (0, True)
    found = choose({0: 0.9, 0.1: 0.8, 0.2: 0.7}, 0.85, min_ratio=0.1)
    assert (found.ratio, found.reached) == (0.1, False)


def test_at_the_limit():
    assert mandatory_ratio(3) == 0.8  # round(1 / 4, 1) is 0.2, half to even
    assert mandatory_ratio(0) == 0.0
    recorded = {0: 0.854, 0.3: 0.913, 0.5: 0.92, 0.7: 0.8}
    assert choose_at_limit(recorded, 0.9, mandatory=0.2).ratio == 0.5
    found = choose_at_limit(recorded, 0.95, mandatory=0.2)
    assert (found.ratio, found.reached) == (0.3, False)  # the first that releases the share
    assert choose_at_limit(recorded, 0.9, mandatory=0.6).ratio == 0.7
    assert choose_at_limit({0: 0.5, 0.3: 0.5}, 0.9, mandatory=0.6).ratio == 0.3  # the sweep has not come so far yet


def test_when_the_sweep_stops():
    assert sweep_goes_on({0: 0.9, 0.1: 0.8}, 0.85, patience=2)
    assert not sweep_goes_on({0: 0.9, 0.1: 0.8, 0.2: 0.8}, 0.85, patience=2)
    assert sweep_goes_on({0: 0.9, 0.1: 0.8, 0.2: 0.8}, 0.85, patience=2, mandatory=0.5)
    assert sweep_goes_on({0: 0.9, 0.1: 0.8, 0.2: 0.8}, 0.85, patience=None)
    assert not sweep_goes_on({0: 0.9, 0.5: 0.1}, None, patience=2, mandatory=0.5)


def test_retraining_must_be_better():
    assert [adopt_retrained(0.9, new) for new in (0.89, 0.9, 0.91)] == [False, False, True]


# --- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1001])
def test_bits_survive_packing(count):
    given = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5
    packed = bits.pack(given)
    assert len(packed) == (count + 7) // 8
    assert torch.equal(bits.unpack(packed, count), given)


def test_the_first_bit_is_the_lowest():
    assert bits.pack(torch.tensor([True, False, False, False, False, False, False, False, True])).tolist() == [1, 1]


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 254, 300])
def test_owners_survive_packing(num_tasks):
    generator = torch.Generator().manual_seed(num_tasks)
    owner = torch.randint(0, num_tasks + 1, (3, 5, 2), generator=generator)
    owner = owner.to(torch.uint8 if num_tasks < 255 else torch.int16)
    planes = bits.pack_owners(owner, num_tasks)
    assert planes.shape == (bits.num_planes(num_tasks), 4)
    assert torch.equal(bits.unpack_owners(planes, owner.shape, num_tasks), owner)


def test_tampered_bits_are_refused():
    packed = bits.pack(torch.ones(9, dtype=torch.bool))
    with pytest.raises(bits.BitsError, match="9 bits take 2 bytes"):
        bits.unpack(packed[:1], 9)
    packed[1] |= 0b100
    with pytest.raises(bits.BitsError, match="behind the last"):
        bits.unpack(packed, 9)
    planes = bits.pack_owners(torch.tensor([3, 0, 1], dtype=torch.uint8), 3)
    with pytest.raises(bits.BitsError, match="an owner is 3"):
        bits.unpack_owners(planes, (3,), 2)
    with pytest.raises(bits.BitsError, match="1 bit planes"):
        bits.unpack_owners(planes, (3,), 1)


def test_picks_are_of_old_weights_only():
    old = torch.tensor([[True, False, True], [True, False, True]])
    picks = torch.tensor([[True, False, False], [True, False, True]])
    packed = bits.pack_picks(picks, old)
    assert packed.tolist() == [0b1101]
    assert torch.equal(bits.unpack_picks(packed, old), picks)


def test_digests_follow_names_types_shapes_and_bits():
    value = torch.tensor([1.0, 2.0, 3.0, 4.0])
    digests = {
        bits.content_digest(tensors)
        for tensors in ({"a": value}, {"b": value}, {"a": value.double()}, {"a": value.view(2, 2)}, {"a": -value})
    }
    assert len(digests) == 5
    assert bits.content_digest({"a": value, "b": -value}) == bits.content_digest({"b": -value, "a": value.clone()})


# --- accounting ------------------------------------------------------------------------------------------------------


def test_accuracies_by_hand():
    table = [[0.9, None, None], [0.8, 0.7, None], [0.6, 0.75, 0.5]]
    assert accounting.average_accuracy(table) == pytest.approx((0.6 + 0.75 + 0.5) / 3)
    assert accounting.backward_transfer(table) == pytest.approx((-0.3 + 0.05) / 2)
    assert accounting.forgetting(table) == pytest.approx([0.3, 0.0, 0.0])
    assert accounting.transfer(table, [0.8, 0.8, 0.4]) == pytest.approx(0.1 / 3)
    with pytest.raises(ValueError, match="task 3 after task 3"):
        accounting.average_accuracy([*table[:2], [0.6, 0.75, None]])


def test_nothing_forgotten_is_exactly_zero():
    column = [0.1, 0.7, 0.3333333333]
    table = [[value if j <= i else None for j, value in enumerate(column)] for i in range(3)]
    assert accounting.backward_transfer(table) == 0.0
    assert accounting.forgetting(table) == [0.0, 0.0, 0.0]
    assert accounting.backward_transfer([[0.5]]) is None


def test_storage_of_twenty_tasks():
    """Planes of VGG16 at m = 1.5: 31,469,195 bytes."""
    widths = [78, 78, 156, 156, 313, 313, 313, 627, 627, 627, 627, 627, 627]
    sizes = {str(i): 9 * a * b for i, (a, b) in enumerate(zip([3, *widths], widths, strict=False))}
    sizes |= {"fc1": 627 * 5016, "fc2": 5016 * 5016}
    assert sum(sizes.values()) == 50_350_644
    found = accounting.most_storage(sizes, 20)
    assert found.base == 201_402_576
    assert found.owner == 31_469_195
    assert found.picks == 19 * 31_469_195 // 5
    assert found.total == found.base + found.owner + found.picks == found.to_dict()["total"]


def test_capacity():
    assert accounting.expansion_factor(150, 100) == 1.5
    assert accounting.redundancy(41, 100) == 0.41
    old = {"a": torch.tensor([True, True, False])}
    assert accounting.picked_fraction({"a": torch.tensor([True, False, False])}, old) == 0.5
    assert accounting.picked_fraction({"a": ~old["a"]}, {"a": old["a"] & False}) is None
    assert accounting.sparsity({"a": torch.tensor([0.0, 1.0]), "b": torch.zeros(2)}) == 0.75


def test_multiply_adds_by_hand():
    """3 x 3 kernels at 4 x 4 places, then 2 x 32 at one; attention: 5 tokens of width 4, 4 matrices of 16."""
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 5)).eval()
    with torch.no_grad():
        net[0].weight[0] = 0.0
    found = accounting.multiply_adds(net, torch.zeros(1, 3, 4, 4))
    assert (found.dense, found.nonzero) == (16 * 54 + 160, 16 * 27 + 160)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    assert accounting.multiply_adds(Attending().eval(), torch.zeros(1, 5, 4)).dense == 5 * 4 * 16
