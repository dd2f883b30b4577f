"""Networks by name, and weights in the formats people have."""

import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from PIL import Image
from safetensors.torch import save_file

from effvl_cli.core import checkpoint
from effvl_cli.core.checkpoint import MANIFEST, save_model
from effvl_cli.core.errors import DataError, ModelError, UsageError
from effvl_cli.models import network as networks
from effvl_cli.models import openclip
from effvl_cli.models.merges import learn, pack
from effvl_cli.models.openclip import use_quick_gelu
from effvl_cli.models.tiny import ASSETS, MERGES
from tests.conftest import repeat_numbers


def load(spec=None, weights=None, **more):
    return networks.load(spec, weights, default="tiny:clip", kind="clip", **more)


@pytest.fixture(scope="module")
def b32():
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        repeat_numbers(patch)
        return open_clip.create_model("ViT-B-32").state_dict()


OPENAI = {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}


def test_openai_files_are_read_with_quick_gelu(b32, unfilled, tmp_path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in b32.items()}
    torch.save({**half, **OPENAI}, tmp_path / "ViT-B-32.pt")
    found = load("ViT-B-32", str(tmp_path / "ViT-B-32.pt"))
    reference = open_clip.create_model("ViT-B-32-quickgelu")
    reference.load_state_dict({key: value.float() for key, value in half.items()})
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours, theirs = found.module.eval().encode_image(image), reference.eval().encode_image(image)
    assert torch.equal(ours, theirs)
    assert found.preprocess.mean == open_clip.OPENAI_DATASET_MEAN


@pytest.mark.parametrize(
    ("name", "tag"),
    [("ViT-B-32", "openai"), ("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-32-quickgelu", "laion2b_s34b_b79k")],
)
def test_a_tag_decides_the_activation(tmp_path, monkeypatch, name, tag):
    """Whatever the name says: the file of a tag has no sign of it."""
    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}

    def small(name, **more):
        text = {"width": 32, "heads": 2, "layers": 1}
        return open_clip.model.CLIP(16, vision, text, quick_gelu=name.endswith("quickgelu"))

    save_file(small(name).state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setattr(open_clip, "create_model", small)
    monkeypatch.setattr(openclip, "_fetch", lambda name, tag, download: tmp_path / "w.safetensors")
    monkeypatch.setattr(openclip, "get_pretrained_cfg", lambda name, tag: get_pretrained_cfg("ViT-B-32", tag))
    notes = []
    found = load(name, tag, log=notes.append).module
    kinds = {type(tower.resblocks[0].mlp.gelu) for tower in (found.transformer, found.visual.transformer)}
    quick = tag == "openai"
    assert kinds == {open_clip.transformer.QuickGELU if quick else torch.nn.GELU}
    changed = quick != name.endswith("quickgelu")
    assert notes == [f"--weights {tag}: activations changed to those that {name} {tag} was trained with"] * changed


def test_towers_of_timm_keep_their_activation():
    module = open_clip.timm_model.TimmModel("vit_tiny_patch16_224", 8, pretrained=False)
    assert not use_quick_gelu(torch.nn.Sequential(module))
    assert use_quick_gelu(module.trunk) and use_quick_gelu(module.trunk, quick=False)


def test_other_files_keep_their_activation(b32, unfilled, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in b32.items()}, "epoch": 3}, tmp_path / "w.pt")
    found = load("openclip:ViT-B-32", str(tmp_path / "w.pt"))
    assert not any(isinstance(m, open_clip.transformer.QuickGELU) for m in found.module.modules())
    assert torch.equal(found.module.visual.conv1.weight, b32["visual.conv1.weight"])


def test_weights_of_another_network_are_refused_and_the_right_one_named(b32, unfilled, tmp_path):
    torch.save(b32, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="misshaped") as caught:
        load("ViT-B-16", str(tmp_path / "w.pt"))
    assert "ViT-B-32" in caught.value.hint


def test_preprocess_follows_the_model(unfilled):
    network = networks.build("ViT-B-32", seed=0)
    theirs = open_clip.image_transform(224, False, network.preprocess.mean, network.preprocess.std)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 250, 3), dtype=np.uint8))
    ours = network.preprocess.normalise(network.preprocess.to_uint8(image)[None])[0]
    assert torch.equal(ours, theirs(image))


def test_a_checkpoint_of_ours_says_what_it_is(tmp_path):
    network = networks.build("tiny:clip-32px", seed=5)
    save_model(tmp_path / networks.CHECKPOINT, network.module.state_dict(), {**network.describe(), "classes": ["a"]})
    for weights in (tmp_path, tmp_path / networks.CHECKPOINT):
        found = load(weights=str(weights))
        assert found.name == "tiny:clip-32px" and found.manifest["classes"] == ["a"]
        assert torch.equal(found.module.visual.proj, network.module.visual.proj)
    with pytest.raises(ModelError, match="are of tiny:clip-32px, not of --model tiny:clip"):
        load("tiny:clip", str(tmp_path))


