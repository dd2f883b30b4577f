import contextlib
import math
import weakref

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from effvl_cli.core.measure import count_macs
from effvl_cli.techniques.prune_blocks.score import Scorer
from effvl_cli.techniques.prune_blocks.scoring_cost import cost_model, measure_costs
from effvl_cli.techniques.prune_blocks.statistics import accuracy_interval, impacts, loss_interval, rank, tied_with_best
from effvl_cli.techniques.prune_blocks.unit import Unit

SHARED = ("chain", "replay")


def _images(count, size=32, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _labels(count, classes=10):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _slowly(network, units, images, labels):
    """Losses and correctness, unit by unit, with a hook that replaces a unit's output by its input."""
    rows = []
    for unit in [None, *units]:
        hook = contextlib.nullcontext()
        if unit is not None:
            replace = torch.relu if unit.relu else (lambda x: x)
            hook = network.get_submodule(unit.path).register_forward_hook(lambda m, a, out, f=replace: f(a[0]))
        with hook:
            rows.append(network(images))
    return (
        torch.stack([F.cross_entropy(row.double(), labels, reduction="none") for row in rows]),
        torch.stack([row.argmax(1) == labels for row in rows]),
    )


def _agrees(network, units, images, labels, sharing, *, expected=None):
    scorer = Scorer(network, units, sharing)
    found = scorer.batch(images, labels)
    loss, correct = _slowly(network, units, images, labels)
    assert torch.equal(found.loss, loss) and torch.equal(found.correct, correct)
    assert scorer.sharing == (expected or sharing), scorer.reason
    again = scorer.batch(images, labels)
    assert torch.equal(again.loss, loss)
    return scorer


@pytest.mark.parametrize("sharing", SHARED)
def test_shared_scores_are_those_of_whole_passes_bit_for_bit(resnet, sharing):
    network, units = resnet(20)
    images, labels = _images(72), _labels(72)
    scorers = [Scorer(network, units, sharing) for _ in range(2)]  # as two processes that take turns
    for number, rows in enumerate(torch.arange(72).split(32)):  # the last has 8
        found = scorers[number % 2].batch(images[rows], labels[rows])
        loss, correct = _slowly(network, units, images[rows], labels[rows])
        assert torch.equal(found.loss, loss) and torch.equal(found.correct, correct)
        assert found.loss.shape == (8, len(rows)) and not found.nan.any()
    assert [scorer.sharing for scorer in scorers] == [sharing] * 2


def _torchvision_mobilenet():
    network = torchvision.models.mobilenet_v2(num_classes=10)
    return network, [f"features.{i}" for i, part in enumerate(network.features) if getattr(part, "use_res_connect", 0)]


def _torchvision_vit():
    network = torchvision.models.VisionTransformer(32, 16, 2, 12, 768, 3072, num_classes=10)  # vit_b_16 with 2 layers
    nn.init.normal_(network.heads.head.weight)  # zeros otherwise
    return network, [f"encoder.layers.encoder_layer_{i}" for i in range(2)]


def _timm(name, **options):
    network = timm.create_model(name, num_classes=10, **options)
    blocks = [path for path, module in network.named_modules() if type(module).__name__.endswith("Block")]
    entries = ("layer2.0", "layer3.0", "layer4.0")
    return network, [path for path in blocks if path not in entries]


FOREIGN = {
    "mobilenet": (_torchvision_mobilenet, 10),
    "vit": (_torchvision_vit, 2),
    "timm resnet18": (lambda: _timm("resnet18"), 5),
    "timm convnext": (lambda: _timm("convnext_atto"), 12),
    "timm vit": (lambda: _timm("vit_tiny_patch16_224", img_size=32), 12),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_networks_of_other_libraries(name):
    make, count = FOREIGN[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, paths = make()
    network.eval()
    units = [Unit(path, path.rpartition(".")[0]) for path in paths]
    assert len(units) == count
    images, labels = _images(2), _labels(2)
    loss, correct = _slowly(network, units, images, labels)
    for sharing, used in (("auto", "chain"), ("replay", "replay")):
        scorer = Scorer(network, units, sharing)
        found = scorer.batch(images, labels)
        assert torch.equal(found.loss, loss) and torch.equal(found.correct, correct)
        assert scorer.sharing == used and not scorer.reason


@pytest.mark.parametrize("sharing", [*SHARED, "off"])
def test_the_multiply_adds_are_those_of_the_cost_model(resnet, sharing):
    network, units = resnet(20)
    scorer = Scorer(network, units, sharing)
    scorer.batch(_images(1), _labels(1))  # looks for a way to share
    with FlopCounterMode(display=False) as counter:
        scorer.batch(_images(3), _labels(3))
    cost = cost_model(*measure_costs(network, units, _images(1), count_macs))
    assert counter.get_total_flops() == 2 * 3 * (cost.naive if sharing == "off" else cost.cached)


@pytest.mark.parametrize("sharing", SHARED)
def test_the_prefix_is_swept_no_further_than_the_last_active_candidate(resnet, sharing):
    network, units = resnet(20)
    scorer = Scorer(network, units, sharing)
    images, labels = _images(2), _labels(2)
    all_rows = scorer.batch(images, labels)
    found = scorer.batch(images, labels, active=[4, 1])
    assert torch.equal(found.loss, all_rows.loss[[0, 5, 2]])
    parts = measure_costs(network, units, _images(1), count_macs)
    with FlopCounterMode(display=False) as counter:
        scorer.batch(images, labels, active=[4, 1])
    chosen = [parts.removable[1], parts.removable[4]]
    assert counter.get_total_flops() == 4 * cost_model(parts.stem, parts.head, parts.units, chosen).cached
    assert torch.equal(scorer.batch(images, labels, active=[]).loss, all_rows.loss[:1])


def _most_alive(network, units, sharing, monkeypatch):
    """Largest number of block outputs that are alive at once."""
    block = type(network.get_submodule(units[0].path))
    forward, alive, most = block.forward, set(), 0

    def counted(self, x):
        nonlocal most
        out = forward(self, x)
        alive.add(id(out))
        weakref.finalize(out, alive.discard, id(out))
        most = max(most, len(alive))
        return out

    scorer = Scorer(network, units, sharing)
    scorer.batch(_images(1), _labels(1))
    with monkeypatch.context() as patch:
        patch.setattr(block, "forward", counted)
        scorer.batch(_images(1), _labels(1))
    assert scorer.sharing == sharing
    return most


def test_memory_of_a_chain_does_not_grow_with_depth(resnet, monkeypatch):
    shallow, deep = resnet(20, width=4), resnet(56, width=4)
    assert _most_alive(*deep, "chain", monkeypatch) == _most_alive(*shallow, "chain", monkeypatch) <= 5
    assert _most_alive(*deep, "replay", monkeypatch) >= 26


def test_impacts_on_sure_answers_keep_their_digits():
    """Three units that matter by 1e-3, 2e-3 and 3e-3 of a logit, where the other class has e^-12 of the mass."""

    class Adds(nn.Module):
        def __init__(self, amount):
            super().__init__()
            self.amount = nn.Parameter(torch.tensor([0.0, amount]))

        def forward(self, x):
            return x + self.amount

    amounts = (-0.003, -0.001, -0.002)
    network = nn.Sequential(nn.Flatten(), *(Adds(amount) for amount in amounts))
    units = [Unit(str(1 + k), "") for k in range(3)]
    images = torch.tensor([12.0, 0.0]).view(1, 2, 1, 1).repeat(4, 1, 1, 1)
    found = Scorer(network, units).batch(images, torch.zeros(4, dtype=torch.int64))
    _, loss = impacts(found.correct, found.loss)
    gap = 12 - sum(amounts)
    expected = [math.log1p(math.exp(-(gap + amount))) - math.log1p(math.exp(-gap)) for amount in amounts]
    assert loss == pytest.approx(expected, rel=1e-2)  # about 6e-9 a thousandth: float32 has steps of 1e-7 there


def test_a_unit_without_effect_costs_nothing_and_goes_first(resnet):
    network, units = resnet(20)
    with torch.no_grad():
        network.layer2[1].bn2.weight.zero_()
        network.layer2[1].bn2.bias.zero_()
        images = _images(48)
        network.fc.bias.sub_(network(images).mean(0))  # answers differ, and are the labels: a change is for the worse
        network.fc.weight.mul_(5)
        network.fc.bias.mul_(5)
        labels = network(images).argmax(1)
    found = Scorer(network, units).batch(images, labels)
    accuracy, loss = impacts(found.correct, found.loss)
    silent = [unit.path for unit in units].index("layer2.1")
    assert [k for k in range(len(units)) if torch.equal(found.loss[1 + k], found.loss[0])] == [silent]
    assert accuracy[silent] == loss[silent] == 0.0
    assert accuracy_interval(found.correct[0], found.correct[1 + silent]) == (0, 0)
    assert loss_interval(found.loss[1 + silent], found.loss[0]) == (0, 0)
    assert all(value > 0 for k, value in enumerate(loss) if k != silent)
    nothing = [0] * len(units)
    assert rank(loss, accuracy, nothing, nothing)[0] == rank(accuracy, loss, nothing, nothing)[0] == silent
    assert tied_with_best(found.loss[1:], silent)[silent]


class Residual(nn.Module):
    """x + branch(relu(x)); in place, the ReLU destroys the input, so that it is a post-norm-like unit."""

    def __init__(self, width, *, inplace=False):
        super().__init__()
        self.relu = nn.ReLU(inplace)
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return self.linear(self.relu(x)) + x


class Toy(nn.Module):
    """A stem, residual units and a head; subclasses run them in their own ways. Images become vectors of 12."""

    def __init__(self, count=4, **options):
        super().__init__()
        self.stem = nn.Linear(12, 6)
        self.blocks = nn.ModuleList(Residual(6, **options) for _ in range(count))
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        return self.head(self.run(self.stem(x[:, :, :2, :2].flatten(1))))

    def run(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class AddsInPlace(Toy):
    def run(self, x):
        for block in self.blocks:
            x = block(x)
            x += 1  # in place, on what the block has returned
        return x


class LongSkip(Toy):
    def run(self, x):
        early = self.blocks[0](x)
        middle = self.blocks[2](self.blocks[1](early))
        return self.blocks[3](middle + early)


class ManyScales(Toy):
    def run(self, x):
        outputs = [x]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return sum(outputs)


class Dynamic(Toy):
    """Skips its second block when the first returns little."""

    def run(self, x):
        x = self.blocks[0](x)
        if x.abs().sum() > 5:
            x = self.blocks[1](x)
        return self.blocks[3](self.blocks[2](x))


def _toy(kind, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options).eval(), [Unit(f"blocks.{i}", "blocks") for i in range(4)]


@pytest.mark.parametrize("sharing", SHARED)
def test_units_that_overwrite_their_input(sharing):
    network, units = _toy(Toy, inplace=True)
    images, labels = _images(5), _labels(5)
    scorer = Scorer(network, units, sharing)
    found = scorer.batch(images, labels)
    for k, unit in enumerate(units):  # a hook would see the overwritten input: the unit is taken out instead
        kept = nn.ModuleList(block for block in network.blocks if block is not network.get_submodule(unit.path))
        blocks, network.blocks = network.blocks, kept
        with torch.no_grad():
            assert torch.equal(found.loss[1 + k], F.cross_entropy(network(images).double(), labels, reduction="none"))
        network.blocks = blocks
    assert scorer.sharing == sharing and torch.equal(scorer.batch(images, labels).loss, found.loss)


@pytest.mark.parametrize(
    ("kind", "used", "reason"),
    [
        (Toy, "chain", ""),
        (AddsInPlace, "chain", ""),
        (LongSkip, "replay", "chain: some part between units does not see"),
        (ManyScales, "replay", "chain: the logits differ from those without sharing"),
    ],
)
def test_auto_takes_what_the_network_allows(kind, used, reason):
    network, units = _toy(kind)
    scorer = _agrees(network, units, _images(5), _labels(5), "auto", expected=used)
    assert scorer.reason.startswith(reason) and bool(reason) == bool(scorer.reason)
    _agrees(network, units, _images(5), _labels(5), "replay")
    _agrees(network, units, _images(5), _labels(5), "off")


def test_a_network_that_changes_its_way_is_scored_without_sharing():
    network, units = _toy(Dynamic)
    scorer = Scorer(network, units)
    images, labels = _images(4) * 10, _labels(4)
    scorer.batch(images, labels)
    assert scorer.sharing == "replay" and "order" in scorer.reason  # Python looks at an output
    quiet = _images(4) * 1e-3
    found = scorer.batch(quiet, labels)
    assert scorer.sharing == "off" and "order" in scorer.reason
    assert torch.equal(found.loss, _slowly(network, units, quiet, labels)[0])


def test_what_was_asked_for_and_is_impossible_is_not_replaced_by_another_way():
    network, units = _toy(LongSkip)
    scorer = _agrees(network, units, _images(5), _labels(5), "chain", expected="off")
    assert scorer.reason.startswith("chain: some part")


def test_a_relu_takes_the_place_of_a_unit_with_signed_input():
    network, units = _toy(Toy)
    signed = [Unit(unit.path, unit.stage, "identity+relu", relu=True) for unit in units]
    _agrees(network, signed, _images(5), _labels(5), "auto", expected="chain")
    images, labels = _images(5), _labels(5)
    losses = [Scorer(network, some).batch(images, labels).loss for some in (units, signed)]
    assert torch.equal(losses[0][0], losses[1][0]) and not torch.equal(losses[0][1], losses[1][1])


def test_units_may_come_in_any_order(resnet):
    network, units = resnet(20, width=4)
    images, labels = _images(3), _labels(3)
    forwards, backwards = (Scorer(network, some).batch(images, labels).loss for some in (units, units[::-1]))
    assert torch.equal(forwards[1:], backwards[1:].flip(0))


class Root(nn.Module):
    def forward(self, x):
        return x + x.sqrt()


@pytest.mark.parametrize("chosen", [[0, 1, 3], [1, 3], [0, 1]])
def test_nan_counts_as_wrong_and_is_told(chosen):
    network, units = _toy(Toy)
    nn.init.constant_(network.blocks[1].linear.weight, 0.0)
    nn.init.constant_(network.blocks[1].linear.bias, 100.0)  # without it, the next takes the root of negative numbers
    network.blocks[2] = Root()
    images = _images(4)
    with torch.no_grad():
        labels = network(images).argmax(1)
    scorer = Scorer(network, [units[k] for k in chosen])
    found = scorer.batch(images, labels)
    bad = 1 + chosen.index(1)
    assert scorer.sharing == "chain"
    assert found.nan.nonzero().flatten().tolist() == [bad]
    assert found.loss[bad].isnan().any() and found.correct[0].all()
    assert not (found.correct[bad] & found.loss[bad].isnan()).any()


def test_of_equal_logits_the_lowest_class_counts():
    network, units = _toy(Toy)
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    found = Scorer(network, units).batch(_images(3), torch.tensor([0, 1, 9]))
    assert found.correct.tolist() == [[True, False, False]] * 5


def test_forwards_are_restored_after_an_error_too():
    network, units = _toy(Toy)
    own = network.blocks[2].forward
    network.blocks[2].forward = own  # an instance's own stays its own
    scorer = Scorer(network, units)
    scorer.batch(_images(2), _labels(2))
    with pytest.raises(IndexError):
        scorer.batch(_images(2)[0], _labels(2))
    assert network.blocks[2].__dict__["forward"] == own
    assert not any("forward" in module.__dict__ for module in network.modules() if module is not network.blocks[2])


def test_bad_requests():
    network, units = _toy(Toy)
    with pytest.raises(ValueError, match="no units"):
        Scorer(network, [])
    with pytest.raises(ValueError, match="'some' is not one of auto, chain, replay, off"):
        Scorer(network, units, "some")
    network.run = lambda x: network.blocks[0](network.blocks[0](x))
    with pytest.raises(ValueError, match=r"blocks\.0 is called 2 times"):
        Scorer(network, units[:1]).batch(_images(2), _labels(2))


def _sets(count):
    """Pairs, single units, and three at once, in no order."""
    pairs = [(i, j) for i in range(count) for j in range(i)]
    return [*pairs[::-1], *((i,) for i in range(count)), (0, 2, count - 1)]


@pytest.mark.parametrize("sharing", SHARED)
def test_sets_of_units_are_scored_like_whole_passes(resnet, sharing):
    network, units = resnet(20)
    images, labels, sets = _images(8), _labels(8), _sets(len(units))
    naive = Scorer(network, units, "off", sets).batch(images, labels)
    scorer = Scorer(network, units, sharing, sets)
    shared = scorer.batch(images, labels)
    assert scorer.sharing == sharing and torch.equal(naive.loss, shared.loss)
    some = [3, 0, 21, 25]
    assert torch.equal(scorer.batch(images, labels, some).loss, naive.loss[[0, *(1 + k for k in some)]])
    singles = Scorer(network, units, "off").batch(images, labels)
    assert torch.equal(naive.loss[22:29], singles.loss[1:])


@pytest.mark.parametrize("sharing", SHARED)
def test_what_two_sets_have_in_common_is_computed_once(resnet, sharing):
    """All pairs: each edge of the tree of decisions, a prefix of decisions and a kept unit, costs one call."""
    network, units = resnet(20)
    sets = [(i, j) for j in range(7) for i in range(j)]
    scorer = Scorer(network, units, sharing, sets)
    scorer.batch(_images(2), _labels(2))
    counts = []
    for module in {m for m in network.modules() if type(m).__name__ == "BasicBlock"}:
        module.register_forward_hook(lambda *call: counts.append(1))
    for module in [m for m in network.modules() if type(m).__name__ == "BasicBlock"]:
        module.conv1.register_forward_hook(lambda *call: counts.append(0))
    scorer.batch(_images(2), _labels(2))
    places = [0, 1, 2, 4, 5, 7, 8]  # of the units among the nine blocks
    paths = [frozenset(places[index] for index in pair) for pair in sets] + [frozenset()]
    edges = {
        (tuple(sorted(p for p in path if p < block)), block)
        for path in paths
        for block in range(9)
        if block not in path
    }
    assert counts.count(0) == len(edges) < 9 * len(paths) / 2
