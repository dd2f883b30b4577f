"""Exported towers and measured times through the real command."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from effvl_cli.core import bench as bench_
from effvl_cli.core.checkpoint import load_model, save_model
from effvl_cli.core.errors import CheckError, MissingPackageError, ModelError
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.continual import export as continual_export
from effvl_cli.engines.prune_blocks import export as blocks_export
from effvl_cli.engines.prune_tokens import export, tower_latency
from effvl_cli.models import network as networks
from effvl_cli.models import tiny
from effvl_cli.models.onnx import session
from effvl_cli.models.openclip_tower import tower_of
from effvl_cli.models.program import load_program
from effvl_cli.models.token_parity import Embedder, Parity
from effvl_cli.models.token_pruned_clip import load_pruned
from effvl_cli.techniques.prune_tokens.predictor import LinearPredictor
from effvl_cli.techniques.prune_tokens.selectors import GridSelector
from effvl_cli.techniques.prune_tokens.tower import PrunedVision, gather_patches

BLOCKS = 2
FEW = ("--shots", 1, "--predictor-epochs", 2, "--predictor-batch-size", 8, "--tune-epochs", 1, "--tune-batch-size", 15)


@pytest.fixture(scope="module", autouse=True)
def _two_blocks(tmp_path_factory):
    """Half of the shipped tower, with its weights: what tracing and writing it costs grows with its blocks."""
    build, file = tiny.clip, tmp_path_factory.mktemp("half") / "checkpoint.safetensors"
    state, manifest = load_model(build().shipped)
    left = {key: value for key, value in state.items() if not re.match(r"visual\.transformer\.resblocks\.[23]\.", key)}
    save_model(file, left, manifest)

    def half(argument="", *, num_classes=None):
        network = build()
        transformer = network.module.visual.transformer
        transformer.layers, transformer.resblocks = BLOCKS, transformer.resblocks[:BLOCKS]
        network.shipped = file
        return network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "clip", half)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Run folders: rankings alone, a predictor, and prompts tuned at keep 0.4; and the images of the comparisons."""
    from effvl_cli.cli.app import main
    from effvl_cli.data import shape_captions

    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFVL_CACHE", str(root / "cache"))
        patch.setitem(shape_captions.SPLITS, "val", 40)
        patch.setitem(shape_captions.SPLITS, "test", 48)
        for words in (
            ("rank", *FEW[:2], "--out", root / "ranked"),
            ("predict", root / "ranked", *FEW[2:6], "--keep", 0.4, "--dropped", "discard", "--out", root / "predictor"),
            ("tune", root / "predictor", *FEW[:2], *FEW[6:], "--tune-lr", 1, "--out", root / "tuned"),
        ):
            assert main(["prune-tokens", *map(str, words), "--quiet"]) == 0
    return root


@pytest.fixture
def pixels():
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(7))


def test_every_format_gives_what_the_run_has(made, effvl, report, pixels, workdir):
    outcome = effvl("prune-tokens", "export", made / "tuned", "--out", "out")
    assert outcome.code == 0, outcome.err
    rows = {row["format"]: row for row in report("out").technique["export"]}
    assert list(rows) == ["state", "pt2", "onnx"]
    for row in rows.values():
        assert row["images"] == 8 and row["cosine"] >= 0.9999 and row["any_batch"] and row["ties"] < 4
        assert (workdir / "out" / row["file"]).stat().st_size == row["bytes"]
    model = load_pruned(made / "tuned")
    with torch.no_grad():
        expected, kept = model.visual(pixels, return_keep=True)
    assert kept.shape == (5, 26) and model.visual.prompts is not None
    with torch.no_grad():
        again, kept_again = load_pruned("out").visual(pixels, return_keep=True)
    assert torch.equal(again, expected) and torch.equal(kept_again, kept)
    embedding, program_kept = load_program(Path("out/model.pt2"))(pixels)
    assert torch.equal(program_kept, kept) and F.cosine_similarity(embedding, expected).min() > 0.9999
    runtime = session(Path("out/model.onnx"))
    assert [value.name for value in runtime.get_outputs()] == ["embedding", "kept"]
    for count in (1, 5):
        embedding, onnx_kept = runtime.run(None, {"images": pixels[:count].numpy()})
        np.testing.assert_array_equal(onnx_kept, kept[:count].numpy())
        np.testing.assert_allclose(embedding, expected[:count].numpy(), rtol=1e-3, atol=1e-4)


