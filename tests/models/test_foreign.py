"""Weights in other people's files, written here as their programs write them."""

import argparse
import fractions
import pickle

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from effvl_cli.core.errors import DataError, ModelError, UsageError
from effvl_cli.models import foreign
from effvl_cli.models import network as networks

pytestmark = pytest.mark.usefixtures("repeated_numbers")
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "b.weight": torch.zeros(3)}


def saved(folder, content, name="w.pt"):
    torch.save(content, folder / name)
    return str(folder / name)


def prefixed(prefix, state=None):
    return {prefix + key: value for key, value in (STATE if state is None else state).items()}


# --- wrappers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {"model": {"module": s}, "epoch": 3},
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2, 3)}}}},
        lambda s: {"net": s, "acc": 93.5, "epoch": 2},  # kuangliu/pytorch-cifar
        lambda s: {"model_ema": s, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"state_dict": s, "best": np.float64(3.0), "hyper_parameters": {"lr": 0.1}, "callbacks": {}},
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone.", "net."])
def test_wrappers_and_prefixes_come_off_and_are_said(tmp_path, wrap, prefix):
    path = tmp_path / "w.pt"
    torch.save(wrap(prefixed(prefix)), path)
    found = foreign.read(path, STATE.keys())
    assert found.state.keys() == STATE.keys() and not found.beside
    assert torch.equal(found.state["a.weight"], STATE["a.weight"])
    outer = next(iter(wrap({"k": 1})), "k")
    assert found.prefix.endswith(prefix) and (found.prefix == "" or found.note.startswith("the prefix '"))
    assert prefix == found.prefix or found.prefix.startswith(outer)


