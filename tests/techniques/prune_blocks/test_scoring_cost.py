import itertools

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from effvl_cli.core.measure import count_macs, count_parameters
from effvl_cli.models.cifar_resnet import CifarResNet
from effvl_cli.techniques.prune_blocks.score import Scorer
from effvl_cli.techniques.prune_blocks.scoring_cost import Cost, PartMacs, cost_model, measure_costs
from effvl_cli.techniques.prune_blocks.unit import Unit

# Valid units, parameters, multiply-adds, costs in forward passes: hand counts of the networks.
TABLE = [
    ("20", 7, 269_722, 40_551_040, 7.19, 4.14, 1.73),
    ("32", 13, 464_154, 68_862_592, 13.11, 7.06, 1.86),
    ("44", 19, 658_586, 97_174_144, 19.08, 10.03, 1.90),
    ("56", 25, 853_018, 125_485_696, 25.06, 13.01, 1.93),
    ("110", 52, 1_727_962, 252_887_680, 52.03, 26.48, 1.96),
    ("resnet18", 5, 11_689_512, 1_814_073_344, 5.36, 3.17, 1.69),
    ("resnet34", 13, 21_797_672, 3_663_761_408, 13.18, 6.91, 1.91),
    ("resnet50", 12, 25_557_032, 4_089_184_256, 12.36, 6.08, 2.03),
    ("resnet101", 29, 44_549_160, 7_801_405_440, 29.19, 14.00, 2.09),
]


def _network(name):
    """Without numbers: shapes are enough to count."""
    with torch.device("meta"):
        if name.isdecimal():
            network, size = CifarResNet([(int(name) - 2) // 6] * 3, 10, 16), 32
        else:
            network, size = getattr(torchvision.models, name)(), 224
        image = torch.empty(1, 3, size, size)
    units = []
    for path, block in network.named_modules():
        if type(block).__name__ in {"BasicBlock", "Bottleneck"}:
            projects = getattr(block, "downsample", None) is not None or any(getattr(block, "padding", ()))
            units += [] if projects else [Unit(path, path.rpartition(".")[0])]
    return network.eval(), units, image


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_cost_of_scoring_the_usual_networks(row):
    name, valid, params, macs, naive, cached, ratio = row
    network, units, image = _network(name)
    parts = measure_costs(network, units, image, count_macs)
    cost = cost_model(*parts)
    assert (len(units), count_parameters(network)) == (valid, params)
    assert parts.stem + parts.head + sum(parts.units) == macs
    found = (cost.naive / macs, cost.cached / macs, cost.ratio)
    assert [round(value, 2) for value in found] == [naive, cached, ratio]


@pytest.mark.parametrize(("name", "saved"), [("56", 4_718_592), ("resnet34", 231_211_008), ("resnet50", 218_365_952)])
def test_all_units_of_a_resnet_save_the_same(name, saved):
    network, units, image = _network(name)
    assert set(measure_costs(network, units, image, count_macs).saved) == {saved}


def test_the_formula_by_hand():
    # F = 2 + 3 + 16; without unit 0 or 2: 21 - 5 and 21 - 4; shared: each head again, and what lies after.
    assert cost_model(2, 3, (5, 7, 4), (0, 2)) == Cost(21 + 16 + 17, 21 + (3 + 7 + 4) + (3 + 0))


def test_the_formula_of_sets_by_hand():
    # A chain of 5, 7, 4, 3 between a stem of 2 and a head of 3; F = 24. Without {0, 2}: 15; {0, 3}: 16; {2}: 20.
    # Shared: 2 + 19 once; without 0, 7 + 4 for both pairs; then 3 of {0, 2}; 3 of {2}; and a head for each of the four.
    found = cost_model(2, 3, (5, 7, 4, 3), (0, 2, 3), [(0, 1), (2, 0), (1,)])
    assert found == Cost(24 + 15 + 16 + 20, 2 + 19 + (7 + 4) + 3 + 3 + 4 * 3)
    singles = [(0,), (1,), (2,)]
    assert cost_model(2, 3, (5, 7, 4, 3), (0, 2, 3), singles) == cost_model(2, 3, (5, 7, 4, 3), (0, 2, 3))


@pytest.mark.parametrize("sharing", ["chain", "replay", "off"])
def test_scoring_all_pairs_costs_what_the_model_says(resnet, sharing):
    network, units = resnet(20, width=4)
    pairs = [*itertools.combinations(range(len(units)), 2), (3,), (0, 2, 5)]
    scorer = Scorer(network, units, sharing, pairs)
    images, labels = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    scorer.batch(images, labels)
    with FlopCounterMode(display=False) as counter:
        scorer.batch(images, labels)
    cost = cost_model(*measure_costs(network, units, images[:1], count_macs), pairs)
    assert counter.get_total_flops() == 2 * 2 * (cost.naive if sharing == "off" else cost.cached)


def test_the_ratio_of_many_equal_units_tends_to_two():
    for count in (1, 4, 100):
        cost = cost_model(0, 0, [10] * count, range(count))
        assert cost.ratio == pytest.approx(2 * count / (count + 1))


def test_what_is_computed_outside_of_modules_is_repeated_with_the_head():
    class Glued(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.weight = nn.Parameter(torch.eye(4))
            self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

        def forward(self, x):
            return self.head(self.blocks(self.stem(x) @ self.weight))

    found = measure_costs(Glued(), [Unit("blocks.1", "blocks")], torch.randn(1, 4), count_macs)
    assert found == PartMacs(stem=32, head=8 + 16, units=(16,), removable=(0,))
