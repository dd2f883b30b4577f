"""The loop on a toy task: resumption to the bit, accumulation, best state, non-finite steps, stop requests."""

import json

import pytest
import torch

from effvl_cli.core import distributed, optim, signals
from effvl_cli.core.cache import Cache
from effvl_cli.core.errors import NumericalError, Preempted
from effvl_cli.core.loop import Plan, StepOutput, Task, fit
from effvl_cli.core.records import Records
from effvl_cli.core.report import ReportBuilder
from effvl_cli.core.run import Run
from effvl_cli.core.stopping import patience, plateau


class Toy(Task):
    """Regression of a fixed linear map; evaluation figures can be dictated."""

    def __init__(self, figures=None, poison=(), module=None):
        torch.manual_seed(0)
        self.module = module or torch.nn.Linear(4, 2)
        self.figures, self.poison, self.seen = iter(figures or []), poison, 0

    def train_step(self, batch, step):
        self.seen += 1
        x, y = batch
        loss = (self.module(x) - y).square().mean()
        return StepOutput(loss * float("nan") if step in self.poison else loss)

    def evaluate(self):
        value = next(self.figures, None)
        return {} if value is None else {"figure": value}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def stream(start, size=8):
    step = start
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randn(size, 4, generator=g)
        yield x, x[:, :2] * 2
        step += 1


@pytest.fixture
def open_toy(tmp_path):
    def make(name="run"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        draft = ReportBuilder(
            command="toy", run_id=name, seed=0, config_sha256="", recipe=None, device=torch.device("cpu")
        )
        run = Run(folder, "toy", torch.device("cpu"), Cache(tmp_path / "cache"), draft, attempt=2)
        (folder / "metrics.jsonl").touch()
        run._records = Records(folder / "metrics.jsonl")
        return run

    return make


def plan(steps, **more):
    return Plan(steps=steps, rate=lambda s: optim.cosine(s, 20, warmup=2), log_every=1, save_every=4, **more)


def train(run, task, the_plan, batches=stream, name="adamw"):
    optimizers = optim.build(task.module, name, lr=0.05, weight_decay=0.01)
    return fit(task, optimizers, batches, run, the_plan), optimizers


def test_dropout_is_drawn_alike_in_each_run_of_a_seed_and_after_a_resume(open_toy):
    def network():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 2))

    found = []
    for name in ("a", "b"):
        toy = Toy(module=network())
        torch.manual_seed(len(found))  # what was drawn before does not matter
        train(open_toy(name), toy, plan(8))
        found.append(toy.module.state_dict())
    half, rest = Toy(module=network()), Toy(module=network())
    train(open_toy("c"), half, plan(4))
    train(open_toy("c"), rest, plan(8))
    found.append(rest.module.state_dict())
    assert all(torch.equal(state[key], found[0][key]) for state in found for key in found[0])