def test_names_that_no_network_expects_lose_what_they_all_begin_with(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": prefixed("module.encoder.")}, path)
    found = foreign.read(path, {"x.weight", "y.weight"})
    assert found.state.keys() == STATE.keys()
    torch.save({"state_dict": prefixed("module.x.")}, path)  # a part of the network's own keeps its name
    assert foreign.read(path, {"x.weight", "y.weight"}).state.keys() == prefixed("x.").keys()


def test_lightning_file_with_a_metric_beside_the_network(tmp_path):
    network = networks.build("cifar-resnet:8", seed=1, num_classes=10)
    state = prefixed("model.", network.module.state_dict()) | {"criterion.weight": torch.ones(10)}
    path = saved(tmp_path, {"state_dict": state, "pytorch-lightning_version": "2.0", "loops": {}}, "last.ckpt")
    said = []
    found = networks.load("cifar-resnet:8", path, default="", kind="classifier", num_classes=10, log=said.append)
    assert torch.equal(found.module.fc.weight, network.module.fc.weight)
    assert len(said) == 1
    assert "prefix 'state_dict.model.' is taken off, 1 tensors beside it are left out" in said[0]


def test_a_backbone_beside_its_head(tmp_path):
    whole = networks.build("torchvision:resnet18", seed=1, num_classes=3).module.state_dict()
    state = prefixed("backbone.", {k: v for k, v in whole.items() if not k.startswith("fc.")})
    state |= {"head.weight": whole["fc.weight"], "head.bias": whole["fc.bias"]}
    for content in (state, {"state_dict": prefixed("model.", state)}):
        found = networks.load(
            "torchvision:resnet18", saved(tmp_path, content), default="", kind="classifier", num_classes=3
        )
        assert all(torch.equal(value, whole[key]) for key, value in found.module.state_dict().items())


# --- several networks ------------------------------------------------------------------------------------------------


def test_of_several_networks_one_is_chosen_and_the_error_names_them(tmp_path):
    other = {key: value + 1 for key, value in STATE.items()}
    path = tmp_path / "w.pt"
    torch.save({"student": prefixed("module.backbone."), "teacher": prefixed("backbone.", other), "epoch": 1}, path)
    with pytest.raises(ModelError, match="holds 2 networks: student, teacher") as caught:
        foreign.read(path, STATE.keys())
    assert caught.value.hint == "Choose one with --weights-key student"
    assert torch.equal(foreign.read(path, STATE.keys(), "teacher").state["a.bias"], other["a.bias"])
    assert torch.equal(foreign.read(path, STATE.keys(), "student").state["a.bias"], STATE["a.bias"])
    with pytest.raises(ModelError, match="--weights-key pupil names no network in") as caught:
        foreign.read(path, STATE.keys(), "pupil")
    assert caught.value.hint == "Give one of: student, teacher"


def test_a_moving_average_beside_the_weights_has_a_key_too(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": STATE, "state_dict_ema": {k: v + 1 for k, v in STATE.items()}}, path)  # timm's training
    with pytest.raises(ModelError, match="state_dict, state_dict_ema"):
        foreign.read(path, STATE.keys())
    assert foreign.read(path, STATE.keys(), "state_dict_ema").state["a.bias"].tolist() == [2.0, 2.0]


def test_a_key_reaches_a_network_whose_names_are_its_authors_own(tmp_path):
    network = networks.build("cifar-resnet:8", seed=1).module.state_dict()
    renamed = {key.replace("layer", "stage"): value for key, value in network.items()}
    path = tmp_path / "w.pt"
    torch.save({"a": prefixed("module.", renamed), "b": renamed}, path)
    assert foreign.read(path, network.keys(), "a").state.keys() == renamed.keys()


# --- files that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nn.Linear(2, 2), r"it holds an object of torch\.nn\.modules\.linear\.Linear, and reading it would run code"),
        ({"state_dict": STATE, "ratio": fractions.Fraction(1, 2)}, r"an object of fractions\.Fraction"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_are_not_unpickled_and_the_message_is_ours(tmp_path, effvl, content, words, zipped):
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=words) as caught:
        foreign.read(tmp_path / "m.pt", STATE.keys())
    assert "weights_only" not in caught.value.message and "\x1b" not in str(caught.value)
    assert "Save the state dict itself" in caught.value.hint and "weights_only" not in caught.value.hint
    outcome = effvl(
        *("prune-blocks", "--data", "digits", "--model", "cifar-resnet:8", "--weights", tmp_path / "m.pt"),
        *("--remove", 1, "--out", "x"),
    )
    assert outcome.code == 4 and "cannot be read as tensors" in outcome.error and "\x1b" not in outcome.err


def test_damaged_files_and_other_pickles(tmp_path):
    torch.save(STATE, tmp_path / "w.pt")
    data = (tmp_path / "w.pt").read_bytes()
    for name, content in (("cut.pt", data[:-200]), ("junk.pt", b"junk" * 99), ("p.pt", pickle.dumps([1], 4))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"cannot be read as tensors|holds no tensors") as caught:
            foreign.read(tmp_path / name, STATE.keys())
        assert "\n" not in str(caught.value)
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(ModelError, match="holds no tensors"):
        foreign.read(tmp_path / "none.pt", STATE.keys())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torchscript_is_refused_with_the_way_out(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "m.pt")
    with pytest.raises(ModelError, match="TorchScript") as caught:
        foreign.read(tmp_path / "m.pt", STATE.keys())
    assert "torch.jit.load('m.pt'" in caught.value.hint


# --- published ResNets for CIFAR-10 ----------------------------------------------------------------------------------


class Published(nn.Module):
    """A plain restatement of the network of github.com/akamaster/pytorch_resnet_cifar10, from its file alone."""

    def __init__(self, state):
        super().__init__()
        self.state = {key.removeprefix("module."): value for key, value in state.items()}

    def norm(self, name, x):
        weight, bias, mean, var = (
            self.state[f"{name}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def forward(self, images):
        x = self.norm("bn1", F.conv2d(images, self.state["conv1.weight"], padding=1)).relu()
        for stage in (1, 2, 3):
            blocks = len([k for k in self.state if k.startswith(f"layer{stage}.") and k.endswith(".conv1.weight")])
            for place in (f"layer{stage}.{n}" for n in range(blocks)):
                first, second = self.state[f"{place}.conv1.weight"], self.state[f"{place}.conv2.weight"]
                stride = 2 if len(first) > x.shape[1] else 1
                out = self.norm(f"{place}.bn1", F.conv2d(x, first, padding=1, stride=stride)).relu()
                out = self.norm(f"{place}.bn2", F.conv2d(out, second, padding=1))
                if stride == 2:
                    quarter = len(first) // 4
                    x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
                x = (out + x).relu()
        return F.linear(x.mean((2, 3)), self.state["linear.weight"], self.state["linear.bias"])


FILES = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 44: "resnet44-014dd654.th", 56: "resnet56-4bfd9763.th"}


@pytest.mark.parametrize("depth", FILES)
def test_published_cifar_resnets_load_as_they_are(test_data, depth):
    path = test_data / "weights" / FILES[depth]
    theirs = Published(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
    said = []
    found = networks.load(
        f"cifar-resnet:{depth}", str(path), default="", kind="classifier", num_classes=10, log=said.append
    )
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = theirs((images.float() / 255 - mean) / std)
        ours = found.module.eval()(found.preprocess.normalise(images))
    assert float((ours - expected).abs().max()) < 1e-5 < float(expected.abs().max())
    assert found.name == f"cifar-resnet:{depth},pad=both" and len(said) == 2
    assert found.describe()["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    again = networks.build(found.name, seed=0, num_classes=10).module.eval()
    again.load_state_dict(found.module.state_dict())
    with torch.no_grad():
        assert torch.equal(again(found.preprocess.normalise(images)), ours)


def test_published_resnet_has_its_accuracy_on_real_images(test_data, effvl, report, tmp_path):
    """Of the first test images of each class; on all 10,000 the same command gives 81.0 %."""
    import tarfile

    from effvl_cli.core.report import read_report

    with tarfile.open(test_data / "cifar10_jpeg.tar.gz") as archive:
        wanted = [m for m in archive if m.name.endswith("0.jpg") and int(m.name[-8:-4]) < 250 and "test/" in m.name]
        archive.extractall(tmp_path / "c", members=wanted, filter="data")
    (tmp_path / "c" / "train").symlink_to(tmp_path / "c" / "test")
    outcome = effvl(
        *("prune-blocks", "score", "--model", "cifar-resnet:20", "--weights", test_data / "weights" / FILES[20]),
        *("--data", f"folder:{tmp_path / 'c'}", "--score-split", "test", "--allow-test-leak", "--criterion", "l1"),
        *("--out", "scores"),
    )
    assert outcome.code == 0, outcome.err
    metric = read_report(tmp_path / "work" / "scores" / "report.json").metrics["top1_score"]
    assert metric.n == 250 and abs(metric.value - 0.81) < 3 * (0.81 * 0.19 / 250) ** 0.5  # 3 standard errors
    assert "the prefix 'state_dict.module.' is taken off" in outcome.err


# --- normalisation ---------------------------------------------------------------------------------------------------


def test_the_normalisation_that_is_asked_for_is_kept_in_the_checkpoint(effvl, tmp_path):
    from effvl_cli.core.checkpoint import read_manifest

    line = ("pretrain", "--method", "supervised", "--data", "digits", "--model", "cifar-resnet:8", "--steps", 1)
    for name, options, mean, std in (
        ("a", ("--normalise", "imagenet"), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("b", ("--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,0.6"), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
        ("c", ("--normalise", "none"), [0, 0, 0], [1, 1, 1]),
    ):
        outcome = effvl(*line, *options, "--out", name)
        assert outcome.code == 0, outcome.err
        saved = read_manifest(tmp_path / "work" / name)["preprocess"]
        assert (saved["mean"], saved["std"]) == (mean, std)
        found = networks.load(None, str(tmp_path / "work" / name), default="", kind="classifier")
        assert (list(found.preprocess.mean), list(found.preprocess.std)) == (mean, std)


def test_every_command_that_loads_weights_has_the_options(effvl):
    for command in ("pretrain", "prune-tokens", "prune-blocks", "prune-blocks score", "prune-blocks apply"):
        text = effvl(*command.split(), "--help-all").out
        assert all(f"--{name}" in text for name in ("weights-key", "normalise", "mean", "std")), command


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"normalise": "imagenet", "mean": (0.5, 0.5, 0.5)}, "set the same thing"),
        ({"mean": (0.5, 0.5)}, "--mean has 2 numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "--std is 0"),
    ],
)
def test_a_normalisation_that_is_none_is_refused(options, words):
    from effvl_cli.config.options import ModelOptions

    with pytest.raises(UsageError, match=words):
        networks.load("cifar-resnet:8", "none", default="", kind="classifier", options=ModelOptions(**options))


# --- official ViTs ---------------------------------------------------------------------------------------------------


def moco_positions(grid, width):
    """As main code of MoCo-v3 builds them (vits.py): `meshgrid` puts the first coordinate along the rows."""
    w, h = torch.meshgrid(
        torch.arange(grid, dtype=torch.float32), torch.arange(grid, dtype=torch.float32), indexing="ij"
    )
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    out_w, out_h = (torch.einsum("m,d->md", [x.flatten(), omega]) for x in (w, h))
    table = torch.cat([out_w.sin(), out_w.cos(), out_h.sin(), out_h.cos()], 1)[None]
    return torch.cat([torch.zeros(1, 1, width), table], 1)


def moco_vit(width, heads, *, depth=12):
    """timm's ViT as MoCo-v3's code makes it, with weights that are not those of an initialisation."""
    torch.manual_seed(3)
    vit = timm.models.vision_transformer.VisionTransformer(
        patch_size=16, embed_dim=width, depth=depth, num_heads=heads, qkv_bias=True, num_classes=0
    )
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
        vit.pos_embed.copy_(moco_positions(14, width))
    return vit.eval()


def moco_file(vit, width):
    """state_dict of the DataParallel MoCo: two encoders with projectors in place of their heads, and a predictor."""
    state = {}
    for name, shift in (("base_encoder", 0.0), ("momentum_encoder", 0.5)):
        state |= {f"module.{name}.{key}": value + shift for key, value in vit.state_dict().items()}
        state[f"module.{name}.head.0.weight"] = torch.ones(16, width)
        state[f"module.{name}.head.1.running_mean"] = torch.ones(16)
    state["module.predictor.0.weight"] = torch.ones(16, 16)
    return {"epoch": 300, "arch": "vit_small", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def features(module, images):
    with torch.no_grad():
        return module(images)


IMAGES = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def test_official_mocov3_vit_small_has_twelve_heads_and_rows_first(tmp_path):
    theirs = moco_vit(384, 12)
    path, said = saved(tmp_path, moco_file(theirs, 384), "vit-s-300ep.pth.tar"), []
    found = networks.load("vit:small/16@224", path, default="", kind="backbone", log=said.append)
    assert found.name == "vit:small/16@224,heads=12" and found.module.shape.heads == 12
    assert torch.allclose(features(found.module.eval(), IMAGES), features(theirs, IMAGES), atol=1e-5)
    assert any("state_dict.module.base_encoder." in text for text in said) and any("MoCo-v3" in t for t in said)
    # On other grids its fixed positions are computed in its own order, not interpolated.
    table = found.module.positions(7)[1:]
    coordinates = (torch.arange(7) + 0.5) * 2 - 0.5
    assert torch.allclose(
        table[7 * 3 : 7 * 4, :96], (coordinates[3] / 10000 ** (torch.arange(96) / 96)).sin().expand(7, 96), atol=1e-5
    )
    other = networks.load(
        "vit:small/16@224",
        path,
        default="",
        kind="backbone",
        options=networks.ModelOptions(weights_key="momentum_encoder"),
    )
    assert torch.equal(other.module.norm.bias, theirs.norm.bias + 0.5)
    with pytest.raises(ModelError, match=r"12 heads, and timm:vit_small_patch16_224 has 6"):
        networks.load("timm:vit_small_patch16_224", path, default="", kind="classifier")


def test_official_mocov3_vit_base_and_its_linear_probe(tmp_path):
    theirs = moco_vit(768, 12)
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    state |= {"module.head.weight": torch.randn(1000, 768) * 0.1, "module.head.bias": torch.randn(1000)}
    path = saved(tmp_path, {"epoch": 90, "arch": "vit_base", "state_dict": state, "best_acc1": torch.tensor(76.5)})
    found = networks.load("vit:base/16@224", path, default="", kind="classifier", num_classes=1000)
    assert found.name == "vit:base/16@224"
    expected = F.linear(features(theirs, IMAGES), state["module.head.weight"], state["module.head.bias"])
    assert torch.allclose(features(found.module.eval(), IMAGES), expected, atol=1e-4)


@pytest.mark.parametrize(("patch", "heads"), [(16, 6), (8, 6)])
def test_official_dino_vits_load_alone_and_as_teacher(tmp_path, patch, heads):
    torch.manual_seed(4)
    theirs = timm.create_model(f"vit_small_patch{patch}_224", num_classes=0, depth=2).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    state = theirs.state_dict()
    spec = f"vit:small/{patch}@224"
    images = IMAGES if patch == 16 else IMAGES[:1]

    def load(content, key=None):
        network = networks.build(spec, seed=0)
        network.module.blocks = network.module.blocks[:2]
        found = foreign.read(tmp_path / "w.pth", network.module.state_dict().keys(), key)
        network.module.load_state_dict(network.adapt(network, found.state))
        return network

    torch.save(state, tmp_path / "w.pth")  # dino_deitsmall16_pretrain.pth
    found = load(state)
    assert found.module.shape.heads == heads and found.name == spec
    assert torch.allclose(features(found.module.eval(), images), features(theirs, images), atol=1e-5)
    full = {  # dino_deitsmall16_pretrain_full_checkpoint.pth
        "student": prefixed("module.backbone.", {k: v + 1 for k, v in state.items()})
        | {"module.head.mlp.0.weight": torch.ones(8, 384)},
        "teacher": prefixed("backbone.", state) | {"head.mlp.0.weight": torch.ones(8, 384)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 800,
        "args": argparse.Namespace(arch="deit_small", patch_size=patch),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }
    torch.save(full, tmp_path / "w.pth")
    found = load(full, "teacher")
    assert torch.allclose(features(found.module.eval(), images), features(theirs, images), atol=1e-5)
    with pytest.raises(ModelError, match="2 networks: student, teacher"):
        load(full)


def test_a_vit_takes_no_head_of_other_classes_and_says_where_its_own_is_random(tmp_path):
    spec = "vit:nano/8@24"
    ten = networks.build(spec, seed=1, num_classes=10).module.state_dict()
    path = saved(tmp_path, ten)
    for classes in (5, 12):
        with pytest.raises(DataError, match=f"have 10 classes, and the data have {classes}"):
            networks.load(spec, path, default="", kind="classifier", num_classes=classes)
    fresh = networks.load(spec, path, default="", kind="classifier", num_classes=5, new_head=True)
    assert torch.equal(fresh.module.blocks[0].attn.qkv.weight, ten["blocks.0.attn.qkv.weight"])
    same, said = networks.load(spec, path, default="", kind="classifier", num_classes=10), []
    assert torch.equal(same.module.head.weight, ten["head.weight"]) and not same.notes
    body = {key: value for key, value in ten.items() if not key.startswith("head.")}
    for head in ({}, {"head.mlp.0.weight": torch.ones(8, 64)}):  # of DINO
        path = saved(tmp_path, body | head)
        found = networks.load(spec, path, default="", kind="classifier", num_classes=10, log=said.append)
        assert torch.equal(found.module.head.weight, networks.build(spec, seed=0, num_classes=10).module.head.weight)
        assert "its classifier is random" in said.pop()


def test_a_self_supervised_resnet_without_a_classifier_gets_a_new_one(tmp_path):
    whole = networks.build("torchvision:resnet18", seed=1).module.state_dict()
    body = {k: v for k, v in whole.items() if not k.startswith("fc.")}
    moco = prefixed("module.base_encoder.", body) | {"module.base_encoder.fc.0.weight": torch.ones(4, 512)}
    for content in (body, {"state_dict": moco}):  # dino_resnet50_pretrain.pth, MoCo-v3's r-50-1000ep.pth.tar
        path = saved(tmp_path, content)
        found = networks.load("torchvision:resnet18", path, default="", kind="classifier", num_classes=5, new_head=True)
        assert torch.equal(found.module.conv1.weight, whole["conv1.weight"])
        with pytest.raises((ModelError, DataError)):
            networks.load("torchvision:resnet18", path, default="", kind="classifier", num_classes=5)


def test_counters_of_batch_norm_are_filled_in_for_every_source(tmp_path):
    for spec in ("torchvision:resnet18", "timm:resnet18", "cifar-resnet:8", "tiny:resnet"):
        state = networks.build(spec, seed=0, num_classes=4).module.state_dict()
        old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        assert len(old) < len(state)
        found = networks.load(spec, saved(tmp_path, old), default="", kind="classifier", num_classes=4)
        assert found.module.state_dict().keys() == state.keys()
