"""Ownership of weights (specification, oracles 2 to 8)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from effvl_cli.core.modes import Buffers
from effvl_cli.techniques.continual.owned import OwnershipError, TiedWeightsError, owned_names
from effvl_cli.techniques.continual.owned_network import OwnedNetwork
from effvl_cli.techniques.continual.picking import PickRule
from effvl_cli.techniques.continual.tasknet import effective_weights, materialise, task_state


class Net(nn.Module):
    """A convolution, a norm, attention with a joint matrix, and a head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(torch.relu(self.hidden(x.mean(1))))


def _net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def _images(seed=0, count=4):
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def _train(network, optimizers, steps=3, clip=0.0, nan_at=None):
    for step in range(steps):
        loss = F.cross_entropy(network.module(_images(step)), torch.tensor([0, 1, 0, 1]))
        (loss * float("nan") if step == nan_at else loss).backward()
        network.after_backward()
        if clip:
            nn.utils.clip_grad_norm_(network.module.parameters(), clip)
        for part in optimizers:
            part.step()
            part.zero_grad()
        network.after_step(optimizers)


def _sgd(network, **kwargs):
    parts = [
        torch.optim.SGD(network.groups(kwargs.pop("weight_decay", 4e-5)), **{"lr": 0.1, "momentum": 0.9, **kwargs})
    ]
    scores = network.score_parameters()
    return [*parts, torch.optim.Adam(scores, lr=5e-4)] if scores else parts


def _second_task(ratio=0.5, picks=True):
    """The second task of a network, after a first one that released `ratio`."""
    first = OwnedNetwork(_net())
    first.claim(1)
    _train(first, _sgd(first))
    first.prune(ratio)
    first.commit()
    second = OwnedNetwork(_net(1))
    second.load(first.base(), first.owner())
    second.claim(2, picks=picks)
    return second


def _vector(values, owner=None):
    """A network of one owned weight with these values, claimed by task 1 or the first task after the owners."""
    network = OwnedNetwork(nn.Sequential(nn.Linear(len(values), 1, bias=False), nn.Linear(1, 1)))
    (weight,) = network.tensors.values()
    with torch.no_grad():
        weight.delta.copy_(torch.tensor([values]))
    if owner is None:
        network.claim(1)
    return network, weight


def test_the_names_are_those_of_the_plain_network():
    assert owned_names(_net()) == [
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "hidden.weight",
    ]
    assert "conv.weight" not in owned_names(_net(), ["conv.*"])


def test_tied_weights_are_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    with pytest.raises(TiedWeightsError, match=r"0\.weight and 1\.weight"):
        OwnedNetwork(net)


# --- pruning ---------------------------------------------------------------------------------------------------------


def test_hand_case():
    network, weight = _vector([4.0, 1.0, 3.0, 2.0])
    network.prune(0.5)
    assert weight.owner.tolist() == [[1, 0, 1, 0]]
    assert weight.delta.tolist() == [[4.0, 0.0, 3.0, 0.0]]


def test_old_weights_of_smaller_magnitude_stay():
    network, weight = _vector([9.0] * 6, owner="loaded")
    network.load({"0.weight": torch.tensor([[0.1, 0, 0, 0, 0, 0.2]])}, {"0.weight": torch.tensor([[1, 0, 0, 0, 0, 1]])})
    network.claim(2)
    with torch.no_grad():
        weight.delta.copy_(torch.tensor([[0.0, 4, 1, 3, 2, 0]]))
    network.prune(0.5)
    assert weight.owner.tolist() == [[1, 2, 0, 2, 0, 1]]


def test_ties_go_by_the_lowest_index():
    network, weight = _vector([1.0, -1.0, 1.0, -1.0, 1.0])
    network.prune(0.4)
    assert weight.owner.tolist() == [[0, 0, 1, 1, 1]]


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_the_count_is_exact_and_a_stable_sort_agrees(count):
    generator = torch.Generator().manual_seed(count)
    values = torch.randint(-3, 4, (count,), generator=generator).float()  # many ties
    for ratio in (0.001, 0.1, 0.35, 0.5, 0.77, 0.95, 1.0):
        network, weight = _vector(values.tolist())
        network.prune(ratio)
        expected = int(ratio * count + 0.5)
        order = values.abs().argsort(stable=True)[:expected]
        owner = torch.ones(count, dtype=torch.uint8)
        owner[order] = 0
        assert torch.equal(weight.owner[0], owner)


