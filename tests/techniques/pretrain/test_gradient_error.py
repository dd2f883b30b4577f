"""The estimator of squared bias and cost-adjusted variance: unbiased, and equal to the stored-matrix formula."""

import math

import pytest
import torch

from effvl_cli.techniques.pretrain.gradient_error import (
    SKETCH,
    GradientError,
    Moments,
    adam_scale,
    sketch,
)


def collect(full, compressed, cost=0.5):
    errors = GradientError({"full": 1.0, "s": cost})
    for g, h in zip(full, compressed, strict=True):
        errors.add_full(g)
        errors.add("full", g, g)
        errors.add("s", h, g)
    return errors


def test_the_uncompressed_gradient_has_no_error():
    g = 1 + torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    found = collect(g, g).estimate("full")
    assert (found.bias2, found.ca_mse, found.var) == (0, pytest.approx(1), pytest.approx(1))
    assert found.cosine == pytest.approx(1, abs=1e-6)


def test_it_equals_the_formula_on_stored_gradients():
    torch.manual_seed(0)
    g, h = torch.randn(9, 40, dtype=torch.float64), torch.randn(9, 40, dtype=torch.float64) + 0.3
    found = collect(g, h).estimate("s")
    d = h - g
    v = {name: (x - x.mean(0)).square().sum() / 8 for name, x in (("g", g), ("h", h), ("d", d))}
    bias2 = (d.mean(0).square().sum() - v["d"] / 9) / v["g"]
    assert found.bias2 == pytest.approx(float(bias2), rel=1e-8)
    assert found.ca_var == pytest.approx(float(0.5 * v["h"] / v["g"]), rel=1e-8)
    assert found.ca_mse == pytest.approx(found.bias2 + found.ca_var)


def test_squared_bias_is_estimated_without_bias():
    """h = g + delta + noise; the plain ||mean d||^2 is too large by V(d)/M."""
    g = torch.Generator().manual_seed(0)
    batches, size, sigma = 6, 30, 0.5
    delta = torch.randn(size, generator=g) * 0.1
    truth = float(delta.square().sum())
    found, naive = [], []
    for _ in range(200):
        full = torch.randn(batches, size, generator=g)
        noise = sigma * torch.randn(batches, size, generator=g)
        errors = collect(full, full + delta + noise)
        found.append(errors.estimate("s").bias2 * errors.full.variance)
        naive.append(float((delta + noise).mean(0).square().sum()))
    values = torch.tensor(found)
    assert abs(float(values.mean()) - truth) < 2 * float(values.std()) / math.sqrt(200)
    excess = sum(naive) / 200 - truth
    assert excess == pytest.approx(size * sigma**2 / batches, rel=0.1)


@pytest.mark.parametrize("batches", [4, 8, 32])
def test_the_cosine_is_that_of_the_expected_gradients(batches):
    """Noise of the batches, shared by both gradients, and more that only the compressed one has."""
    g = torch.Generator().manual_seed(2)
    size, runs = 400, 200
    full_mean = torch.randn(size, generator=g)
    mean = full_mean + 0.3 * torch.randn(size, generator=g)
    truth = float(torch.nn.functional.cosine_similarity(mean, full_mean, dim=0))
    found, plain = [], []
    for _ in range(runs):
        shared, own = torch.randn(2, batches, size, generator=g)
        full, compressed = full_mean + shared, mean + shared + 0.8 * own
        found.append(collect(full, compressed).estimate("s").cosine)
        plain.append(float(torch.nn.functional.cosine_similarity(full.mean(0), compressed.mean(0), dim=0)))
    values, naive = torch.tensor(found, dtype=torch.float64), torch.tensor(plain, dtype=torch.float64)
    error = 2.5 * float(values.std()) / math.sqrt(runs)
    assert abs(float(values.mean()) - truth) < error
    if batches < 32:
        assert float(naive.mean()) < truth - 2 * error


def test_where_noise_hides_a_gradient_it_has_no_direction():
    noise = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert collect(noise, noise + 1).estimate("s").cosine is None