def test_random_weights_follow_the_seed_alone():
    one, same, other = (load("tiny:clip", "none", seed=s).weights_sha256 for s in (1, 1, 2))
    assert one == same != other


def test_networks_without_weights_say_so():
    with pytest.raises(ModelError, match="comes without weights"):
        load("tiny:clip-32px")
    with pytest.raises(UsageError, match="Did you mean"):
        load("tiny:clap")


def test_pretrained_tags_stay_offline(unfilled, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="not in the local cache") as caught:
        load("ViT-B-32", "laion2b_s34b_b79k")
    assert "--download" in caught.value.hint


def test_quick_gelu_replaces_every_gelu():
    module = torch.nn.Sequential(torch.nn.GELU(), torch.nn.Sequential(torch.nn.GELU()))
    use_quick_gelu(module)
    x = torch.tensor([1.0])
    once = x * torch.sigmoid(1.702 * x)
    assert torch.allclose(module(x), once * torch.sigmoid(1.702 * once))


def test_merges_by_hand():
    # "ab" occurs 3 times, then "abc</w>" twice; "a b" wins first, ties go to the lesser pair
    assert learn(["abc", "abc", "abd"], 3) == [("a", "b"), ("ab", "c</w>"), ("ab", "d</w>")]
    assert learn(["a"], 5) == []


def test_the_shipped_merges_are_what_the_word_list_gives():
    words = (ASSETS / "words.txt").read_text().split()
    assert pack(learn(words, 1500)) == MERGES.read_bytes()


def test_the_tokenizer_knows_its_words_and_spells_the_others():
    network = networks.build("tiny:clip", seed=0)
    tokens = network.tokenize(["a photo of a red ring.", "an automobile", "zzyzx quux", ""])
    assert tokens.shape == (4, 16)
    ends = tokens.argmax(1)  # open_clip pools where the largest id, the end of the text, stands
    assert ends.tolist()[0] == 8  # start, a, photo, of, a, red, ring, ., end
    assert ends.tolist()[3] == 1
    assert len({tuple(row) for row in tokens.tolist()}) == 4


def test_size_of_the_shipped_model():
    network = load()
    count = sum(p.numel() for p in network.module.parameters())
    assert 300_000 <= count <= 400_000
    assert networks.CHECKPOINT in network.shipped.name and network.shipped.stat().st_size < 2_000_000


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "broken",
    [
        *("[]", "null", "3", NESTED, '{"format": 1, "kind": "model"}', '{"kind": "model"}'),
        lambda manifest: {**manifest, "aliases": {"visual.proj2": "nowhere"}},
        lambda manifest: {**manifest, "aliases": ["a"]},
        lambda manifest: {key: value for key, value in manifest.items() if key != "sha256"},
        lambda manifest: {key: value for key, value in manifest.items() if key != "model"},
        lambda manifest: {**manifest, "preprocess": {"size": [64, 64]}},
    ],
)
def test_a_manifest_that_is_none_is_one_line(tmp_path, effvl, broken):
    network = networks.build("tiny:resnet", seed=5, num_classes=10)
    save_model(tmp_path / networks.CHECKPOINT, network.module.state_dict(), network.describe())
    path = tmp_path / MANIFEST
    path.write_text(broken if isinstance(broken, str) else json.dumps(broken(json.loads(path.read_text()))))
    outcome = effvl("prune-blocks", "--data", "digits", "--weights", tmp_path, "--remove", 1, "--out", "x")
    assert outcome.code == 4, outcome.err
    assert "manifest.json" in outcome.error and len(outcome.error) < 400


def test_names_of_torchvision_and_timm_are_found(effvl):
    out = effvl("list", "models", "resnet18").out
    assert all(name in out for name in ("torchvision:resnet18", "timm:resnet18", "timm:skresnet18"))
    assert "openclip:RN50" in effvl("list", "models", "RN50").out


def _of_run(folder, classes):
    network = networks.build("cifar-resnet:8", seed=0, num_classes=3)
    manifest = {**network.describe(), "classes": classes}
    checkpoint.save_model(folder / checkpoint.CHECKPOINT, network.module.state_dict(), manifest)
    return str(folder)


def test_classes_of_the_data_are_compared_with_those_of_the_weights(tmp_path):
    weights, said = _of_run(tmp_path, ["cat", "dog", "emu"]), []

    def load(*classes, **options):
        return networks.load(None, weights, default="", kind="classifier", classes=classes, warn=said.append, **options)

    assert load("cat", "dog", "emu").source == weights and not said
    with pytest.raises(DataError, match=r"output 1 of --weights .* is 'dog', and class 1 of the data 'emu'"):
        load("cat", "emu", "dog")
    load("cat", "emu", "dog", new_head=True)
    assert not said
    load("cat", "hound", "emu")
    assert len(said) == 1 and "'dog', and class 1 of the data 'hound'" in said[0]
