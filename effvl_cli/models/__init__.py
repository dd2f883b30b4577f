"""Networks by name: the registry, and one file per source."""

from effvl_cli.core.registry import Registry, Row

_TINY = "effvl_cli.models.tiny"
_VIDEO = "effvl_cli.models.video"

MODELS = Registry(
    "model",
    "effvl.models",
    [
        Row("tiny:clip", f"{_TINY}:clip", "CLIP, 64 px, patch 8, 0.4 M parameters; weights included"),
        Row("tiny:clip-32px", f"{_TINY}:clip_32px", "CLIP for 32 px images, patch 4 (CIFAR); without weights"),
        Row("tiny:resnet", f"{_TINY}:resnet", "residual classifier for small images; without weights"),
        Row(
            "tiny:thin-resnet",
            f"{_TINY}:thin_resnet",
            "residual classifier, the backbone of cascade-rcnn:tiny; without weights",
        ),
        Row("cifar-resnet:", "effvl_cli.models.cifar_resnet:build", "ResNet for 32 px images: cifar-resnet:56"),
        Row(
            "smallcnn",
            "effvl_cli.models.small_cnn:build_small",
            "four convolutions for 32 px images: smallcnn:width=12",
        ),
        Row(
            "vgg:",
            "effvl_cli.models.small_cnn:build_vgg",
            "VGG with batch norm for 32 or 64 px: vgg:16,width=16,size=64",
        ),
        Row(
            "torchvision:",
            "effvl_cli.models.torchvision:build",
            "any torchvision classifier, e.g. torchvision:resnet50",
        ),
        Row("timm:", "effvl_cli.models.timm:build", "any timm classifier, e.g. timm:convnext_tiny"),
        Row("vit:", "effvl_cli.models.vit:build", "ViT without labels, or with a head: vit:SIZE/PATCH@PIXELS[,mean]"),
        Row(
            "openclip:",
            "effvl_cli.models.openclip:build",
            "any open_clip model, e.g. openclip:ViT-B-16, or just ViT-B-16",
        ),
        Row("s3d", f"{_VIDEO}:build_s3d", "video encoder of clips, e.g. s3d, s3d:channels=2"),
        Row("r3d_18", f"{_VIDEO}:build_r3d", "video encoder of clips; without weights"),
        Row("r2plus1d_18", f"{_VIDEO}:build_r2plus1d", "video encoder of clips; without weights"),
        Row("mc3_18", f"{_VIDEO}:build_mc3", "video encoder of clips; without weights"),
        Row("tiny3d", f"{_VIDEO}:build_tiny3d", "video encoder of clips of about 20 px; without weights"),
        Row(
            "cascade-rcnn:",
            "effvl_cli.models.detector:build",
            "detector of boxes: cascade-rcnn:tiny, light or paper[,stages=K]; without weights",
        ),
    ],
)