def test_the_jackknife_tells_the_spread():
    g = torch.Generator().manual_seed(1)
    values, errors = [], []
    for _ in range(100):
        full = torch.randn(12, 30, generator=g)
        found = collect(full, full + 0.3 + 0.5 * torch.randn(12, 30, generator=g)).estimate("s")
        values.append(found.bias2)
        errors.append(found.bias2_se)
    assert sum(errors) / 100 == pytest.approx(float(torch.tensor(values).std()), rel=0.25)


def test_running_moments():
    rows = torch.randn(7, 5, dtype=torch.float64)
    moments = Moments()
    for row in rows:
        moments.add(row)
    assert torch.allclose(moments.mean, rows.mean(0), atol=1e-12)
    assert moments.variance == pytest.approx(float((rows - rows.mean(0)).square().sum() / 6), rel=1e-12)


def test_signal_to_noise():
    g = torch.Generator().manual_seed(0)
    mean = torch.ones(20)
    full = mean + torch.randn(2000, 20, generator=g)
    assert collect(full, full).snr == pytest.approx(1.0, rel=0.1)  # 20 / 20


def test_sketches_keep_inner_products():
    g = torch.Generator().manual_seed(0)
    short = torch.randn(100, generator=g)
    assert torch.equal(sketch(short), short)
    a, b = (torch.randn(5 * SKETCH + 3, generator=g) for _ in range(2))
    b = 0.5 * a + b
    assert float(sketch(a) @ sketch(b)) == pytest.approx(float(a @ b), rel=0.1)
    assert torch.allclose(sketch(a) + sketch(b), sketch(a + b), atol=1e-4)  # it is linear


def test_progress_equals_the_formula_on_stored_gradients():
    torch.manual_seed(1)
    g = 1 + torch.randn(9, 40, dtype=torch.float64)
    h = g + 0.3 * torch.randn(9, 40, dtype=torch.float64)

    def norm2(rows):
        return rows.mean(0).square().sum() - (rows - rows.mean(0)).square().sum() / 8 / 9

    v = {name: (x - x.mean(0)).square().sum() / 8 for name, x in (("g", g), ("h", h))}
    along = (norm2(h) + norm2(g) - norm2(h - g)) / 2
    found = collect(g, h, cost=0.25).estimate("s")
    assert found.progress == pytest.approx(float(along**2 / (norm2(h) + v["h"]) / 0.25 / v["g"]), rel=1e-8)
    full = collect(g, h).estimate("full")
    assert full.progress == pytest.approx(float(norm2(g) ** 2 / (norm2(g) + v["g"]) / v["g"]), rel=1e-8)


def test_a_gradient_that_points_away_makes_negative_progress():
    g = torch.ones(5, 3) + 0.1 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert collect(g, -g).estimate("s").progress < -1


