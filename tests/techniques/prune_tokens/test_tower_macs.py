import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effvl_cli.models.openclip_tower import OpenClipTower
from effvl_cli.techniques.prune_tokens.dropped import Choice
from effvl_cli.techniques.prune_tokens.evit import EvitSelector
from effvl_cli.techniques.prune_tokens.macs import TowerShape
from effvl_cli.techniques.prune_tokens.predictor import MixerPredictor
from effvl_cli.techniques.prune_tokens.ranking import golden_ranking
from effvl_cli.techniques.prune_tokens.selector_table import Place, macs_of
from effvl_cli.techniques.prune_tokens.selectors import ClsAttentionSelector, GridSelector, TaylorSelector
from effvl_cli.techniques.prune_tokens.tome import MergedVision
from effvl_cli.techniques.prune_tokens.tower import Context, PrunedVision

B16 = TowerShape(196, 1, 768, 768, 12, 3072, 512)
TOY = TowerShape(4, 1, 48, 8, 2, 16, 4)


@pytest.fixture
def slow_attention():
    """The fused attention of eval mode is invisible to the counter."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def _counted(function, *arguments):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused: not counted by all versions
        function(*arguments)
    return counter.get_total_flops() // 2


def _vit(image, patch, width, depth, heads, ratio, embed):
    return OpenClipTower(VisionTransformer(image, patch, width, depth, heads, ratio, output_dim=embed).eval())


def test_vit_b16_to_the_unit():
    assert B16.embed == 115_605_504
    assert B16.block(197) == 1_453_954_560
    assert B16.block(119) == 864_019_968
    assert B16.projection == 393_216
    assert B16.dense() == 17_563_453_440
    assert B16.pruned(118, 3) == 12_254_042_112
    assert B16.mixer(64) == 7_274_752


@pytest.mark.parametrize(
    ("keep", "gmacs"),
    [(196, 17.563), (176, 16.186), (157, 14.888), (137, 13.532), (118, 12.254), (98, 10.920), (78, 9.597), (59, 8.350)],
)
def test_vit_b16_table(keep, gmacs):
    assert B16.pruned(keep, 3) / 1e9 == pytest.approx(gmacs, abs=5e-4)


def test_other_sizes():
    b32 = TowerShape(49, 1, 3 * 32**2, 768, 12, 3072, 512)
    l14 = TowerShape(256, 1, 3 * 14**2, 1024, 24, 4096, 768)
    assert [round(x / 1e9, 3) for x in (b32.dense(), b32.pruned(29, 3))] == [4.409, 3.113]
    assert [round(x / 1e9, 1) for x in (l14.dense(), l14.pruned(154, 6))] == [81.0, 56.4]


def test_toy_by_hand_and_by_counter(slow_attention):
    assert (TOY.embed, TOY.block(5), TOY.block(3), TOY.projection) == (1_536, 2_960, 1_680, 32)
    assert (TOY.dense(), TOY.pruned(2, 1)) == (7_488, 6_208)
    tower = _vit(8, 4, 8, 2, 2, 2.0, 4)
    assert TowerShape.of(tower) == TOY
    image = torch.randn(1, 3, 8, 8)
    assert _counted(tower.module, image) == 7_488
    pruned = PrunedVision(tower, layer=1, num_keep=2, selector=ClsAttentionSelector()).eval()
    states = tower.block(0, tower.embed(image))
    selection = _counted(pruned.selector.score, states, Context(tower, 1))
    assert selection == TOY.cls_attention() == 6 * 64 + 5 * 8
    assert _counted(pruned, image) == 6_208 + selection


def test_vit_b16_by_counter(slow_attention):
    with torch.device("meta"):
        tower = _vit(224, 16, 768, 12, 12, 4.0, 512)
        image = torch.empty(1, 3, 224, 224)
        assert TowerShape.of(tower) == B16
        assert _counted(tower.module, image) == 17_563_453_440


def test_predictor_by_counter():
    predictor = MixerPredictor(196, 1)
    assert _counted(predictor, torch.zeros(1, 197, 64)) == 7_274_752


def test_prompts_add_rows(slow_attention):
    assert TOY.pruned(2, 1, num_prompts=2) == 1_536 + 2_960 + 2_960 + 32


@pytest.mark.parametrize("schedule", [(1, 2, 0), (4, 1, 1), (0, 0, 3), (0, 0, 0)])
def test_merging_by_counter(slow_attention, schedule):
    tower = _vit(12, 4, 8, 4, 2, 2.0, 4)
    shape = TowerShape.of(tower)
    counted = _counted(MergedVision(tower, layer=1, schedule=schedule).eval(), torch.randn(1, 3, 12, 12))
    assert counted == shape.merged(schedule, 1, 2)
    assert shape.merged((0, 0, 0), 1, 2) == shape.dense()


def test_merging_by_hand():
    # Block 0: 5 rows, 3 after it. Projections 3 * 64 and attention 2 * 5 * 8 for each of 5 rows; output projection 64
    # and MLP 256 for each of 3; 2 patches of one half against 2 of the other, over heads of width 4.
    block = 5 * (3 * 64 + 2 * 5 * 8) + 3 * (64 + 256) + 2 * 2 * 4
    assert TOY.merged((2, 0), 0, 2) == 1_536 + block + TOY.block(3) + 32


@pytest.mark.parametrize("dropped", ["discard", "average", "merge", "fuse"])
@pytest.mark.parametrize("diversity", [0.0, 0.5])
@pytest.mark.parametrize("name", ["grid", "evit"])
def test_what_is_dropped_and_compared_by_counter(slow_attention, dropped, diversity, name):
    tower = _vit(12, 4, 8, 2, 2, 2.0, 4)
    shape = TowerShape.of(tower)
    selector = EvitSelector() if name == "evit" else GridSelector()
    options = {"num_keep": 3, "selector": selector, "dropped": dropped, "diversity": diversity}
    counted = _counted(PrunedVision(tower, layer=1, **options).eval(), torch.randn(1, 3, 12, 12))
    place = Place(shape, 2, 1, choice=Choice(dropped, diversity))
    adds = 0 if name == "evit" or dropped in ("discard", "fuse") else 9 * 8  # sums of patches: no product to count
    assert counted == macs_of(place, name, 3 / 9) - adds


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_taylor_by_counter(slow_attention, layer):
    tower = _vit(8, 4, 8, 3, 2, 2.0, 4)
    tower.module.requires_grad_(False)
    states = torch.randn(1, 5, 8)
    counted = _counted(TaylorSelector(probes=2).score, states, Context(tower, layer))
    assert counted == TowerShape.of(tower).taylor(layer, 2)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_search_costs_what_it_says(slow_attention, layer):
    tower = _vit(8, 4, 8, 3, 2, 2.0, 4)
    shape = TowerShape.of(tower)
    image = torch.randn(1, 3, 8, 8)
    counted = _counted(lambda: golden_ranking(tower, image, layer=layer, group=0))
    once = shape.embed + layer * shape.block(5) + 3 * 5 * 64  # the image's own states, and block p's projections
    means = 2 * 4 * 4  # of damage and of score, over the 4 candidates of 4 patches
    assert counted == once + shape.candidate(4, layer) + 4 * shape.candidate(3, layer) + means
