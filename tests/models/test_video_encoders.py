"""Encoders of clips: shapes, names, the traps of torchvision's S3D, and files of CoCLR."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.models import network as networks
from effvl_cli.models.clip_encoders import ClipInput, encoder_folders, load_encoder, save_encoder
from effvl_cli.models.video import RANDOM_PROJECTION, check_clip, with_channels


@pytest.mark.parametrize(
    ("name", "features", "dim", "millions"),
    [
        ("tiny3d", 48, 32, 0.05),
        ("tiny3d:channels=2,dim=16", 48, 16, 0.05),
        ("s3d:channels=2", 1024, 128, 9.1),
        ("mc3_18", 512, 128, 11.8),
    ],
)
def test_an_encoder_gives_features_and_embeddings(name, features, dim, millions):
    network = networks.build(name, seed=0)
    channels = 2 if "channels=2" in name else 3
    module = network.module.eval()
    with torch.no_grad():
        clips = torch.rand(2, channels, 8, 20, 20)
        found = module.backbone(clips)
        assert found.shape == (2, features) and module.feature_size == features
        assert torch.equal(module(clips), module.projection(found))
        assert module.projection(found).shape == (2, dim)
    assert network.name == name and network.kind == "video"
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_s3d_has_the_usual_batch_norm_and_takes_128_px():
    module = networks.build("s3d", seed=0).module.eval()
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm3d)]
    assert {(part.eps, part.momentum) for part in norms} == {(1e-5, 0.1)}
    shapes = []
    module.backbone.body.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    with torch.no_grad():
        assert module.backbone(torch.zeros(1, 3, 32, 128, 128)).shape == (1, 1024)
    assert shapes == [(1, 1024, 4, 4, 4)]


def test_the_smallest_clip_of_s3d_is_processed_and_a_smaller_one_refused():
    network = networks.build("s3d", seed=0)
    with torch.no_grad():
        assert network.module.eval()(torch.zeros(1, 3, 5, 17, 17)).shape == (1, 128)
    check_clip(network, 5, 17, 30)
    for size in ((4, 17, 17), (5, 16, 17), (5, 17, 16)):
        with pytest.raises(UsageError, match="too small for s3d"):
            check_clip(network, *size)
        with pytest.raises(RuntimeError), torch.no_grad():
            network.module(torch.zeros(1, 3, *size))
    check_clip(networks.build("tiny3d", seed=0), 1, 1, 1)


@pytest.mark.parametrize(
    "name", ["s3d:channels=0", "s3d:dim=x", "s3d:width=3", "tiny3d:from=torchvision", "s3d:from=x", "s3d:dim=1,dim=2"]
)
def test_what_a_name_cannot_say_is_refused(name):
    with pytest.raises(UsageError, match="cannot be read"):
        networks.build(name, seed=0)


def test_three_channels_are_normalised_and_others_are_not():
    assert networks.build("tiny3d", seed=0).module.backbone.mean is None
    assert networks.build("r3d_18:channels=2", seed=0).module.backbone.mean is None
    module = networks.build("s3d", seed=0).module.eval()
    assert not any(key.endswith((".mean", ".std")) for key in module.state_dict())
    clips = torch.rand(1, 3, 8, 32, 32)
    with torch.no_grad():
        plain = (clips - torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).reshape(1, 3, 1, 1, 1)
        torch.testing.assert_close(module.backbone(clips), module.backbone.body(plain).mean((2, 3, 4)))


def test_a_name_gets_other_channels():
    assert with_channels("tiny3d", 2) == "tiny3d:channels=2"
    assert with_channels("s3d:channels=2,dim=64", 3) == "s3d:dim=64"
    with pytest.raises(UsageError, match="no video encoder"):
        with_channels("tiny:clip", 2)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_encoders_of_a_run_come_back_with_their_clips(tmp_path):
    rgb, flow = (
        ClipInput("rgb", 8, size=20, crop=20),
        ClipInput("gradflow", 8, stride=2, size=20, options={"levels": 1}),
    )
    first = networks.build("tiny3d", seed=1)
    save_encoder(tmp_path, first, rgb, method="infonce")
    save_encoder(tmp_path / "encoders" / "a", networks.build("tiny3d:channels=2", seed=2), flow)
    save_encoder(tmp_path / "encoders" / "old", networks.build("tiny3d", seed=3), rgb)
    folders = encoder_folders(tmp_path)
    assert folders == {"rgb": tmp_path, "gradflow": tmp_path / "encoders" / "a"}
    found, clips = load_encoder(str(folders["rgb"]), default="s3d")
    assert clips == rgb and found.name == "tiny3d" and found.manifest["method"] == "infonce"
    assert torch.equal(found.module.projection[2].weight, first.module.projection[2].weight)
    found, clips = load_encoder(str(folders["gradflow"]), default="s3d")
    assert clips == flow and found.name == "tiny3d:channels=2"


def test_a_run_without_encoders_and_a_damaged_manifest_are_errors(tmp_path):
    with pytest.raises(ModelError, match="holds no encoder of clips"):
        encoder_folders(tmp_path)
    save_encoder(tmp_path, networks.build("tiny3d", seed=1), ClipInput("rgb", 0))
    with pytest.raises(ModelError, match="describes no clips"):
        encoder_folders(tmp_path)


# --- files of others -------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A convolution with the names of CoCLR's S3D."""

    def __init__(self, inputs, outputs, kernel=1):
        super().__init__()
        self.conv, self.bn = nn.Conv3d(inputs, outputs, kernel, bias=False), nn.BatchNorm3d(outputs)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Separable(nn.Module):
    """Space, then time."""

    def __init__(self, inputs, outputs, kernel, stride):
        super().__init__()
        half = kernel // 2
        space = {"stride": (1, stride, stride), "padding": (0, half, half)}
        time = {"stride": (stride, 1, 1), "padding": (half, 0, 0)}
        self.conv1 = nn.Conv3d(inputs, outputs, (1, kernel, kernel), bias=False, **space)
        self.conv2 = nn.Conv3d(outputs, outputs, (kernel, 1, 1), bias=False, **time)
        self.bn1, self.bn2 = nn.BatchNorm3d(outputs), nn.BatchNorm3d(outputs)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()