def test_adams_metric_is_the_decrease_along_its_step():
    """sum of the products of two scaled gradients == gradient times the change that torch's Adam makes of the other."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(6, dtype=torch.float64))
    adam = torch.optim.Adam([parameter], lr=0.1, betas=(0.0, 0.9))
    for _ in range(3):
        parameter.grad = torch.randn(6, dtype=torch.float64)
        before = parameter.detach().clone()
        adam.step()
    step = (before - parameter.detach()) / 0.1
    state = adam.state[parameter]
    scale = adam_scale(state["exp_avg_sq"], 0.9, float(state["step"]))
    other = torch.randn(6, dtype=torch.float64)
    assert float((scale * other) @ (scale * parameter.grad)) == pytest.approx(float(other @ step), rel=1e-9)
    assert torch.equal(adam_scale(state["exp_avg_sq"], 0.9, 0), torch.ones(6, dtype=torch.float64))


def test_progress_orders_as_the_squared_cosine_per_cost():
    """<Eh,Eg>^2 / (|Eg|^2 (|Eh|^2 + V(h))) / cost, and the scale of h changes nothing."""
    g = torch.Generator().manual_seed(5)
    full = 1 + torch.randn(40, 30, generator=g, dtype=torch.float64)
    for scale, noise, cost in ((1.0, 0.1, 0.5), (3.0, 0.1, 0.5), (0.2, 1.0, 0.25)):
        h = scale * (full + noise * torch.randn(40, 30, generator=g, dtype=torch.float64))
        errors = collect(full, h, cost)

        def norm2(rows):
            return float(rows.mean(0).square().sum() - (rows - rows.mean(0)).square().sum() / 39 / 40)

        variance = float((h - h.mean(0)).square().sum() / 39)
        along = (norm2(h) + norm2(full) - norm2(h - full)) / 2
        cosine2 = along**2 / (norm2(full) * (norm2(h) + variance)) / cost
        assert errors.estimate("s").progress == pytest.approx(errors.snr * cosine2, rel=1e-9)
    assert collect(full, 7 * h, cost).estimate("s").progress == pytest.approx(errors.estimate("s").progress, rel=1e-9)


def averaged(full, compressed, cost=0.5):
    """Estimate from (N, M, P) gradients of N states."""
    errors = GradientError({"s": cost}, averaged=len(full))
    for g, h in zip(full.mean(0), compressed.mean(0), strict=True):
        errors.add_full(g)
        errors.add("s", h, g)
    return errors


def test_averaged_over_states_it_equals_the_formula_on_stored_gradients():
    torch.manual_seed(2)
    g, h = torch.randn(3, 9, 40, dtype=torch.float64), torch.randn(3, 9, 40, dtype=torch.float64) + 0.3
    errors = averaged(g, h)
    found = errors.estimate("s")
    d = (h - g).mean(0)
    one = {name: 3 * (x.mean(0) - x.mean((0, 1))).square().sum() / 8 for name, x in (("g", g), ("h", h))}
    bias2 = d.mean(0).square().sum() - (d - d.mean(0)).square().sum() / 8 / 9
    assert found.bias2 == pytest.approx(float(bias2 / one["g"]), rel=1e-8)
    assert found.var == pytest.approx(float(one["h"] / one["g"]), rel=1e-8)
    assert found.ca_mse == pytest.approx(found.bias2 + 0.5 * found.var)
    assert len(found.left_out["ca-mse"]) == 9
    mean = g.mean((0, 1)).square().sum() - one["g"] / 3 / 9
    assert errors.snr == pytest.approx(float(mean / one["g"]), rel=1e-8)


@pytest.mark.parametrize("states", [1, 4])
def test_averaging_states_makes_the_noise_of_the_squared_bias_so_much_smaller(states):
    """Without bias and with differences of variance s^2 a coordinate its spread is s^2 / N sqrt(2 P / (M (M - 1)))."""
    g = torch.Generator().manual_seed(4)
    batches, size, sigma = 8, 30, 0.5
    values, variances = [], []
    for _ in range(200):
        full = torch.randn(states, batches, size, generator=g)
        errors = averaged(full, full + sigma * torch.randn(states, batches, size, generator=g))
        scale = states * errors.full.variance
        values.append(errors.estimate("s").bias2 * scale)
        variances.append(errors.estimate("s").var * scale)
    closed = sigma**2 / states * math.sqrt(2 * size / (batches * (batches - 1)))
    assert float(torch.tensor(values).std()) == pytest.approx(closed, rel=0.15)
    assert sum(variances) / 200 == pytest.approx(size * (1 + sigma**2), rel=0.05)  # that of one batch, as ever


def test_a_bias_that_changes_its_sign_from_state_to_state_is_averaged_away():
    g = torch.Generator().manual_seed(6)
    full = torch.randn(2, 12, 20, generator=g)
    transient, lasting = torch.full((20,), 2.0), torch.full((20,), 0.5)
    h = full + lasting + torch.stack([transient, -transient])[:, None]
    errors = averaged(full, h)
    assert errors.estimate("s").bias2 * 2 * errors.full.variance == pytest.approx(20 * 0.25, rel=1e-4)
    alone = averaged(full[:1], h[:1])
    assert alone.estimate("s").bias2 * alone.full.variance == pytest.approx(20 * 2.5**2, rel=1e-4)
