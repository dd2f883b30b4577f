"""SimCLR, MoCo-v3 and DINO: losses against slow loops and closed forms, averages and hooks."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from effvl_cli.techniques.common.momentum import follow
from effvl_cli.techniques.pretrain.contrastive import info_nce, nt_xent
from effvl_cli.techniques.pretrain.dino import DINO, dino_loss
from effvl_cli.techniques.pretrain.heads import DinoHead, projector
from effvl_cli.techniques.pretrain.method import View, Views, alone, encode
from effvl_cli.techniques.pretrain.mocov3 import MoCoV3
from effvl_cli.techniques.pretrain.simclr import SimCLR
from effvl_cli.techniques.pretrain.tokens import random_tokens
from effvl_cli.techniques.pretrain.vit import VisionTransformer, ViTShape

SHAPE = ViTShape(16, 2, 2, 4, 16)


def backbone():
    torch.manual_seed(0)
    return VisionTransformer(SHAPE)


def view(seed, *, patch=4, keep=None, count=6, side=16):
    g = torch.Generator().manual_seed(seed)
    kept = None if keep is None else random_tokens(count, (side // patch) ** 2, keep, g)
    return View(torch.randn(count, 3, side, side, generator=g), patch, kept)


def pair(**more):
    return Views([view(1, **more)], [view(2, **more)])


METHODS = {
    "simclr": lambda: SimCLR(backbone(), hidden=24, out=8),
    "mocov3": lambda: MoCoV3(backbone(), hidden=24, out=8),
    "dino": lambda: DINO(backbone(), hidden=24, bottleneck=8, prototypes=32, freeze_last=0.5),
}


def views_of(name):
    if name == "dino":
        return Views([view(1), view(2)], [view(1), view(2)], [view(3, side=8)])
    return pair()


# --- losses ----------------------------------------------------------------------------------------------------------


def test_nt_xent_equals_a_slow_loop():
    torch.manual_seed(0)
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    rows = [F.normalize(x, dim=0) for x in [*first, *second]]
    total = 0.0
    for i in range(10):
        partner = (i + 5) % 10
        others = [math.exp(float(rows[i] @ rows[j]) / 0.2) for j in range(10) if j != i]
        total -= math.log(math.exp(float(rows[i] @ rows[partner]) / 0.2) / sum(others))
    assert float(nt_xent(first, second, 0.2)) == pytest.approx(total / 10, abs=1e-6)


def test_info_nce_equals_a_slow_loop():
    torch.manual_seed(1)
    queries, keys = torch.randn(5, 7), torch.randn(5, 7)
    total = 0.0
    for i in range(5):
        scores = [float(F.cosine_similarity(queries[i], keys[j], dim=0)) / 0.2 for j in range(5)]
        total -= scores[i] - math.log(sum(map(math.exp, scores)))
    assert float(info_nce(queries, keys, 0.2)) == pytest.approx(total / 5, abs=1e-6)


def test_equal_embeddings_cannot_be_told_apart():
    same = torch.ones(6, 4)
    assert float(info_nce(same, same, 0.2)) == pytest.approx(math.log(6))
    assert float(nt_xent(same, same, 0.2)) == pytest.approx(math.log(11))


def test_orthogonal_pairs_cost_nothing_when_cold():
    eye = torch.eye(6)
    assert float(info_nce(eye, eye, 0.01)) < 1e-6 and float(nt_xent(eye, eye, 0.01)) < 1e-6


def test_dino_loss_with_two_global_views_has_two_terms():
    torch.manual_seed(0)
    teacher = [torch.randn(4, 6).softmax(1) for _ in range(2)]
    student = [torch.randn(4, 6) for _ in range(3)]
    slow = []
    for i in range(2):
        for j in range(3):
            if i != j:
                logp = (student[j] / 0.1).log_softmax(1)
                slow.append(-sum(float(teacher[i][b] @ logp[b]) for b in range(4)) / 4)
    assert len(slow) == 4
    assert float(dino_loss(teacher, student, 0.1)) == pytest.approx(sum(slow) / 4, rel=1e-6)
    assert float(dino_loss(teacher, student[:2], 0.1)) == pytest.approx((slow[0] + slow[2]) / 2, rel=1e-6)


def test_dino_loss_of_equal_outputs_is_their_entropy():
    logits = torch.randn(4, 6)
    p = (logits / 0.1).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    assert float(dino_loss([p, p], [logits, logits], 0.1)) == pytest.approx(float(entropy), rel=1e-5)


# --- methods ---------------------------------------------------------------------------------------------------------


def test_simclrs_projector_sees_both_views_at_once():
    method = METHODS["simclr"]().train()
    views = Views([view(1)], [view(2, patch=8)])  # two lengths: two passes of the backbone, one of the projector
    found = method.loss(views, alone, 0.0).loss
    features = torch.cat([method.backbone(view(1).images), method.backbone(view(2).images, patch=8)])
    first, second = method.projector(features).chunk(2)
    assert torch.allclose(found, nt_xent(first, second, 0.2))


def test_views_of_one_length_share_a_pass():
    net = backbone()
    calls = []
    net.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    together = encode(net, [view(1, keep=4), view(2, keep=4), view(3)])
    assert calls == [12, 6]
    apart = [net(view(s, keep=k).images, kept=view(s, keep=k).kept) for s, k in ((1, 4), (2, 4), (3, None))]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, apart, strict=True))


def test_mocos_loss_is_scaled_and_its_symmetric_form_adds_both_directions():
    one, both = MoCoV3(backbone(), hidden=24, out=8), MoCoV3(backbone(), hidden=24, out=8, symmetric=True)
    both.load_state_dict(one.state_dict())
    a, b = view(1), view(2)
    losses = [one.loss(Views([x], [y]), alone, 0.0).loss.item() for x, y in ((a, b), (b, a))]
    assert both.loss(Views([a, b], [b, a]), alone, 0.0).loss.item() == pytest.approx(sum(losses), rel=1e-5)
    plain = MoCoV3(backbone(), hidden=24, out=8, loss_scale=1.0)
    plain.load_state_dict(one.state_dict())
    assert losses[0] == pytest.approx(2 * 0.2 * plain.loss(Views([a], [b]), alone, 0.0).loss.item(), rel=1e-5)


def test_mocos_keys_have_no_gradient_and_follow_before_the_step():
    method = METHODS["mocov3"]()
    method.loss(pair(), alone, 0.0).loss.backward()
    assert all(p.grad is None for p in method.key_backbone.parameters())
    assert method.projector[0].weight.grad is not None and method.predictor[0].weight.grad is not None
    before = copy.deepcopy(method.key_backbone.state_dict())
    with torch.no_grad():
        method.backbone.cls_token.add_(1.0)
    method.after_step(0.5, 0.0)
    moved = method.key_backbone.cls_token - before["cls_token"]
    assert torch.allclose(moved, torch.full_like(moved, 0.01), atol=1e-6)  # 1 - 0.99
    method.after_step(0.5, 1.0)
    assert torch.allclose(method.key_backbone.cls_token - before["cls_token"], moved)  # at t = 1 it stays


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, 3.0), (0.0, 7.0), (0.75, 4.0)])
def test_follow(momentum, expected):
    teacher, student = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    with torch.no_grad():
        for module, value in ((teacher, 3.0), (student, 7.0)):
            for p in module.parameters():
                p.fill_(value)
    follow(teacher, student, momentum)
    assert all(torch.equal(p, torch.full_like(p, expected)) for p in teacher.parameters())


def test_dinos_centre_moves_after_it_was_used():
    method = METHODS["dino"]()
    outputs = method.teacher_head(torch.cat(encode(method.teacher_backbone, views_of("dino").key)))
    student = method.head(torch.cat(encode(method.backbone, [*views_of("dino").query, *views_of("dino").local])))
    first = [(x / 0.04).softmax(1) for x in outputs.chunk(2)]  # the centre is still zero
    found = method.loss(views_of("dino"), alone, 0.0)
    assert torch.allclose(found.loss, dino_loss(first, list(student.chunk(3)), 0.1), rtol=1e-5)
    assert torch.allclose(method.centre, 0.1 * outputs.mean(0), atol=1e-6)
    own = [-(p * p.log()).sum(1).mean() for p in first]
    other = -(first[0] * (student.chunk(3)[1] / 0.1).log_softmax(1)).sum(1).mean()
    entropy = float(sum(own)) / 2 / math.log(len(method.centre))
    assert float(found.logs["teacher_entropy"]) == pytest.approx(entropy, rel=1e-4)
    assert float(found.logs["divergence"]) == pytest.approx(float(other - own[0]), rel=1e-3)


def test_dinos_centre_is_that_of_all_processes():
    method = METHODS["dino"]()
    other = torch.randn(1, 32)
    method.loss(views_of("dino"), lambda rows: torch.cat([rows, other]), 0.0)
    alone_method = METHODS["dino"]()
    alone_method.loss(views_of("dino"), alone, 0.0)
    assert torch.allclose(method.centre, (alone_method.centre + 0.1 * other[0]) / 2, atol=1e-6)


def test_dinos_prototypes_rest_at_first():
    method = METHODS["dino"]()
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1, weight_decay=0.1)
    for t, moves in ((0.0, False), (0.4, False), (0.6, True)):
        before = method.head.prototypes.detach().clone()
        method.loss(views_of("dino"), alone, t).loss.backward()
        method.after_backward(t)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(method.head.prototypes, before) != moves


def test_dinos_teacher_warms_up():
    method = DINO(backbone(), hidden=24, prototypes=8, teacher_temperature=0.07, teacher_warmup=0.3)
    assert [method.temperature(t) for t in (0, 0.15, 0.3, 0.9)] == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_dinos_head_gives_cosines():
    head = DinoHead(16, 24, 8, 5)
    found = head(torch.randn(3, 16))
    assert found.shape == (3, 5) and found.abs().max() <= 1 + 1e-6
    assert torch.allclose(head.embed(torch.randn(3, 16)).norm(dim=1), torch.ones(3))


def test_projectors_end_in_a_norm_without_gain():
    layers = projector([4, 6, 6, 2])
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert not layers[-1].affine and all(layer.bias is None for layer in layers if isinstance(layer, torch.nn.Linear))


@pytest.mark.parametrize("name", METHODS)
def test_a_few_steps_lower_the_loss(name):
    method = METHODS[name]().train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        loss = method.loss(views_of(name), alone, 0.9).loss
        loss.backward()
        method.after_backward(0.9)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(0.9, 0.5)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert method.result is (method.teacher_backbone if name == "dino" else method.backbone)