def test_pruning_is_idempotent_and_never_takes_back():
    network, weight = _vector([5.0, 1.0, 4.0, 2.0, 3.0])
    network.prune(0.4)
    once = weight.owner.clone()
    network.prune(0.4)
    assert torch.equal(weight.owner, once)
    with torch.no_grad():
        weight.delta[0, 0] = 0.001
    network.prune(0.2)
    assert torch.equal(weight.owner, once)
    network.prune(0.6)
    assert weight.owner.tolist() == [[0, 0, 1, 0, 1]]


def test_momentum_of_released_weights_is_gone():
    network = OwnedNetwork(_net())
    network.claim(1)
    parts = _sgd(network, nesterov=True)
    _train(network, parts)
    network.prune(0.5, parts)
    for _ in range(10):
        _train(network, parts, steps=1)
        for weight in network.tensors.values():
            assert not weight.delta[weight.owner == 0].any()


# --- frozen for ever -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_nothing_that_trains_touches_old_weights(kind):
    network = _second_task()
    before = {name: weight.base.clone() for name, weight in network.tensors.items()}
    parts = (
        _sgd(network, weight_decay=0.1, nesterov=True)
        if kind == "sgd"
        else [torch.optim.AdamW(network.module.parameters(), lr=0.01, weight_decay=0.1)]
    )
    _train(network, parts, steps=20, clip=1.0)
    _train(network, parts, steps=1, clip=1.0, nan_at=0)
    assert all(torch.equal(weight.base, before[name]) for name, weight in network.tensors.items())
    with pytest.raises(AssertionError):  # the one NaN did reach the task's own weights
        torch.testing.assert_close(network.module.norm.weight, torch.ones(8))


@pytest.mark.parametrize("factor", [1.0, float("nan")])
def test_gradients_off_their_places_are_exactly_zero(factor):
    network = _second_task()
    network.prune(0.2)
    (network.module(_images()).square().sum() * factor).backward()
    network.after_backward()
    for weight in network.tensors.values():
        assert (weight.delta.grad[~weight.own] == 0).all()
        assert (weight.score.grad[~weight.old] == 0).all()
        assert weight.delta.grad[weight.own].isfinite().all() == (factor == 1.0)


def test_a_stray_gradient_is_noticed():
    network = _second_task()
    network.module(_images()).sum().backward()
    weight = network.tensors["hidden.weight"]
    weight.delta.grad.fill_(1.0)
    with pytest.raises(OwnershipError, match=r"hidden\.weight"):
        network.after_backward()


def test_partition_and_committed_entries_over_three_tasks():
    network, kept = OwnedNetwork(_net()), {}
    for task in (1, 2, 3):
        network.claim(task)
        _train(network, _sgd(network))
        network.prune(0.6)
        network.commit()
        for name, weight in network.tensors.items():
            counts = weight.counts()
            assert sum(counts.values()) == weight.owner.numel()
            for earlier in range(1, task):
                places = kept[name, earlier][0]
                assert torch.equal(weight.owner == earlier, places)
                assert torch.equal(weight.base[places], kept[name, earlier][1])
            kept[name, task] = weight.owner == task, weight.base[weight.owner == task].clone()
        following = OwnedNetwork(_net(task))
        following.load(network.base(), network.owner())
        network = following


@pytest.mark.parametrize(("invariant", "damage"), [("I1", "delta"), ("I2", "base"), ("I3", "old"), ("I4", "owner")])
def test_a_broken_invariant_is_named(invariant, damage):
    network = _second_task()
    network.prune(0.5)
    weight = network.tensors["hidden.weight"]
    with torch.no_grad():
        if damage == "delta":
            weight.delta[weight.outside] = 1.0
        elif damage == "base":
            weight.base[weight.own] = 1.0
        elif damage == "old":
            weight.base[weight.old] += 1.0
        else:
            weight.owner[weight.own] = 9
            weight.refresh()
            weight.base.masked_fill_(~weight.old, 0.0)
    with pytest.raises(OwnershipError, match=invariant):
        network.check()


def test_only_a_later_task_can_claim():
    with pytest.raises(ValueError, match="owned by task 2"):
        _second_task().tensors["hidden.weight"].claim(1)


def test_more_tasks_than_a_byte_holds():
    network, weight = _vector([1.0, 2.0], owner="loaded")
    network.load({"0.weight": torch.tensor([[0.5, 0.0]])}, {"0.weight": torch.tensor([[254, 0]], dtype=torch.uint8)})
    network.claim(300)
    assert weight.owner.tolist() == [[254, 300]]


# --- picking and decay -----------------------------------------------------------------------------------------------