def test_the_loaded_model_is_open_clips_with_fewer_patches(made, pixels):
    """Against the shipped model with its patches dropped by hand, and the class weights of the untuned texts."""
    model, plain = load_pruned(made / "predictor"), networks.load(None, None, default="tiny:clip", kind="clip")
    tower = tower_of(plain.module)
    with torch.no_grad():
        states = tower.embed(pixels)
        scores = model.visual.selector(model.visual.selector.inputs(states))
        kept = scores.topk(26).indices.sort().values
        states = gather_patches(states, kept, 1, 64)
        for index in range(tower.depth):
            states = tower.block(index, states)
        expected = tower.pool(states)
        assert torch.allclose(model.encode_image(pixels), expected, atol=1e-5)
        tokens = plain.tokenize(["a photo of a red ring."])
        assert torch.equal(model.encode_text(tokens), plain.module.encode_text(tokens))
    assert "class_weights" not in model.state_dict()
    assert torch.allclose(model.class_weights.norm(dim=0), torch.ones(30), atol=1e-5)
    tuned = load_pruned(made / "tuned").class_weights
    assert not torch.allclose(tuned, model.class_weights, atol=1e-3)


def test_what_becomes_of_dropped_patches_is_exported_too(made, effvl):
    more = ("--dropped", "merge", "--diversity", 2, "--format", "state", "--out", "out")
    outcome = effvl("prune-tokens", "export", made / "predictor", *more)
    assert outcome.code == 0, outcome.err
    visual = load_pruned("out").visual
    assert (visual.dropped, visual.diversity) == ("merge", 2.0)
    plain = load_pruned(made / "predictor").visual
    assert (plain.dropped, plain.diversity) == ("discard", 0.0)


def test_prompts_of_another_rate_are_left_out(made, effvl, report):
    outcome = effvl("prune-tokens", "export", made / "tuned", "--keep", 0.6, "--format", "state", "--out", "out")
    assert outcome.code == 0, outcome.err
    assert any("prompts left out: they were tuned at keep 0.4, not 0.6" in text for text in report("out").warnings)
    model = load_pruned("out")
    assert model.visual.prompts is None and model.visual.num_keep == 38
    assert torch.equal(model.class_weights, load_pruned(made / "predictor").class_weights)


def test_what_cannot_be_exported_or_loaded_is_refused(made, effvl):
    outcome = effvl("prune-tokens", "export", made / "ranked", "--out", "out")
    assert outcome.code == 4 and "holds no predictor" in outcome.error
    with pytest.raises(ModelError, match="holds rankings but no predictor"):
        load_pruned(made / "ranked")
    with pytest.raises(ModelError, match=r"no manifest\.json"):
        load_pruned("nowhere")
    with pytest.raises(ModelError, match="belongs to other weights"):
        load_pruned(made / "predictor", weights="none")
    outcome = effvl("prune-tokens", "export", made / "predictor", "--format", "tflite")
    assert outcome.code == 2


