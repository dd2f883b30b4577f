"""Training of class features on image features: the schedule, the views, the cache, what changes and what does not."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from effvl_cli.config.prompt_tune import PromptTuneConfig, SuspectsConfig
from effvl_cli.core.run import unopened
from effvl_cli.data import load
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.engines.prompt_tune import features, head_training
from effvl_cli.engines.prompt_tune.context import build_context
from effvl_cli.engines.prompt_tune.features import Features, features_of
from effvl_cli.engines.prompt_tune.head_training import ClassFeatureTask, TrainingSet, batches_of, loss_of, rate_of
from effvl_cli.engines.prompt_tune.learners import learner_of
from effvl_cli.engines.prompt_tune.suspects import with_rate
from effvl_cli.techniques.prompt_tune.linear_classifiers import UnitClassifier

RECORD = {"sample_id": 0, "path": "x.jpg", "clean_label": 0, "given_label": 1, "flipped": 1}


@pytest.fixture
def context_of(tmp_path):
    def build(**options):
        config = PromptTuneConfig(cache_dir=str(tmp_path / "c"), **options)
        run = unopened("prompt-tune", config)
        run.log = lambda text: None  # it has no folder
        return build_context(config, run)

    return build


def test_the_rate_is_that_of_the_official_code():
    rates = [rate_of(epoch, 50, 0.002, 1e-5) for epoch in range(50)]
    assert rates[0] == 1e-5 and rates[1] == pytest.approx(0.002) and rates[2] == pytest.approx(1.998027e-3, abs=1e-9)
    assert rates[-1] == pytest.approx(0.001 * (1 + np.cos(np.pi * 48 / 50))) and rates[-1] > 0


def test_an_image_shows_another_view_each_epoch(context_of):
    values = torch.arange(6 * 4).view(6, 4, 1).float()  # image i, view v: 4 i + v
    features = Features(values, np.arange(6), torch.zeros(6, dtype=torch.int64), 0.0)
    train = TrainingSet(
        features, torch.arange(6), torch.tensor([10, 11, 12, 13, 14, 15]), torch.arange(6), load("digits", "train")
    )
    stream = batches_of(context_of(), train, EpochSampler(6, 3, 0))(0)
    for epoch in range(5):
        seen = [next(stream) for _ in range(2)]
        rows = torch.cat([batch.labels for batch in seen])
        shown = torch.cat([batch.features[:, 0] for batch in seen])
        assert sorted(rows.tolist()) == [*range(6)]
        assert torch.equal(shown, 4.0 * rows + (epoch + 10 + rows) % 4)


def _steps(context, train, steps, seed=0):
    """The context tokens after some steps of plain SGD."""
    module = learner_of(context, "prompt")
    task = ClassFeatureTask(context, module, loss_of(context, "ce"), None)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    batches = batches_of(context, train, EpochSampler(len(train), 8, seed))(0)
    for step in range(steps):
        task.train_step(next(batches), step).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return module.context.detach()


def test_kept_features_and_features_made_anew_give_the_same_prompts_and_leave_the_model_alone(context_of, monkeypatch):
    context = context_of(cache_dtype="fp32")
    monkeypatch.setattr(head_training, "AUGMENT", "none")
    source, indices = context.source("train"), np.arange(24, dtype=np.int64)
    kept = features_of(context.network, source, indices, context.config, context.run)
    rows, given = torch.arange(24), torch.as_tensor(np.asarray(source.labels[indices]))
    before = {key: value.clone() for key, value in context.network.module.state_dict().items()}
    with_features = TrainingSet(kept, rows, torch.from_numpy(indices), given, source)
    ours = _steps(context, with_features, 20)
    anew = _steps(context, dataclasses.replace(with_features, features=None), 20)
    assert torch.allclose(ours, anew, atol=1e-3)
    assert (ours - _steps(context, with_features, 0)).abs().max() > 0.01
    after = context.network.module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in context.network.module.parameters())


def test_labels_that_are_not_trusted_have_the_absolute_error(context_of):
    context = context_of()
    features, given = context.classifier.cpu()[:4], torch.tensor([0, 1, 5, 6])
    batch = head_training.FeatureBatch(features, given, torch.tensor([7, 2, 4, 0]))
    trusted = torch.tensor([False, True, True, True, False, True, True, True])  # so: yes, yes, no, no
    task = ClassFeatureTask(context, UnitClassifier(context.classifier), loss_of(context, "ce"), trusted=trusted)
    log_p = (context.scale * features.double() @ context.classifier.cpu().double().T).log_softmax(1)
    own = log_p[torch.arange(4), given]
    expected = torch.cat([-own[:2], 2 - 2 * own[2:].exp()]).mean()
    assert task.train_step(batch, 0).loss.item() == pytest.approx(float(expected), abs=1e-5)


def test_features_are_kept_by_what_they_depend_on(context_of, monkeypatch):
    context = context_of()
    source, indices = context.source("train"), np.arange(6, dtype=np.int64)
    calls = []
    encode = context.network.module.encode_image
    monkeypatch.setattr(context.network.module, "encode_image", lambda x: (calls.append(len(x)), encode(x))[1])

    def made(config=context.config, network=context.network, views=0, places=indices):
        calls.clear()
        found = features_of(network, source, places, config, context.run, views=views)
        return found, bool(calls)

    first, new = made()
    assert new and first.values.dtype == torch.float16 and first.values.shape == (6, 1, 64)
    again, new = made()
    assert not new and torch.equal(again.values, first.values)
    assert made(dataclasses.replace(context.config, cache_dtype="fp32"))[1]
    assert made(places=indices[:5])[1]
    smaller = dataclasses.replace(
        context.network, preprocess=dataclasses.replace(context.network.preprocess, std=(1.0,) * 3)
    )
    assert made(network=smaller)[1]
    views, new = made(views=3)
    assert new and views.values.shape == (6, 3, 64) and not torch.equal(views.values[:, 0], views.values[:, 1])
    assert not made(views=3)[1] and made(dataclasses.replace(context.config, seed=1), views=3)[1]
    with torch.no_grad():
        pixels = context.network.preprocess.normalise(
            torch.stack([context.network.preprocess.to_uint8(source.image(place)) for place in range(6)])
        )
        assert torch.allclose(first.first, encode(pixels), atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_features_above_the_limit_are_mapped_from_the_file(context_of, monkeypatch, tmp_path, limit):
    monkeypatch.setattr(features, "MAPPED", limit)
    context = context_of()
    source, indices = context.source("train"), np.arange(3, dtype=np.int64)
    first = features_of(context.network, source, indices, context.config, context.run)
    mapped = str(tmp_path / "c" / "features") in Path("/proc/self/maps").read_text()
    assert mapped == (limit == 0)
    again = features_of(context.network, source, indices, context.config, context.run)  # from the cache: always
    assert str(tmp_path / "c" / "features") in Path("/proc/self/maps").read_text()
    assert torch.equal(first.values, again.values) and np.array_equal(first.indices, again.indices)


def test_damaged_features_are_made_again(context_of, tmp_path):
    context = context_of()
    source, indices = context.source("train"), np.arange(3, dtype=np.int64)
    first = features_of(context.network, source, indices, context.config, context.run)
    [file] = (tmp_path / "c" / "features").glob("*/features.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    again = features_of(context.network, source, indices, context.config, context.run)
    assert torch.equal(first.values, again.values)
    assert any("damaged" in text for text in context.run.report.warnings)


def test_rows_of_images_by_their_positions():
    features = Features(torch.zeros(4, 1, 2), np.array([7, 2, 9, 4]), torch.zeros(4), 0.0)
    assert features.rows_of(np.array([9, 7, 4])).tolist() == [2, 0, 3]


def test_each_learner_trains_what_it_says(context_of):
    context = context_of(num_context=3, shots=1)
    names = len([token for ids in context.pieces.ids for token in ids])
    sizes = {"prompt": 3 * 64, "cls-random": 3 * 64, "full-prompt": (3 + names) * 64, "cls-tuning": names * 64}
    for method, size in sizes.items():
        module = learner_of(context, method)
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == size, method
        assert module().shape == (30, 64)
    own = learner_of(context_of(num_context=3, csc=True), "prompt")
    assert own.context.shape == (30, 3, 64)
    whole = learner_of(context, "tenc-ft")
    assert isinstance(whole, nn.Module) and torch.allclose(whole(), context.classifier, atol=1e-5)
    assert not any(p.requires_grad for p in context.network.module.parameters())
    words = learner_of(context_of(context_init="a picture of"), "prompt")
    with torch.no_grad():
        ids = context.network.tokenize(["a picture of"])[0, 1:4]
        assert torch.equal(words.context, context.network.module.token_embedding(ids))


def test_the_tokens_before_a_name_in_the_middle_can_be_shared(context_of):
    context = context_of(prefix_share="on", class_position="middle", num_context=5)
    plain = context_of(prefix_share="off", class_position="middle", num_context=5)
    shared, whole = (learner_of(found, "prompt") for found in (context, plain))
    assert (shared.num_shared, whole.num_shared) == (3, 0)  # the start and the first two of five
    assert (shared() - whole()).abs().max() < 1e-5


def test_suspects_make_wrong_labels_only_where_they_are_asked_to(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "effvl: 1\ncommand: prompt-tune\nconfig:\n  data: digits\n  noise-rate: 0.0,0.2\n"
    )
    run = str(tmp_path)
    assert with_rate(SuspectsConfig(data="digits")).noise_rate == (0.0,)
    assert with_rate(SuspectsConfig(data="digits", run=run)).noise_rate == (0.2,)
    assert with_rate(SuspectsConfig(data="cifar10", run=run)).noise_rate == (0.0,)
    assert with_rate(SuspectsConfig(data="cifar10", run=run, noise_rate=(0.1,))).noise_rate == (0.1,)
    (tmp_path / "config.yaml").write_text(
        "effvl: 1\ncommand: prompt-tune\nconfig:\n  data: digits\n  unsupervised: true\n"
    )
    assert with_rate(SuspectsConfig(data="digits", run=run)).noise_rate == (0.0,)  # it made no wrong labels
    sets = [{"rate": rate, "model": "file", "records": [RECORD]} for rate in (0.0, 5 / 34)]
    (tmp_path / "noise.json").write_text(json.dumps({"effvl": 1, "classes": ["a", "b"], "sets": sets}))
    taken = with_rate(SuspectsConfig(data="digits", noise_from=str(tmp_path)))
    assert taken.noise_rate == (5 / 34,)  # not the labels before they were made wrong
