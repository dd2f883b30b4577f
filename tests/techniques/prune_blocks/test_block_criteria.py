import copy
import itertools
import math

import pytest
import torch
from torch import nn

from effvl_cli.techniques.prune_blocks import criteria
from effvl_cli.techniques.prune_blocks.unit import Unit


class Block(nn.Module):
    """x + scale * norm(conv(x)); the in-place ReLU destroys the input."""

    def __init__(self, channels=3, scale=1.0):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.scale = scale

    def forward(self, x):
        skip = x.clone()
        return skip + self.scale * self.norm(self.conv(self.relu(x)))


def _network(*scales):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(*(Block(scale=scale) for scale in scales))
    return network, [Unit(str(i), "") for i in range(len(scales))]


def _batches(count=3, size=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 2, 2, generator=generator) for _ in range(count)]


def _copies(batches):
    """The first block writes into its input."""
    return [images.clone() for images in batches]


@torch.no_grad()
def _seen(network, images):
    """Inputs and outputs of the blocks."""
    pairs = []
    for block in network.eval():
        after = block(images.clone())
        pairs.append((images, after))
        images = after
    return pairs


def test_random_numbers_follow_the_generator():
    first, second, third = (criteria.random(5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first == second != third and len(set(first)) == 5


def test_l1_is_the_mean_absolute_weight_of_matrices():
    network = nn.ModuleList([nn.Sequential(nn.Conv2d(1, 1, 2), nn.Linear(2, 3)), nn.MultiheadAttention(2, 1)])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(100.0)  # biases and norms must not matter
        network[0][0].weight.copy_(torch.tensor([[[[1.0, -2.0], [3.0, -4.0]]]]))
        network[0][1].weight.fill_(-0.5)
        network[1].in_proj_weight.fill_(-2.0)
        network[1].out_proj.weight.fill_(6.0)
    found = criteria.l1(network, [Unit("0", ""), Unit("1", "")])
    assert found == pytest.approx([(10 + 6 * 0.5) / 10, (12 * 2 + 4 * 6) / 16])
    with pytest.raises(ValueError, match="unit 0 has no convolution or linear layer"):
        criteria.l1(nn.ModuleList([nn.BatchNorm2d(2)]), [Unit("0", "")])


def test_bn_scale_is_that_of_the_last_norm():
    network = nn.ModuleList([nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.GroupNorm(1, 2), nn.ReLU())])
    with torch.no_grad():
        network[0][0].weight.fill_(9.0)
        network[0][2].weight.copy_(torch.tensor([-1.0, 2.0]))
    assert criteria.bn_scale(network, [Unit("0", "")]) == [1.5]
    plain = nn.ModuleList([nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False))])
    with pytest.raises(ValueError, match="unit 0 has no scaled norm"):
        criteria.bn_scale(plain, [Unit("0", "")])


def test_block_influence_is_one_minus_the_mean_cosine():
    network, units = _network(1.0, 0.0, 3.0)
    batches = [*_batches(), *_batches(1, size=3)]  # images count alike, in whatever batch
    found = criteria.block_influence(network, units, _copies(batches))
    cosines = [[], [], []]
    for images in batches:
        for index, (before, after) in enumerate(_seen(network, images)):
            for a, b in zip(before.flatten(1), after.flatten(1), strict=True):
                cosines[index].append(float(a @ b / (a.norm() * b.norm())))
    assert found == pytest.approx([1 - sum(row) / len(row) for row in cosines], abs=1e-6)
    assert found[1] == pytest.approx(0, abs=1e-12) and min(found[0], found[2]) > 0.01


def _slow_hsic(first, second):
    """The U-statistic over all quadruples of different samples."""
    n, total = len(first), 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += float(first[i, j] * (second[i, j] + second[q, r] - 2 * second[i, q]))
    return total * math.factorial(n - 4) / math.factorial(n)


