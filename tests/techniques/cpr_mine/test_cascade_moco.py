import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from effvl_cli.techniques.cpr_mine.cascade_moco import CascadeMoCo, ClipViews, Objective, unit
from effvl_cli.techniques.cpr_mine.queue import Queues
from effvl_cli.techniques.cpr_mine.stages import Stage

B, N, C, DIM = 4, 24, 6, 5
SHAPE = (B, C, 2, 3, 3)


class Encoder(nn.Module):
    def __init__(self, seed, norm=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.linear = nn.Linear(C, DIM)
        self.norm = nn.BatchNorm1d(C) if norm else nn.Identity()

    def forward(self, clips):
        return self.linear(self.norm(clips.mean((2, 3, 4))))


def views(seed=0, first=100, labels=(0, 1, 2, 0)):
    g = torch.Generator().manual_seed(seed)
    query, key, flow = (torch.randn(SHAPE, generator=g) for _ in range(3))
    clips = torch.arange(first, first + B)
    return ClipViews(query, key, {"flow": flow}, clips, clips // 2, torch.tensor(labels))


def method_of(*, norm=False, full=True, **about):
    queues = Queues({"rgb": DIM, "flow": DIM}, N, torch.Generator().manual_seed(3))
    if full:  # clips 0 .. N-1, two to a group
        clips = torch.arange(N)
        queues.enqueue({view: bank.clone() for view, bank in queues.banks.items()}, clips, clips // 2, clips % 3)
    made = CascadeMoCo(Encoder(0, norm), "rgb", {"flow": Encoder(1, norm)}, queues, Objective(**about))
    return made.train()


def logits_of(method, clips, temperature):
    q, k = unit(method.encoder(clips.query)), unit(method.key_encoder(clips.key))
    return torch.cat([(q * k).sum(1, keepdim=True), q @ method.queues.banks["rgb"].T], 1) / temperature


def brute(q, z, queues, stages, forbidden):
    """The cascade in plain Python: the slots that each clip is given."""
    sims = {"rgb": q @ queues.banks["rgb"].T, "flow": z @ queues.banks["flow"].T}
    found = []
    for row in range(len(q)):
        kept = [j for j in range(N) if not forbidden[row, j]]
        for stage in stages:
            kept = sorted(kept, key=lambda j: (-float(sims[stage.view][row, j]), j))[: stage.n]
        found.append(set(kept))
    return found


def test_without_mined_positives_it_is_moco():
    method, clips = method_of(temperature=0.2), views()
    expected = F.cross_entropy(logits_of(method, clips, 0.2), torch.zeros(B, dtype=torch.int64))
    found = method.step(clips, drop_own=True)
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    assert "mined_rows" not in found.logs and float(found.logs["queue_fill"]) == 1


STAGES = (Stage("flow", 12), Stage("rgb", 6), Stage("flow", 3))


@pytest.mark.parametrize("siblings", ["positive", "exclude"])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_positives_are_those_of_a_cascade_in_plain_python(siblings, weight):
    """Clips 2..5, whose own older keys and siblings are in the queue: forbidden to the cascade."""
    method, clips = method_of(temperature=0.3, siblings=siblings, mined_weight=weight), views(first=2)
    q = unit(method.encoder(clips.query)).detach()
    z = unit(method.partners["flow"](clips.partners["flow"]))
    same = clips.groups[:, None] == method.queues.groups[None]
    assert same.sum(1).tolist() == [2] * B
    mined = brute(q, z, method.queues, STAGES, same)
    plain = brute(q, z, method.queues, STAGES, torch.zeros_like(same))
    assert mined != plain  # the siblings would have been found
    expected = []
    for row, logit in enumerate(logits_of(method, clips, 0.3).detach().double().exp()):
        siblings_of = set(same[row].nonzero().flatten().tolist())
        everything = float(logit.sum()) - (siblings == "exclude") * sum(float(logit[1 + j]) for j in siblings_of)
        older = siblings_of if siblings == "positive" else set()
        good = weight * sum(float(logit[1 + j]) for j in mined[row]) + sum(float(logit[1 + j]) for j in older)
        expected.append(-torch.tensor(good / everything).log())  # without the own key
    found = method.step(clips, STAGES, drop_own=True)
    assert float(found.loss.detach()) == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)
    right = sum(int(method.queues.labels[j]) == int(clips.labels[row]) for row in range(B) for j in mined[row])
    assert float(found.logs["mined_precision"]) == pytest.approx(right / 12, abs=1e-6)
    assert float(found.logs["mined_rows"]) == 1


def test_listed_clips_are_positives_wherever_they_lie_in_the_queue():
    listed = torch.full((200, 2), -1)
    listed[100], listed[102] = torch.tensor([7, 150]), torch.tensor([3, 4])
    method, clips = method_of(temperature=0.3, listed=listed), views()
    logits = logits_of(method, clips, 0.3).detach().double().log_softmax(1).exp()
    good = [logits[0, 8], logits[1, 0], logits[2, 4] + logits[2, 5], logits[3, 0]]
    found = method.step(clips, drop_own=True)
    assert float(found.loss.detach()) == pytest.approx(float(-torch.stack(good).log().mean()), abs=1e-5)
    assert float(found.logs["mined_rows"]) == 0.5


def test_unknown_labels_count_in_no_precision():
    method, clips = method_of(), views(labels=(-1, 1, 2, 0))
    q, z = unit(method.encoder(clips.query)).detach(), unit(method.partners["flow"](clips.partners["flow"]))
    mined = brute(q, z, method.queues, STAGES, torch.zeros(B, N))
    right = sum(int(method.queues.labels[j]) == int(clips.labels[row]) for row in range(1, B) for j in mined[row])
    assert float(method.step(clips, STAGES).logs["mined_precision"]) == pytest.approx(right / 9, abs=1e-6)


def test_a_step_leaves_the_queues_and_the_update_is_written_after_it():
    method, clips = method_of(), views()
    before = {key: value.clone() for key, value in method.queues.state_dict().items()}
    found = method.step(clips, STAGES)
    assert all(torch.equal(value, method.queues.state_dict()[key]) for key, value in before.items())
    found.loss.backward()  # the queue's rows are saved for it
    method.enqueue(found.entries)
    assert method.queues.clips[:B].tolist() == [100, 101, 102, 103]
    assert torch.allclose(method.queues.banks["rgb"][:B], unit(method.key_encoder(clips.key)), atol=1e-6)
    expected = unit(method.partners["flow"](clips.partners["flow"]))
    assert torch.allclose(method.queues.banks["flow"][:B], expected, atol=1e-6)


def test_only_the_trained_encoder_has_a_gradient_and_partners_are_no_part_of_the_state():
    method = method_of(norm=True)
    method.step(views(), STAGES).loss.backward()
    assert {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None} == {"encoder"}
    assert not any("partners" in name for name in method.state_dict())
    assert not method.partners["flow"].training and method.key_encoder.training
    statistics = method.partners["flow"].norm.state_dict()
    assert float(statistics["running_mean"].abs().max()) == 0 and int(statistics["num_batches_tracked"]) == 0


@pytest.mark.parametrize("momentum", [0.0, 0.75, 1.0])
def test_the_key_encoder_follows_with_its_parameters_alone(momentum):
    method = method_of(norm=True, momentum=momentum)
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    method.encoder.norm.running_mean.fill_(5.0)
    old = {name: value.clone() for name, value in method.key_encoder.named_parameters()}
    method.follow()
    trained = dict(method.encoder.named_parameters())
    for name, value in method.key_encoder.named_parameters():
        assert torch.allclose(value, momentum * old[name] + (1 - momentum) * trained[name], atol=1e-7)
    assert method.key_encoder.norm.running_mean.tolist() == [0.0] * C


def test_bfloat16_embeddings_are_compared_in_float32():
    """Rows of length one to more than bfloat16's three digits, and the loss of float32."""
    method, clips = method_of(temperature=0.07), views()
    exact = method.step(clips, STAGES)
    with torch.autocast("cpu", torch.bfloat16):
        found = method.step(clips, STAGES)
    assert found.loss.dtype == torch.float32
    lengths = found.entries.rows["rgb"].norm(dim=1)
    assert found.entries.rows["rgb"].dtype == torch.float32 and (lengths - 1).abs().max() < 1e-6
    assert float((found.loss - exact.loss).abs().detach()) < 0.1


def test_a_batch_of_one_group_has_its_own_keys_as_positives_only_in_the_queue():
    """Two clips of one video in a batch are not each other's positives: the batch is not in the queue yet."""
    method, clips = method_of(temperature=0.2), views()
    together = dataclasses.replace(clips, groups=torch.full((B,), 77))
    losses = [method.step(given).loss.detach() for given in (clips, together)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-6)