def test_resumed_equals_straight_to_the_bit(open_toy):
    straight, resumed = Toy(), Toy()
    _, whole = train(open_toy("a"), straight, plan(20))

    def stops(start):
        for number, batch in enumerate(stream(start), start):
            if number == 11:
                raise RuntimeError("pulled the plug")
            yield batch

    with pytest.raises(RuntimeError, match="pulled the plug"):
        train(open_toy("b"), Toy(), plan(20), stops)
    run = open_toy("b")
    fitted, parts = train(run, resumed, plan(20))
    assert fitted.resumed_at == 8
    assert run.report.finish("completed").resume.steps_done_before == 8
    for one, other in zip(straight.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(one, other)
    one, other = (part.state_dict()["parts"][0]["state"] for part in (whole, parts))
    assert all(torch.equal(one[k]["exp_avg"], other[k]["exp_avg"]) for k in one)
    texts = [(run.folder.parent / name / "metrics.jsonl").read_bytes() for name in "ab"]
    assert texts[0] == texts[1]
    assert resumed.seen == 20


def test_a_finished_phase_is_not_trained_again(open_toy):
    train(open_toy(), Toy(), plan(6))
    task = Toy()
    fitted, _ = train(open_toy(), task, plan(6))
    assert (fitted.steps, fitted.resumed_at, task.seen) == (6, 6, 6)


def test_two_halves_accumulated_equal_the_whole_batch(open_toy):
    def halves(start):
        for x, y in stream(start // 2):
            yield from ((x[:4], y[:4]), (x[4:], y[4:]))

    one, other = Toy(), Toy()
    train(open_toy("a"), one, plan(5))
    train(open_toy("b"), other, plan(5, accumulate=2), halves)
    assert torch.allclose(one.module.weight, other.module.weight, atol=1e-6)


def test_the_best_state_is_the_result_also_after_a_resume(open_toy):
    figures = [0.1, 0.9, 0.5, 0.4, 0.3]
    task = Toy(figures)
    fitted, _ = train(open_toy("a"), task, plan(10, eval_every=2, best="figure"))
    short = Toy()
    train(open_toy("b"), short, plan(4))
    assert fitted.best_step == 4
    assert torch.equal(task.module.weight, short.module.weight)
    again = Toy()
    fitted, _ = train(open_toy("a"), again, plan(10, eval_every=2, best="figure"))
    assert fitted.best_step == 4
    assert torch.equal(again.module.weight, short.module.weight)


def test_a_single_non_finite_step_is_left_out_with_a_warning(open_toy):
    run, task = open_toy(), Toy(poison={3})
    train(run, task, plan(6))
    assert any("not finite" in text for text in run.report.warnings)
    assert all(torch.isfinite(p).all() for p in task.module.parameters())


def test_non_finite_steps_in_a_row_end_the_run(open_toy):
    with pytest.raises(NumericalError, match="not finite at 3 steps in a row"):
        train(open_toy(), Toy(poison=set(range(2, 20))), plan(20))


def test_a_failure_names_the_images_of_all_parts_of_its_step(open_toy):
    class Named(tuple):
        def __init__(self, batch):
            self.indices = torch.tensor([int(batch[2]), 100])

    def named(start):
        return (Named((*batch, start + k)) for k, batch in enumerate(stream(start)))

    class OfPairs(Toy):
        def train_step(self, batch, step):
            return super().train_step(batch[:2], step)

    with pytest.raises(NumericalError) as caught:  # steps 2, 3 and 4 of three parts each: images 12 to 14 in the last
        train(open_toy(), OfPairs(poison=set(range(2, 20))), plan(20, accumulate=3), batches=named)
    assert "(step 4, images 12, 100, 13, 14)" in str(caught.value)


def test_a_stop_request_saves_and_leaves(open_toy, monkeypatch):
    run, task = open_toy(), Toy()
    monkeypatch.setattr(signals, "requested", lambda: 10 if task.seen >= 3 else 0)
    with pytest.raises(Preempted, match="SIGUSR1"):
        train(run, task, plan(20))
    monkeypatch.undo()
    fitted, _ = train(open_toy(), Toy(), plan(20))
    assert fitted.resumed_at == 3


def test_clipping_bounds_the_update(open_toy):
    task = Toy()
    before = task.module.weight.detach().clone()
    train(open_toy(), task, Plan(steps=1, rate=lambda s: 1.0, clip_grad=1e-3), name="sgd")
    assert (task.module.weight - before).norm() <= 0.05 * (1e-3 + 0.01 * before.norm()) + 1e-8


def test_records_hold_no_times(open_toy):
    run = open_toy()
    train(run, Toy(), plan(3))
    keys = {key for line in (run.folder / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert keys == {"event", "phase", "step", "loss", "lr_factor", "grad_norm"}


def test_cosine():
    values = [optim.cosine(s, 10, warmup=2, floor=0.1) for s in (0, 1, 2, 6, 10)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1])


def test_muon_takes_the_block_matrices_only():
    import open_clip

    model = open_clip.model.CLIP(
        8,
        open_clip.CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=4, image_size=8),
        open_clip.CLIPTextCfg(8, 20, width=16, heads=2, layers=1),
    )
    built = optim.build(model, "muon", lr=1e-3, weight_decay=0.1)
    names = {id(p): key for key, p in model.named_parameters()}
    muon = {names[id(p)] for p in built.parts[1].param_groups[0]["params"]}
    assert len(muon) == 8 and all("resblocks.0" in key for key in muon)
    assert sum(len(g["params"]) for g in built.groups()) == len(names)


def _normed():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("finished", [False, True])
def test_each_part_leaves_the_loop_in_the_mode_that_it_came_in(open_toy, training, finished):
    task = Toy(figures=[0.1], module=_normed())
    if finished:
        train(open_toy(), Toy(figures=[0.1], module=_normed()), plan(2))
    task.module.train(training)
    task.module[2].train(not training)
    train(open_toy(), task, plan(2))
    assert [part.training for part in task.module] == [training, training, not training]


def test_statistics_move_only_with_a_step_that_counts(open_toy):
    """Step 3 has a loss that is not finite: statistics as if it had not been."""

    def without_the_third(start):
        for number, batch in enumerate(stream(start), start):
            if number != 3:
                yield batch

    task, other = Toy(poison={3}, module=_normed()[:2]), Toy(module=_normed()[:2])
    train(open_toy("a"), task, Plan(steps=5, rate=lambda s: 1.0))
    train(open_toy("b"), other, Plan(steps=4, rate=lambda s: 1.0), without_the_third)
    assert task.module[1].num_batches_tracked == 4
    for key, value in other.module.state_dict().items():
        assert torch.equal(value, task.module.state_dict()[key]), key


# --- ending early ----------------------------------------------------------------------------------------------------

PLATEAU = [0.1, 0.5, 0.4, 0.5, 0.6, 0.3]  # after four evaluations, two in a row were no better than the second


@pytest.mark.parametrize("interrupted_after", [None, 3, 5, 7, 8])
def test_patience_ends_a_training_at_the_same_step_wherever_it_was_interrupted(open_toy, interrupted_after):
    the_plan = plan(20, eval_every=2, stop=patience("figure", 2))

    def stops(start):
        for number, batch in enumerate(stream(start), start):
            if number == interrupted_after:
                raise RuntimeError("pulled the plug")
            yield batch

    straight = Toy(PLATEAU)
    fitted, _ = train(open_toy("a"), straight, the_plan)
    assert (fitted.steps, fitted.stopped, fitted.figures) == (8, True, {"figure": 0.5})
    if interrupted_after is None:
        return
    if interrupted_after < 8:
        with pytest.raises(RuntimeError):
            train(open_toy("b"), Toy(PLATEAU), the_plan, stops)
    else:
        train(open_toy("b"), Toy(PLATEAU), the_plan)
    known = 4 * (interrupted_after // 4)
    again = Toy(PLATEAU[known // 2 :])
    fitted, _ = train(open_toy("b"), again, the_plan)
    assert (fitted.steps, fitted.stopped, fitted.resumed_at) == (8, True, known)
    assert torch.equal(straight.module.weight, again.module.weight)


def test_rules_of_stopping():
    def history(*values):
        return [{"figure": value} for value in values]

    waits = patience("figure", 2)
    assert [waits(history(*PLATEAU[:n])) for n in range(6)] == [False, False, False, False, True, False]
    assert patience("figure", 1, least=0.2)(history(0.1, 0.25))
    flat = plateau("figure", 2, least=0.05)
    assert not flat(history(0.1, 0.2, 0.3))
    assert not flat(history(0.1, 0.2, 0.3, 0.4))
    assert flat(history(0.1, 0.2, 0.3, 0.4, 0.38, 0.4))


def test_each_optimizer_follows_a_rate_of_its_own(open_toy):
    task, seen = Toy(), []
    layers = [torch.optim.SGD([p], lr=0.1) for p in task.module.parameters()]
    optimizers = optim.Optimizers(layers)
    task.after_step = lambda step, counted: seen.append([group["lr"] for group in optimizers.groups()])
    rates = (lambda step: 1.0, lambda step: step / 2)
    fit(task, optimizers, stream, open_toy(), Plan(steps=3, rate=rates[0], rates=rates))
    assert seen == [[0.1, 0.0], [0.1, 0.05], [0.1, 0.1]]


@pytest.mark.parametrize("broadcast", [True, False])
def test_whether_buffers_are_broadcast_is_the_plans(open_toy, broadcast, monkeypatch):
    seen = []

    class Parallel(torch.nn.Module):
        def __init__(self, module, **options):
            super().__init__()
            self.module = module
            seen.append(options)

        def forward(self, *inputs):
            return self.module(*inputs)

    monkeypatch.setattr(distributed, "world", lambda: distributed.World(0, 2, 0))
    monkeypatch.setattr(distributed, "all_reduce_max", lambda value: value)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Parallel)
    train(open_toy(), Toy(), plan(2, broadcast_buffers=broadcast))
    assert seen == [{"broadcast_buffers": broadcast}]


def test_buffers_that_an_evaluation_shares_among_processes_stay_shared(open_toy):
    task = Toy(module=_normed()[:2])

    def evaluate():
        assert not task.module.training
        task.module[1].running_mean.fill_(7.0)  # as distributed.share_buffers does with those of the first process
        return {}

    task.evaluate = evaluate
    train(open_toy(), task, plan(2))
    assert task.module[1].running_mean.tolist() == [7.0, 7.0]