def test_a_missing_package_is_told_before_anything_is_traced(made, effvl, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    outcome = effvl("prune-tokens", "export", made / "predictor", "--format", "state,onnx", "--out", "out")
    assert outcome.code == 5 and "onnxscript is not installed" in outcome.error
    assert not Path("out").exists()
    for engine in (continual_export, blocks_export):
        engine.refuse_first(SimpleNamespace(format=("dense",)))
        with pytest.raises(MissingPackageError, match="onnxscript is not installed"):
            engine.refuse_first(SimpleNamespace(format=("onnx",)))


def test_an_export_that_differs_ends_with_8_and_replaces_nothing(made, effvl, monkeypatch):
    common = ("prune-tokens", "export", made / "predictor", "--out", "out", "--format")
    assert effvl(*common, "state").code == 0
    before = b"of an earlier export"
    Path("out/model.pt2").write_bytes(before)
    forward = Embedder.forward

    def other(self, images):  # what is traced is another network than what is compared with it
        embedding, kept = forward(self, images)
        return (embedding.flip(1) if torch.compiler.is_exporting() else embedding), kept

    monkeypatch.setattr(Embedder, "forward", other)
    monkeypatch.setattr("effvl_cli.core.run_choice.clear", lambda folder: (folder / "report.json").unlink())
    outcome = effvl(*common, "pt2", "--fresh")
    assert outcome.code == 8 and "model.pt2 differs from the pruned tower: cosine" in outcome.error
    assert Path("out/model.pt2").read_bytes() == before


def embedder(make, scores):
    """A tower whose linear predictor is replaced by given scores."""
    selector = GridSelector()
    selector.score = lambda states, context: scores.expand(len(states), -1)
    return Embedder(PrunedVision(make(), layer=1, num_keep=8, selector=selector).eval())


def small_tower():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from open_clip.transformer import VisionTransformer

        return tower_of(VisionTransformer(16, 4, 32, 2, 2, 2.0, output_dim=16).eval().requires_grad_(False))


def test_other_patches_are_forgiven_only_where_scores_are_as_good_as_equal():
    clear, close = torch.arange(16.0), torch.arange(16.0)
    close[7] = close[8] - 5e-6
    images = torch.randn(3, 3, 16, 16)
    for scores, allowed in ((clear, False), (close, True)):
        module, parity = embedder(small_tower, scores), Parity()
        gap = float(module.gaps(images)[0])
        assert gap == pytest.approx(1.0 if scores is clear else 5e-6, rel=0.2)

        def swapped(x, module=module):
            embedding, kept = module(x)
            kept = kept.clone()
            kept[:, 0] = 7  # in the place of 8
            return embedding, kept

        if allowed:
            parity(module, swapped, images, "file")
            assert (parity.images, parity.ties) == (3, 3) and parity.cosine == pytest.approx(1)
        else:
            with pytest.raises(CheckError, match="different kept patches in 3 of 3 images"):
                parity(module, swapped, images, "file")
    with pytest.raises(CheckError, match=r"cosine 0\.9"):
        Parity()(module, lambda x: (module(x)[0] + 0.05 * torch.randn(3, 16), module(x)[1]), images, "file")


def test_a_timm_tower_is_exported(tmp_path):
    """SigLIP's shape: no prefix tokens, attentional pooling."""
    import timm
    from open_clip.timm_model import TimmModel

    from effvl_cli.models.onnx import export_onnx
    from effvl_cli.models.program import save_program, trace

    torch.manual_seed(0)
    visual = TimmModel("vit_tiny_patch16_224", embed_dim=16, image_size=32, pool="", proj="", pretrained=False)
    visual.trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        class_token=False,
        global_pool="map",
        num_classes=0,
    )
    visual.head = torch.nn.Sequential()
    tower = tower_of(visual.eval().requires_grad_(False))
    vision = PrunedVision(tower, layer=1, num_keep=7, selector=LinearPredictor(32, 0)).eval()
    traced = trace(Embedder(vision), (32, 32))
    for write in (save_program, lambda *words, **more: export_onnx(*words, outputs=Embedder.OUTPUTS, **more)):
        parity = Parity()
        assert write(traced, tmp_path / "model", compare=parity) == ""
        assert parity.cosine > 0.9999 and parity.images in (8, 64)


# --- bench ------------------------------------------------------------------------------------------------------------


def bench(effvl, made, *more):
    return effvl("prune-tokens", "bench", made / "predictor", *more)


def test_bench_times_every_arm_beside_the_dense_tower(made, effvl, report, quick_figures, drawn):
    outcome = bench(effvl, made, "--selector", "predictor,tome,random", "--keep", "0.6,0.3", "--batch-size", "1,4")
    assert outcome.code == 0, outcome.err
    [folder] = Path("runs/prune-tokens-bench").iterdir()
    done = report(folder)
    rows = done.technique["bench"]
    names = [(s, k) for s in ("predictor", "tome", "random") for k in (0.6, 37 / 64 if s == "tome" else 0.3)]
    arms = ["dense", *(f"{selector}, keep {keep:g}" for selector, keep in names)]
    assert [(row["arm"], row["batch"]) for row in rows] == [(name, batch) for batch in (1, 4) for name in arms]
    dense_ms = {row["batch"]: row["median_ms"] for row in rows if row["arm"] == "dense"}
    for row in rows:
        assert row["passes"] == 2 and row["ratio"] == row["median_ms"] / dense_ms[row["batch"]]
    for (selector, keep), name in zip(names, arms[1:], strict=True):
        for batch in (1, 4):
            [row] = [row for row in rows if (row["arm"], row["batch"]) == (name, batch)]
            assert row["about"] == {"patches": {0.6: 38, 0.3: 19, 37 / 64: 37}[keep]}
            assert done.metrics[f"speedup_{selector}_keep{keep:g}_b{batch}"].value == 1 / row["ratio"]
    ratios = {
        name: next(row for row in rows if row["arm"] == arm)["mac_ratio"]
        for name, arm in zip(names, arms[1:], strict=True)
    }
    per_row, n = 4 * 64**2 + 2 * 64 * 128, 1 + 38
    tower = 64 * 192 * 64 + BLOCKS * (n * per_row + 2 * n * n * 64) + 64 * 64
    dense = 64 * 192 * 64 + BLOCKS * (65 * per_row + 2 * 65 * 65 * 64) + 64 * 64
    assert ratios["random", 0.6] == pytest.approx(tower / dense)
    assert ratios["predictor", 0.6] > ratios["random", 0.6] > ratios["random", 0.3]
    assert "measured / MACs" in outcome.out
    assert np.asarray(Image.open(folder / "plots" / "latency.png").convert("RGB")).std() > 10