def test_scores_at_the_threshold_are_not_picked():
    network, weight = _vector([0.0] * 3, owner="loaded")
    network.load({"0.weight": torch.tensor([[2.0, 3.0, 5.0]])}, {"0.weight": torch.ones(1, 3, dtype=torch.uint8)})
    network.claim(2)
    with torch.no_grad():
        weight.score.copy_(torch.tensor([[0.004, 0.005, 0.0051]]))
    factors = torch.tensor([[7.0, 11.0, 13.0]])
    effective = network.module[0].weight
    assert effective.tolist() == [[0.0, 0.0, 5.0]]
    (effective * factors).sum().backward()
    assert weight.score.grad.tolist() == [[14.0, 33.0, 65.0]]
    assert weight.picks().tolist() == [[False, False, True]]


def test_a_threshold_above_the_start_is_refused():
    with pytest.raises(ValueError, match="threshold"):
        PickRule(init=0.01, threshold=0.01)


@pytest.mark.parametrize(("momentum", "factor"), [(0.0, 1.0), (0.9, 1.9)])
def test_weight_decay_reaches_own_weights_only(momentum, factor):
    network = _second_task()
    _train(network, _sgd(network), steps=1)
    before = {name: weight.delta.detach().clone() for name, weight in network.tensors.items()}
    others = {key: value.clone() for key, value in task_state(network.module).items()}
    lr, decay = 0.1, 0.01
    optimizer = torch.optim.SGD(network.groups(decay), lr=lr, momentum=momentum, nesterov=momentum > 0)
    for parameter in network.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, weight in network.tensors.items():
        torch.testing.assert_close(weight.delta, before[name] * (1 - lr * factor * decay), rtol=1e-6, atol=0)
        assert not weight.delta[weight.outside].any()
    assert all(torch.equal(value, others[key]) for key, value in task_state(network.module).items())


def test_picks_stand_while_they_are_frozen_and_start_again_after():
    network = _second_task()
    weight = network.tensors["hidden.weight"]
    dropped = weight.old.nonzero()[0].tolist()
    with torch.no_grad():
        weight.score[tuple(dropped)] = 0.0
    live = network.module(_images())
    network.freeze_picks()
    assert torch.equal(network.module(_images()), live)
    assert not network.score_parameters()
    assert not weight.picks()[tuple(dropped)]
    network.reset_scores()
    assert len(network.score_parameters()) == 4
    assert weight.picks()[tuple(dropped)]


def test_a_step_that_does_not_count_copies_only_what_a_forward_pass_moves():
    network = _second_task()
    sizes = [buffer.numel() for buffer in Buffers([network.module]).kept]
    assert sorted(sizes) == [1, 8, 8]  # of the norm


# --- what a task computes with ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("picks", [True, False])
def test_live_and_materialised_logits_are_equal(picks):
    network = _second_task(picks=picks)
    _train(network, _sgd(network))
    network.prune(0.3)
    if picks:
        with torch.no_grad():
            network.tensors["conv.weight"].score.view(-1)[::2] = 0.0
    network.module.eval()
    images = _images()
    with torch.no_grad():
        live = network.module(images)
    state = {key: value.clone() for key, value in task_state(network.module).items()}
    chosen = network.commit()
    weights = effective_weights(network.base(), network.owner(), chosen, 2)
    plain = materialise(_net(5), weights, state)
    with torch.no_grad():
        assert torch.equal(plain(images), live)
    assert not plain.training


def test_a_snapshot_and_a_copy_return_to_the_same_network():
    network = _second_task()
    parts = _sgd(network)
    _train(network, parts)
    network.prune(0.3, parts)
    network.freeze_picks()
    state, copied = network.state(), copy.deepcopy(network)
    logits = network.module.eval()(_images())
    network.module.train()
    _train(network, parts)
    network.prune(0.8, parts)
    network.load_state(state)
    assert torch.equal(network.module.eval()(_images()), logits)
    assert torch.equal(copied.module.eval()(_images()), logits)
    assert copied.tensors["conv.weight"].delta is copied.module.conv.parametrizations.weight.original
    again = copy.deepcopy(network.module)
    again.load_state_dict(network.module.state_dict())
    assert torch.equal(again(_images()), logits)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_bf16_leaves_base_and_materialised_weights_in_float32(ratio):
    network = _second_task(ratio)
    before = {name: weight.base.clone() for name, weight in network.tensors.items()}
    parts = _sgd(network)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(network.module(_images()), torch.tensor([0, 1, 0, 1]))
    loss.backward()
    for part in parts:
        part.step()
    network.after_step(parts)
    assert all(torch.equal(weight.base, before[name]) for name, weight in network.tensors.items())
    found = effective_weights(network.base(), network.owner(), network.commit(), 2)
    assert {value.dtype for value in found.values()} == {torch.float32}
