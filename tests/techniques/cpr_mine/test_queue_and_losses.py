import math

import pytest
import torch
import torch.nn.functional as F

from effvl_cli.techniques.cpr_mine.infonce import mil_nce, per_positive_nce, similarity_logits, without_own
from effvl_cli.techniques.cpr_mine.queue import Queues


def queues_of(size=5, **dims):
    return Queues(dims or {"rgb": 3, "flow": 2}, size, torch.Generator().manual_seed(0))


def put(queues, first, count):
    clips = torch.arange(first, first + count)
    rows = {view: clips[:, None].float().expand(-1, bank.shape[1]) for view, bank in queues.banks.items()}
    queues.enqueue(rows, clips, clips // 2, clips % 3)


def test_slots_begin_empty_with_random_unit_rows():
    queues = queues_of(50)
    assert not queues.full and queues.clips.tolist() == [-1] * 50 and float(queues.fill) == 0
    assert torch.allclose(queues.banks["rgb"].norm(dim=1), torch.ones(50), atol=1e-6)
    assert queues.banks["rgb"].std(0).min() > 0.3  # of a random unit vector in 3 dimensions: 0.58


def test_writing_wraps_around_and_all_views_and_numbers_stay_aligned():
    queues = queues_of(5)
    put(queues, 0, 3)
    assert int(queues.place) == 3 and not queues.full and float(queues.fill) == pytest.approx(0.6)
    put(queues, 3, 4)  # slots 3, 4, 0, 1
    assert queues.clips.tolist() == [5, 6, 2, 3, 4] and int(queues.place) == 2 and queues.full
    assert queues.groups.tolist() == [2, 3, 1, 1, 2] and queues.labels.tolist() == [2, 0, 2, 0, 1]
    for bank in queues.banks.values():
        assert bank[:, 0].tolist() == queues.clips.tolist()


def test_of_more_clips_than_slots_the_last_ones_stay_where_one_by_one_would_put_them():
    at_once, singly = queues_of(5), queues_of(5)
    for queues in (at_once, singly):
        put(queues, 0, 2)
    put(at_once, 2, 12)
    for clip in range(2, 14):
        put(singly, clip, 1)
    for key, value in singly.state_dict().items():
        assert torch.equal(value, at_once.state_dict()[key]), key


def test_the_state_holds_everything():
    queues, other = queues_of(4), Queues({"rgb": 3, "flow": 2}, 4, torch.Generator().manual_seed(1))
    put(queues, 0, 3)
    other.load_state_dict(queues.state_dict())
    put(queues, 3, 3)
    put(other, 3, 3)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in queues.state_dict().items())


def test_logits_are_cosines_over_the_temperature():
    q, own = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    bank = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
    expected = torch.tensor([[0.8, 0.0, -1.0, 0.6], [0.8, 0.8, -0.6, 1.0]]) / 0.1
    assert torch.allclose(similarity_logits(q, own, bank, 0.1), expected)


def only_own(logits):
    positive = torch.zeros(logits.shape, dtype=torch.bool)
    positive[:, 0] = True
    return positive


@pytest.mark.parametrize("loss", [mil_nce, per_positive_nce])
def test_without_further_positives_it_is_cross_entropy_with_class_0(loss):
    logits = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits, torch.zeros(7, dtype=torch.int64), reduction="none")
    assert torch.allclose(loss(logits, only_own(logits)), expected, atol=1e-6)


def test_hand_values():
    logits = torch.zeros(1, 3)
    positive = torch.tensor([[True, True, False]])
    assert float(mil_nce(logits, positive)) == pytest.approx(-math.log(2 / 3), abs=1e-6)
    assert float(mil_nce(logits, without_own(positive))) == pytest.approx(math.log(3), abs=1e-6)
    assert float(per_positive_nce(logits, positive)) == pytest.approx(math.log(3), abs=1e-6)
    half = torch.tensor([[1.0, 0.5, 1.0]])  # (1 + 1/2) / 3
    assert float(mil_nce(logits, positive, half)) == pytest.approx(math.log(2), abs=1e-6)
    left_out = torch.tensor([[0.0, 0.0, -math.inf]])
    assert float(mil_nce(left_out, positive)) == pytest.approx(0.0, abs=1e-6)
    assert float(per_positive_nce(left_out, positive)) == pytest.approx(math.log(2), abs=1e-6)


def test_the_own_key_is_kept_where_it_is_the_only_positive():
    positive = torch.tensor([[True, False, False], [True, False, True]])
    assert without_own(positive).tolist() == [[True, False, False], [False, False, True]]
    assert positive[:, 0].all()  # the argument stays as it is


def test_the_mean_over_positives_is_the_mean_of_single_losses_and_bounds_the_sum():
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(6, 9, generator=generator, dtype=torch.float64)
    positive = torch.rand(6, 9, generator=generator) < 0.4
    positive[:, 0] = True
    singles = -logits.log_softmax(1)
    expected = torch.stack([row[kept].mean() for row, kept in zip(singles, positive, strict=True)])
    found = per_positive_nce(logits, positive)
    assert torch.allclose(found, expected, atol=1e-12)
    assert (mil_nce(logits, positive) <= found + 1e-12).all()


@pytest.mark.parametrize("loss", [mil_nce, per_positive_nce])
def test_gradients_in_float64_with_columns_left_out(loss):
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([[1, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]], dtype=torch.bool)
    left_out = torch.zeros(3, 6, dtype=torch.bool)
    left_out[:, 3] = True
    weight = torch.full((3, 6), 0.7, dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: loss(x.masked_fill(left_out, -math.inf), positive, weight), (logits,))


@pytest.mark.parametrize("loss", [mil_nce, per_positive_nce])
def test_large_logits_stay_finite(loss):
    """The released code's softmax, product and logarithm gives an infinite loss here."""
    logits = torch.tensor([[-1e4, 1e4, -1e4], [1e4, -1e4, -1e4]], requires_grad=True)
    found = loss(logits, torch.tensor([[True, False, True], [True, True, False]]))
    found.sum().backward()
    assert float(found[0].detach()) == pytest.approx(2e4, rel=1e-4) and torch.isfinite(found).all()
    assert torch.isfinite(logits.grad).all()
