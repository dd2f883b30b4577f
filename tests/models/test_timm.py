"""timm's classifiers: names, tags, state dicts and preprocessing."""

import io
import logging
import math
import urllib.error

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from effvl_cli.config.options import ModelOptions
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.models import hub
from effvl_cli.models import network as networks


def load(spec, weights="none", **more):
    return networks.load(spec, weights, default="tiny:resnet", kind="classifier", **more)


def perturbed(name, classes):
    """A timm network whose parameters and statistics are none that initialisation gives."""
    module = timm.create_model(name, num_classes=classes).eval()
    generator = torch.Generator().manual_seed(7)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=generator) / 10)
    return module


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_file_of_timm_loads_and_computes_the_same(name, suffix, tmp_path):
    peer = perturbed(name, 5)
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":  # as timm's train.py writes it
        torch.save({"epoch": 3, "arch": name, "state_dict": peer.state_dict(), "metric": 0.5}, path)
    else:
        save_file(peer.state_dict(), path)
    found = load(f"timm:{name}", str(path), num_classes=5)
    x = torch.randn(2, 3, *found.preprocess.size)
    with torch.no_grad():
        assert torch.equal(found.module.eval()(x), peer(x))
    assert found.describe()["model"] == f"timm:{name}" and found.describe()["num_classes"] == 5
    with pytest.raises(ModelError, match=r"for \(1000, "):
        load(f"timm:{name}", str(path))


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "vit_tiny_patch16_224", "resnet18.tv_in1k", "dm_nfnet_f0", "vit_base_patch16_sapiens2"],
)
def test_preprocess_is_timms_evaluation_transform(name, monkeypatch):
    """Of every crop: the shortest side, with a share cut off, squashed, and not square."""
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: torch.nn.Linear(1, 1))  # large ones among them
    config = timm.models.get_pretrained_cfg(name).to_dict()
    transform = create_transform(**resolve_data_config(pretrained_cfg=config, use_test_size=False))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (190, 230, 3), dtype=np.uint8))
    preprocess = networks.build(f"timm:{name}", seed=0).preprocess
    ours = preprocess.normalise(preprocess.to_uint8(image)[None])[0]
    assert ours.shape == config["input_size"]
    assert torch.allclose(ours, transform(image), atol=1e-6)


def test_the_resized_side_is_rounded_down_for_every_model():
    from effvl_cli.models.timm import _preprocess

    checked = 0
    for name in timm.list_models():
        config = timm.models.get_pretrained_cfg(name)
        if config.crop_mode == "border":
            with pytest.raises(ModelError, match="pads its images"):
                _preprocess(config)
            continue
        preprocess = _preprocess(config)
        for side in preprocess.size:
            assert round(side / preprocess.crop_ratio) == math.floor(side / config.crop_pct), name
        checked += 1
    assert checked > 1000


def test_classes_of_the_tag_and_of_the_caller():
    assert networks.build("timm:test_resnet", seed=0).describe()["num_classes"] == 1000
    assert networks.build("timm:vit_tiny_patch16_224.augreg_in21k", seed=0).describe()["num_classes"] == 21843
    network = networks.build("timm:test_convnext", seed=0, num_classes=3)
    assert network.module.eval()(torch.zeros(2, 3, *network.preprocess.size)).shape == (2, 3)
    no_head = networks.build("timm:vit_small_patch14_dinov2", seed=0, num_classes=4)
    assert no_head.module.num_classes == 4


def test_weights_are_random_by_seed():
    one, same, other = (load("timm:test_resnet", seed=s).weights_sha256 for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet5O", "'resnet50'"),
        ("resnet18.a1_in2k", "'a1_in1k'"),
        ("resnet18.zzz", "tv_in1k"),
        ("mixer_s16_224.x", "Its tags are: -"),
        ("", "timm:resnet50"),
        ("hf_hub:timm/resnet18.a1_in1k", "'resnet18'"),
    ],
)
def test_an_unknown_name_is_refused_and_near_ones_named(name, hint):
    with pytest.raises(UsageError, match="unknown") as caught:
        load(f"timm:{name}")
    assert hint in caught.value.hint


def test_a_network_without_weights_says_so():
    with pytest.raises(ModelError, match="comes without weights"):
        load("timm:test_resnet", None)


@pytest.mark.parametrize(
    ("name", "tag", "message", "hint"),
    [
        ("test_resnet", "r160_in1k", "not in the local cache", "--download"),
        ("test_resnet", "r160_in2k", "no pretrained tag", "'r160_in1k'"),
        ("legacy_seresnet18", "in1k", "is not on the hub", "https://github.com/"),
    ],
)
def test_pretrained_tags_stay_offline(name, tag, message, hint, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=message) as caught:
        load(f"timm:{name}", tag)
    assert hint in caught.value.hint


def test_a_tag_in_the_cache_is_used_with_its_own_preprocess(tmp_path, monkeypatch):
    """The hub's cache as huggingface_hub lays it out: refs/BRANCH names a commit, snapshots/COMMIT/ has the files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    peer = perturbed("test_resnet", 1000)
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(peer.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    found = load("timm:test_resnet", "r160_in1k")
    assert found.source == "r160_in1k" and torch.equal(found.module.fc.weight, peer.fc.weight)

    from effvl_cli.models.timm import _fetch

    monkeypatch.setattr("effvl_cli.models.timm._cached", lambda repository: tmp_path / repository.replace("/", "-"))
    network = networks.build("timm:resnet18", seed=0)
    assert network.preprocess.interpolation == "bicubic"
    path = _fetch(network, "resnet18", "tv_in1k", False)
    assert path.name == "timm-resnet18.tv_in1k"
    assert network.preprocess == networks.build("timm:resnet18.tv_in1k", seed=0).preprocess
    assert network.preprocess.interpolation == "bilinear"


def test_what_goes_wrong_in_a_download_is_one_line(monkeypatch):
    import huggingface_hub

    def offline(repository, filename):
        raise OSError(f"no route to {repository}/{filename}\nmore")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    with pytest.raises(ModelError, match="cannot download timm:test_resnet r160_in1k: no route") as caught:
        load("timm:test_resnet", "r160_in1k", options=ModelOptions(download=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm:test_resnet", "openclip:ViT-B-32"])
def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, name):
    """Without the library's five attempts, which take most of a minute and write raw warnings."""
    import huggingface_hub
    import open_clip.pretrained

    kind, tag = ("clip", "openai") if "ViT" in name else ("classifier", "r160_in1k")
    asked = []
    for module, called in ((huggingface_hub, "hf_hub_download"), (open_clip.pretrained, "hf_hub_download")):
        monkeypatch.setattr(module, called, lambda *given, **_: asked.append(given))
    monkeypatch.setattr(hub, "hub", lambda: "http://127.0.0.1:9/")  # nothing listens there
    monkeypatch.setattr("effvl_cli.models.openclip.hub", hub.hub)
    monkeypatch.setattr("effvl_cli.models.timm.hub", hub.hub)
    with pytest.raises(ModelError, match=r"cannot download .*: 127\.0\.0\.1:9 does not answer: "):
        networks.load(name, tag, default="", kind=kind, options=ModelOptions(download=True))
    assert not asked


def test_loggers_of_the_hub_are_quiet_only_meanwhile(monkeypatch):
    def refused(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 404, "no", {}, io.BytesIO())  # it answers

    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    monkeypatch.setattr(hub.urllib.request, "urlopen", refused)
    with hub.reached("http://x/"):
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == before