@pytest.mark.parametrize("n", [4, 6])
def test_hsic_is_the_average_over_quadruples(n):
    first, second = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(0)).double()
    grams = first @ first.T, second @ second.T
    assert float(criteria.hsic(*grams)) == pytest.approx(_slow_hsic(*grams), rel=1e-10)


def test_cka_averages_hsic_over_batches():
    network, units = _network(1.0, 0.0)
    batches = [*_batches(2, size=6), *_batches(1, size=3)]  # the last is too small to count
    found = criteria.cka(network, units, _copies(batches))
    expected = []
    for index in range(2):
        sums = [0.0, 0.0, 0.0]
        for images in batches[:2]:
            x, y = (side.flatten(1).double() for side in _seen(network, images)[index])
            own, other = x @ x.T, y @ y.T
            for place, pair in enumerate([(own, other), (own, own), (other, other)]):
                sums[place] += _slow_hsic(*pair)
        expected.append(1 - sums[0] / math.sqrt(sums[1] * sums[2]))
    assert found == pytest.approx(expected, abs=1e-9)
    assert found[1] == pytest.approx(0, abs=1e-12) and found[0] > 0.001
    with pytest.raises(ValueError, match="batch of 4 images"):
        criteria.cka(network, units, batches[2:])


def test_cka_does_not_see_rotations_and_scales():
    class Turn(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(3 * torch.linalg.qr(torch.randn(12, 12, generator=generator))[0])

        def forward(self, x):
            return x + (x.flatten(1) @ self.matrix).view_as(x) - x

    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(Turn())
    unit = [Unit("0", "")]
    assert criteria.cka(network, unit, _batches()) == pytest.approx([0], abs=1e-5)
    assert criteria.block_influence(network, unit, _batches())[0] > 0.5


class Classifier(nn.Module):
    """Blocks, and the three mean channels as logits."""

    def __init__(self, count):
        super().__init__()
        self.blocks, _ = _network(*[1.0] * count)

    def forward(self, images):
        return self.blocks(images.clone()).mean((2, 3))


def _slow_sr_init(network, units, batches, draws):
    """Unit by unit, draw by draw, into a copy of the whole network."""
    generator = torch.Generator().manual_seed(0)

    def right(net):
        with torch.no_grad():
            return sum(int((net(images).argmax(1) == labels).sum()) for images, labels in batches)

    rows = [draws * right(network)]
    for unit in units:
        total = 0
        for _ in range(draws):
            changed = copy.deepcopy(network)
            block = changed.get_submodule(unit.path)
            with torch.random.fork_rng():
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                block.conv.reset_parameters()
            nn.init.ones_(block.norm.weight)
            nn.init.zeros_(block.norm.bias)  # and its statistics stay
            total += right(changed)
        rows.append(total)
    return rows


def test_sr_init_counts_what_is_right_with_new_parameters_in_a_unit():
    network, units = Classifier(3).eval(), [Unit(f"blocks.{i}", "blocks") for i in range(3)]
    with torch.no_grad():
        for block in network.blocks:
            block.norm.weight.fill_(2.0)
            block.norm.bias.normal_(generator=torch.Generator().manual_seed(1))
            block.norm.running_mean.fill_(0.5)
    batches = [(images, network(images).argmax(1)) for images in _batches(3, 30)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()

    def counted():
        generator = torch.Generator().manual_seed(0)
        return criteria.sr_init(network, units, lambda: batches, generator, draws=4).tolist()

    found = counted()
    assert found == _slow_sr_init(network, units, batches, 4) == counted()
    assert found[0] == 4 * 90 and len(set(found)) == 4
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_criteria_leave_the_mode_as_it_was():
    network, units = _network(1.0)
    statistics = network[0].norm.running_mean.clone()
    criteria.cka(network, units, _batches())
    criteria.block_influence(network, units, _batches())
    assert network.training and network[0].norm.training
    assert torch.equal(network[0].norm.running_mean, statistics)