class Mixed(nn.Module):
    def __init__(self, inputs, widths):
        super().__init__()
        a, b, c, d, e, f = widths
        self.branch0 = nn.Sequential(Plain(inputs, a))
        self.branch1 = nn.Sequential(Plain(inputs, b), Separable(b, c, 3, 1))
        self.branch2 = nn.Sequential(Plain(inputs, d), Separable(d, e, 3, 1))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), Plain(inputs, f))

    def forward(self, x):
        return torch.cat([branch(x) for branch in (self.branch0, self.branch1, self.branch2, self.branch3)], 1)


class CoclrS3D(nn.Module):
    """The layers that CoCLR's paper names, by the names in its files; each block is there twice, as there."""

    def __init__(self):
        super().__init__()
        self.Conv_1a = Separable(3, 64, 7, 2)
        self.block1 = nn.Sequential(self.Conv_1a)
        self.Conv_2b, self.Conv_2c = Plain(64, 64), Separable(64, 192, 3, 1)
        self.block2 = nn.Sequential(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), self.Conv_2b, self.Conv_2c)
        self.Mixed_3b, self.Mixed_3c = Mixed(192, (64, 96, 128, 16, 32, 32)), Mixed(256, (128, 128, 192, 32, 96, 64))
        self.block3 = nn.Sequential(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), self.Mixed_3b, self.Mixed_3c)
        self.Mixed_4b, self.Mixed_4c = Mixed(480, (192, 96, 208, 16, 48, 64)), Mixed(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d, self.Mixed_4e = Mixed(512, (128, 128, 256, 24, 64, 64)), Mixed(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = Mixed(528, (256, 160, 320, 32, 128, 128))
        fourth = (self.Mixed_4b, self.Mixed_4c, self.Mixed_4d, self.Mixed_4e, self.Mixed_4f)
        self.block4 = nn.Sequential(nn.MaxPool3d(3, 2, 1), *fourth)
        self.Mixed_5b = Mixed(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = Mixed(832, (384, 192, 384, 48, 128, 128))
        self.block5 = nn.Sequential(nn.MaxPool3d(2, 2), self.Mixed_5b, self.Mixed_5c)

    def forward(self, x):
        return self.block5(self.block4(self.block3(self.block2(self.block1(x)))))


@pytest.fixture(scope="module")
def coclr():
    """CoCLR's encoder with its pooling and projection; batch norms that are not the identity."""
    torch.manual_seed(0)
    tail = (nn.AdaptiveAvgPool3d(1), nn.Conv3d(1024, 1024, 1), nn.ReLU(), nn.Conv3d(1024, 128, 1))
    module = nn.Sequential(CoclrS3D(), *tail)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
    return module.eval()


def test_a_file_of_coclr_gives_the_same_features_and_embeddings(coclr, tmp_path):
    state = {f"encoder_q.{key}": value for key, value in coclr.state_dict().items()}
    state |= {
        f"{other}.{key}": value * 0 for other in ("encoder_k", "sampler") for key, value in coclr.state_dict().items()
    }
    state |= {"queue": torch.zeros(128, 8), "queue_ptr": torch.zeros(1), "queue_vname": torch.zeros(8)}
    torch.save({"epoch": 3, "state_dict": state, "best_acc": 0.1, "optimizer": {"state": {}}}, tmp_path / "a.pth.tar")
    notes = []
    found, clips = load_encoder(str(tmp_path / "a.pth.tar"), model="s3d", default="tiny3d", log=notes.append)
    assert clips is None and any("CoCLR" in note for note in notes)
    images = torch.rand(1, 3, 8, 32, 32)
    image_net = (torch.tensor(part).reshape(1, 3, 1, 1, 1) for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image_net = tuple(image_net)
    with torch.no_grad():
        features, ours = found.module.eval().backbone(images), found.module(images)
        given = (images - image_net[0]) / image_net[1]  # its loader normalises
        torch.testing.assert_close(features, coclr[0](given).mean((2, 3, 4)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours, coclr(given).flatten(1), atol=1e-5, rtol=1e-4)


def test_a_file_of_coclr_that_lacks_a_layer_or_is_for_another_encoder_is_refused(coclr, tmp_path):
    state = {f"encoder_q.{key}": value.contiguous() for key, value in coclr.state_dict().items()}
    lacking = {key: value.clone() for key, value in state.items() if "Mixed_4d.branch1" not in key or "block" in key}
    save_file(lacking, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"missing \(backbone\.body\.10\.branch1"):
        load_encoder(str(tmp_path / "a.safetensors"), model="s3d", default="s3d")
    with pytest.raises(ModelError, match="CoCLR's S3D, not of r3d_18"):
        load_encoder(str(tmp_path / "a.safetensors"), model="r3d_18", default="s3d")


def test_weights_of_torchvision_are_features_with_a_random_projection(tmp_path):
    from torchvision.models.video import s3d

    theirs = s3d(num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pt")
    notes = []
    found, _ = load_encoder(str(tmp_path / "a.pt"), model="s3d", default="s3d", log=notes.append)
    images = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        ours = found.module.eval().backbone(images)
        mean, std = (
            torch.tensor(part).reshape(1, 3, 1, 1, 1)
            for part in ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
        )  # of the transform of its released weights
        torch.testing.assert_close(ours, theirs.features((images - mean) / std).mean((2, 3, 4)))
    assert found.name == "s3d:from=torchvision" and any(RANDOM_PROJECTION in note for note in notes)
    again = networks.build(found.name, seed=0)
    assert torch.equal(again.module.backbone.mean, found.module.backbone.mean)
    assert {part.eps for part in again.module.modules() if isinstance(part, nn.BatchNorm3d)} == {1e-3}


def test_weights_that_load_nothing_are_refused(tmp_path):
    save_file({"a.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        load_encoder(str(tmp_path / "a.safetensors"), model="tiny3d", default="s3d")