def test_bench_of_one_arm_warns_at_batch_1_and_skips_what_does_not_fit(made, effvl, report, quick_figures, monkeypatch):
    times = {1: (1.0, 0.98), 2: (1.0, 0.5)}

    def canned(arms, device, seconds):
        batch = seen.pop(0)
        if batch == 3:
            raise torch.OutOfMemoryError("no memory")
        if batch == 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return {name: bench_.Latency((ms, ms)) for name, ms in zip(arms, times[batch], strict=True)}

    seen = [1, 2, 3, 4]
    monkeypatch.setattr(bench_, "timed", canned)
    outcome = bench(effvl, made, "--batch-size", "1,2,3,4", "--out", "out")
    assert outcome.code == 0, outcome.err
    done = report("out")
    assert {name for name in done.metrics if "speedup" in name} == {"speedup_b1", "speedup_b2"}
    assert done.metrics["speedup_b2"].value == 2.0
    assert [text for text in done.warnings if "out of memory" in text] == [
        f"latency at batch {batch} left out: out of memory" for batch in (3, 4)
    ]
    assert any("at batch 1 pruning gains nothing: 1.02x (predictor, keep 0.4)" in text for text in done.warnings)
    seen[:] = [2, 2]
    assert bench(effvl, made, "--batch-size", "2", "--out", "fast").code == 0
    assert not any("gains nothing" in text for text in report("fast").warnings)


def test_end_to_end_decodes_and_encodes_texts_in_every_pass(made, effvl, few_images, quick_figures, monkeypatch):
    calls = {"images": 0, "texts": 0}
    decode, encode = Decoded.read, tower_latency.zero_shot_classifier

    def images(*words, **more):
        calls["images"] += 1
        return decode(*words, **more)

    def texts(*words):
        calls["texts"] += 1
        return encode(*words)

    monkeypatch.setattr(Decoded, "read", images)
    monkeypatch.setattr(tower_latency, "zero_shot_classifier", texts)
    outcome = bench(effvl, made, "--end-to-end", "--batch-size", 2, "--no-channels-last", "--out", "out")
    assert outcome.code == 0, outcome.err
    assert calls == {"images": 6, "texts": 6}  # two towers: a warm-up and two passes of each


def test_compiled_towers_give_the_same_embeddings(made, pixels, monkeypatch):
    """The compiler's own backend is left out: it is the graph, and what breaks it, that is ours."""
    made_with = {}
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: compile_(call, dynamic=dynamic, backend="eager"))
    visual = load_pruned(made / "tuned").visual
    made_with["plain"] = visual(pixels, torch.arange(5))
    made_with["compiled"] = tower_latency._compiled(visual)(pixels, torch.arange(5))
    assert torch.allclose(made_with["plain"], made_with["compiled"], atol=1e-5)


def test_bench_refuses_what_cannot_serve(made, effvl):
    assert "taylor" in bench(effvl, made, "--selector", "taylor").error
    outcome = effvl("prune-tokens", "bench", made / "ranked", "--out", "x")
    assert outcome.code == 4 and "no predictor" in outcome.error
    assert bench(effvl, made, "--batch-size", 0).code == 2
    assert export.NUM_IMAGES == 8
