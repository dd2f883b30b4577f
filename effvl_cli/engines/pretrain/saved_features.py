"""Features of whole splits, written for `effvl cpr-mine mine`."""

import torch

from effvl_cli.config.pretrain import EvalConfig
from effvl_cli.core.run import Run
from effvl_cli.engines.common.batches import decode
from effvl_cli.engines.common.view_folder import write_views
from effvl_cli.engines.inference import over_images
from effvl_cli.engines.pretrain.images import open_split
from effvl_cli.engines.pretrain.probes import Encoder
from effvl_cli.models.network import Network


def save_features(config: EvalConfig, run: Run, network: Network, encode: Encoder) -> None:
    """Write the features of every image of --feature-split, as one view, with their names and labels."""
    source = open_split(config, config.feature_split)
    images = decode(source, network.preprocess, None, config, run)
    with torch.inference_mode():
        features = over_images(
            lambda pixels, _: encode(pixels), images, run, batch_size=config.eval_batch_size, precision=config.precision
        )
    method = str(network.manifest.get("method") or "features")
    view = config.view_name or method
    write_views(
        run,
        {view: features.numpy()},
        images.ids,
        labels=images.labels.numpy() if source.classes else None,
        about={
            "data": config.data,
            "data_root": config.data_root,
            "split": config.feature_split,
            "classes": list(source.classes),
            "of": {view: {"model": network.name, "method": method, "weights": network.weights_sha256}},
        },
    )
    run.log(f"features {tuple(features.shape)} of {source.name}, split {source.split}, as the view {view!r}")
