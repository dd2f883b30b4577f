"""Image-text contrastive training on captions, or on class names in templates."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.core import distributed, seeds
from effvl_cli.core.loop import StepOutput, Task
from effvl_cli.core.run import Run
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import Batch
from effvl_cli.data.prompts import captions
from effvl_cli.data.source import ImageSource
from effvl_cli.engines.common.zero_shot import image_to_text_recall, zero_shot_logits
from effvl_cli.engines.pretrain.objective import Objective
from effvl_cli.models.network import Network, check_class_texts
from effvl_cli.models.openclip_tower import tower_of
from effvl_cli.techniques.pretrain.contrastive import contrastive_loss
from effvl_cli.techniques.pretrain.tokens import count_kept, encode_kept, random_tokens

MAX_TAU = 100.0  # CLIP's bound on the logit scale
ALL_CLASSES = 4  # all classes are negatives if there are at most this many per image of the batch


class ClipTask(Task):
    """CLIP's loss on the images' captions, else on every class in a template drawn for the step."""

    def __init__(
        self,
        network: Network,
        source: ImageSource,
        templates: tuple[str, ...],
        run: Run,
        *,
        seed: int,
        token_keep: float,
        precision: str,
        validation: Decoded,
    ) -> None:
        self.network, self.module, self.run, self.seed = network, network.module, run, seed
        self.classes, self.templates = source.classes, templates
        self.tower = tower_of(self.module)
        self.num_patches = self.tower.grid[0] * self.tower.grid[1]
        self.num_keep = count_kept(self.num_patches, token_keep)
        self.validation, self.precision = validation, precision
        if self.classes:
            for text in check_class_texts(network, self.classes, templates):
                run.warn(text)
            texts = [captions(self.classes, (template,)) for template in templates]
            self.tokens = torch.stack([network.tokenize(text) for text in texts], 1).to(run.device)

    def train_step(self, batch: Batch, step: int) -> StepOutput:
        """One process's images against all texts of the step; with several processes, all images."""
        with torch.no_grad():
            self.module.logit_scale.clamp_(0, math.log(MAX_TAU))
        batch = batch.to(self.run.device)
        images = distributed.gather_with_gradient(self._images(batch, step))
        labels = _gather_labels(batch.labels)
        texts, positives = self._texts(batch, labels, step)
        loss = contrastive_loss(images, texts, self.module.logit_scale.exp(), positives)
        return StepOutput(loss, {"tau": self.module.logit_scale.detach().exp()})

    def _images(self, batch: Batch, step: int) -> Tensor:
        pixels = self.network.preprocess.normalise(batch.images)
        if self.num_keep == self.num_patches:
            found: Tensor = self.module.encode_image(pixels, normalize=True)
            return found
        noise = seeds.generator(self.seed, "tokens", step)
        total = distributed.world().size * len(pixels)  # the same draw on any number of processes
        mine = distributed.own_rows(random_tokens(total, self.num_patches, self.num_keep, noise))
        return F.normalize(encode_kept(self.tower, pixels, mine.to(pixels.device)), dim=-1)

    def _texts(self, batch: Batch, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if batch.captions is not None:
            tokens = self.network.tokenize(batch.captions).to(self.run.device)
            texts = distributed.gather_with_gradient(self.module.encode_text(tokens, normalize=True))
            tokens = _gather_labels(tokens)
            return texts, (tokens[:, None] == tokens[None]).all(2)
        classes = torch.arange(len(self.classes), device=labels.device)
        if len(classes) > ALL_CLASSES * len(labels):
            classes = labels.unique()
        draw = torch.randint(
            self.tokens.shape[1], (len(self.classes),), generator=seeds.generator(self.seed, "template", step)
        )
        tokens = self.tokens[classes, draw.to(labels.device)[classes]]
        return self.module.encode_text(tokens, normalize=True), labels[:, None] == classes[None]

    def evaluate(self) -> dict[str, float]:
        """Zero-shot top-1 on validation images, or image-to-text recall when there are no classes."""
        images = self.validation
        if not len(images) or not self.classes:
            return {}
        logits = zero_shot_logits(self.network, images, self.classes, self.templates, self.run, self.precision)
        return {"top1_val": float((logits.argmax(1) == images.labels).float().mean())}


class ClipObjective(Objective):
    """Images and texts."""

    kind: ClassVar[str] = "clip"
    default_model: ClassVar[str] = "tiny:clip"

    def task(self, validation: Decoded) -> ClipTask:
        """Captions of the images, or class names in templates."""
        return ClipTask(
            self.network,
            self.source,
            self.templates,
            self.run,
            seed=self.config.seed,
            token_keep=self.config.keep or 1.0,
            precision=self.config.precision,
            validation=validation,
        )

    def test(self) -> None:
        """Zero-shot top-1 on --data and on --eval-data, or recall of the captions where there are no classes."""
        network, run, precision = self.network, self.run, self.config.precision
        if not self.source.classes:
            images = self.test_images(self.open("test"))
            self.figure("recall1_image_to_text", image_to_text_recall(network, images, run, precision))
            return
        for data in (self.config.data, *self.config.eval_data):
            own = data == self.config.data
            test = self.open("test", data)
            images = self.test_images(test)
            suffix = "" if own else f"_{data.partition(':')[2] or data}"
            templates = self.templates if own else test.templates
            logits = zero_shot_logits(network, images, test.classes, templates, run, precision)
            shuffled = torch.arange(len(test.classes)).roll(1)  # every class gets another name
            self.accuracy(f"top1_shuffled_names{suffix}", logits[:, shuffled], images.labels)
            self.accuracy(f"top1{suffix}", logits, images.labels)


def _gather_labels(labels: Tensor) -> Tensor:
    return distributed.gather_rows(labels, len(labels) * distributed.world().size)
