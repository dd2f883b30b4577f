import torch

from effvl_cli.techniques.prune_tokens.predictor import MixerPredictor
from effvl_cli.techniques.prune_tokens.prompts import VisualPrompts, mean_patch_states
from effvl_cli.techniques.prune_tokens.selectors import ClsAttentionSelector
from effvl_cli.techniques.prune_tokens.tower import PrunedVision


def _pruned(tower, *, layer=1, start=1, depth=2, selector=None, **options):
    init = torch.randn(depth, 32, generator=torch.Generator().manual_seed(0))
    prompts = VisualPrompts(init, 2, start=start, generator=torch.Generator().manual_seed(1), **options)
    return PrunedVision(
        tower, layer=layer, num_keep=5, selector=selector or ClsAttentionSelector(), prompts=prompts
    ).eval()


class Recorder:
    """A tower that notes what enters and leaves its blocks."""

    def __init__(self, tower):
        self.tower = tower
        self.inputs = {}
        self.outputs = {}

    def __getattr__(self, name):
        return getattr(self.tower, name)

    def block(self, index, states):
        self.inputs[index] = states
        self.outputs[index] = self.tower.block(index, states)
        return self.outputs[index]


def test_rows_and_deep_replacement(make_tower, images):
    recorder = Recorder(make_tower())
    pruned = _pruned(recorder)
    tokens = pruned.prompts.tokens
    output = pruned(images(recorder, 3))
    assert output.shape == (3, 16)
    assert [recorder.inputs[index].shape[1] for index in range(3)] == [17, 1 + 5 + 2, 1 + 5 + 2]
    for index in (1, 2):
        assert torch.equal(recorder.inputs[index][:, -2:], tokens[index - 1].expand(3, -1, -1))
    assert torch.equal(recorder.inputs[2][:, :-2], recorder.outputs[1][:, :-2])


def test_prompts_beyond_their_depth_pass_on(make_tower, images):
    recorder = Recorder(make_tower())
    _pruned(recorder, depth=1)(images(recorder, 1))
    assert torch.equal(recorder.inputs[2], recorder.outputs[1])


def test_prompts_before_the_pruning_are_never_scored_nor_dropped(make_tower, images):
    seen = []

    class Spy(ClsAttentionSelector):
        def score(self, states, context):
            seen.append(states)
            return super().score(states, context)

    recorder = Recorder(make_tower())
    pruned = _pruned(recorder, layer=2, start=0, depth=3, selector=Spy())
    pruned(images(recorder, 2))
    assert torch.equal(seen[0], recorder.outputs[1][:, :17])
    assert [recorder.inputs[index].shape[1] for index in range(3)] == [19, 19, 8]
    assert torch.equal(recorder.inputs[2][:, -2:], pruned.prompts.tokens[2].expand(2, -1, -1))


def test_pre_norm_is_for_block_0_only(make_tower, images):
    recorder = Recorder(make_tower())
    recorder.module.ln_pre.weight.data.uniform_()
    pruned = _pruned(recorder, layer=1, start=0, depth=2, pre_norm=True)
    pruned(images(recorder, 1))
    first, second = pruned.prompts.tokens
    assert torch.equal(recorder.inputs[0][0, -2:], recorder.module.ln_pre(first))
    assert torch.equal(recorder.inputs[1][0, -2:], second)
    raw = _pruned(recorder, layer=1, start=0, depth=2)
    raw(images(recorder, 1))
    assert torch.equal(recorder.inputs[0][0, -2:], raw.prompts.tokens[0])


def test_only_prompts_get_gradients(make_tower, images):
    tower = make_tower()
    predictor = MixerPredictor(16, 1, width=8).requires_grad_(False)
    pruned = _pruned(tower, selector=predictor)
    pruned(images(tower, 4)).square().sum().backward()
    assert [name for name, p in pruned.named_parameters() if p.grad is not None] == ["prompts.tokens"]
    assert all(p.grad is None for p in tower.module.parameters())
    assert pruned.prompts.tokens.grad.abs().amax((1, 2)).min() > 0


def test_checkpointing_of_the_tower_changes_no_gradient(make_tower, images):
    tower = make_tower()
    gradients = []
    for enabled in (False, True):
        tower.module.set_grad_checkpointing(enabled)
        pruned = _pruned(tower)
        pruned(images(tower, 2)).square().sum().backward()
        gradients.append(pruned.prompts.tokens.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_without_prompts_the_pruned_tower_is_the_same(make_tower, images):
    tower = make_tower()
    batch = images(tower, 2)
    with_prompts = _pruned(tower)
    plain = PrunedVision(tower, layer=1, num_keep=5, selector=with_prompts.selector).eval()
    expected = plain(batch)
    with_prompts.prompts = None
    assert torch.equal(with_prompts(batch), expected)


def test_prompts_with_all_patches_kept(make_tower, images):
    recorder = Recorder(make_tower())
    pruned = _pruned(recorder)
    pruned.num_keep = 16
    assert pruned(images(recorder, 2)).shape == (2, 16)
    assert recorder.inputs[1].shape[1] == 19


def test_prompts_start_at_the_mean_patch_state_and_differ(make_tower, images):
    tower = make_tower()
    batch = images(tower, 3)
    states = tower.block(0, tower.embed(batch))[:, [0, 3, 4, 9]]
    means = mean_patch_states(tower, states, num_prefix=1, start=1, depth=9)
    assert means.shape == (2, 32)
    assert torch.allclose(means[0], states[:, 1:].mean((0, 1)), atol=1e-6)
    assert torch.allclose(means[1], tower.block(1, states)[:, 1:].mean((0, 1)), atol=1e-6)
    prompts = VisualPrompts(means, 2, start=1, generator=torch.Generator().manual_seed(0), noise=0.01)
    assert not torch.equal(prompts.tokens[:, 0], prompts.tokens[:, 1])
    assert (prompts.tokens - means[:, None]).abs().max() < 0.05 * means.abs().max()
    loaded = VisualPrompts(torch.zeros_like(means), 2, start=1)
    loaded.load_state_dict(prompts.state_dict())
    assert torch.equal(loaded.tokens, prompts.tokens)
