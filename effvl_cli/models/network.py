"""A network with what is needed to use it, and the one way to get one: build by name, then load weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.config.options import ModelOptions
from effvl_cli.core import checkpoint, seeds
from effvl_cli.core.errors import DataError, ModelError, UsageError
from effvl_cli.core.modes import as_found
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models import MODELS, foreign
from effvl_cli.models.edits import apply_edits
from effvl_cli.models.kinds import KINDS
from effvl_cli.models.normalise import normalised

CHECKPOINT = checkpoint.CHECKPOINT
RANDOM_CLASSIFIER = "a backbone: its classifier is random (prune-blocks trains it first with --new-head)"


def _no_text(texts: Sequence[str]) -> Tensor:
    raise ModelError("this network has no text encoder", "Give --model a CLIP model")


def _as_is(network: "Network", state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state


@dataclass
class Network:
    """A network and what is needed to use it.

    A builder (also a plug-in's) returns one with random weights: `builder(argument, *, num_classes) -> Network`.

    Attributes:
        name: as in the registry, e.g. "openclip:ViT-B-16".
        kind: "clip", "classifier" or "backbone": a row of models/kinds.py, which says what each gives.
        module: the network.
        preprocess: from images to its input.
        tokenize: from texts to (T, context) int64; clip only.
        shipped: weights that come with the package.
        fetch: file of a pretrained tag, `fetch(tag, download)`; None when the source has no tags.
        adapt: turns a foreign state dict into this network's, and may adjust name, module and preprocess to it.
        notes: changes made to foreign weights, for the log.
        source: origin of the weights.
        weights_sha256: digest of the loaded tensors.
        manifest: of the effvl checkpoint that the weights come from, else empty.
        edits: what was changed after it was built by name, see models/edits.py.
    """

    name: str
    kind: str
    module: Any  # an nn.Module with the methods that its kind names
    preprocess: Preprocess
    tokenize: Callable[[Sequence[str]], Tensor] = _no_text
    shipped: Path | None = None
    fetch: Callable[[str, bool], Path] | None = None
    adapt: Callable[["Network", dict[str, Tensor]], dict[str, Tensor]] = _as_is
    notes: list[str] = field(default_factory=list)
    source: str = "random"
    weights_sha256: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    edits: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a network that no command could use, e.g. from a plug-in.

        Raises:
            ModelError: unknown kind, or a module without the methods of its kind.
        """
        if self.kind not in KINDS:
            raise ModelError(f"model {self.name} has the unknown kind {self.kind!r}", f"Known: {', '.join(KINDS)}")
        lacking = [name for name in KINDS[self.kind].needs if not hasattr(self.module, name)]
        if lacking:
            raise ModelError(f"model {self.name} is a {self.kind} without {', '.join(lacking)}", "Its builder is wrong")

    @property
    def image_module(self) -> nn.Module:
        """The part that processes images: the image tower of a CLIP, else the whole network."""
        found: nn.Module = getattr(self.module, KINDS[self.kind].images, self.module)
        return found

    def describe(self) -> dict[str, Any]:
        """What a checkpoint's manifest says about its network."""
        return {
            "kind": "model",
            "model": self.name,
            "num_classes": getattr(self.module, "num_classes", None),
            "preprocess": self.preprocess.to_dict(),
            "edits": self.edits,
        }


def load(
    spec: str | None,
    weights: str | None,
    *,
    default: str,
    kind: str,
    seed: int = 0,
    num_classes: int | None = None,
    classes: Sequence[str] = (),
    download: bool = False,
    new_head: bool = False,
    options: ModelOptions | None = None,
    log: Callable[[str], None] | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Network:
    """Build a network by name, repeat the edits of its checkpoint and load its weights.

    Args:
        spec: registry name; None: the one that the checkpoint `weights` names, else `default`.
        weights: run folder, file, pretrained tag, "none" for random ones; None: those in the package.
        default: name when nothing says otherwise.
        kind: the kind that the caller can use.
        seed: of the random initialisation.
        num_classes: outputs of a classifier.
        classes: their names in the data, in the order of the labels, instead of a number.
        download: whether a tag may reach the network, where no options are given.
        new_head: keep the random weights of the last linear layer, whatever the classes of the loaded ones.
        options: which network of a file, its normalisation, and whether a tag may reach the network; None: defaults.
        log: receives the changes made to foreign weights.
        warn: receives a doubt about the classes.

    Raises:
        UsageError: unknown name, or an invalid normalisation.
        DataError: weights of a classifier with another number of classes, or with the same ones in another order.
        ModelError: weights that are missing, damaged or another network's, edits that do not fit it, or a network of
            another kind.
    """
    options = options or ModelOptions(download=download)
    num_classes = num_classes or len(classes) or None
    path = _checkpoint_file(weights)
    manifest = manifest_of(weights)
    name = spec or manifest.get("model") or default
    network = build(name, seed=seed, num_classes=num_classes or manifest.get("num_classes"))
    if network.kind != kind:
        raise ModelError(
            f"--model {name} is a {network.kind}, which gives {KINDS[network.kind].gives}; a {kind} is needed",
            "See `effvl list models`",
        )
    if manifest and manifest["model"] != network.name:
        raise ModelError(
            f"--weights {weights} are of {manifest['model']}, not of --model {network.name}",
            f"Leave --model out, or give --model {manifest['model']}",
        )
    network.edits = manifest.get("edits", [])
    apply_edits(network.module, network.edits)
    if manifest.get("num_classes") and kind == "classifier" and not new_head:
        _compare_classes(manifest.get("classes"), classes, weights, warn)
    if weights != "none":
        state = _read_weights(network, weights, path, manifest, options)
        _load_state(network, state, weights, num_classes, new_head=new_head)
    network.preprocess = normalised(network.preprocess, options)
    network.weights_sha256 = checkpoint.digest(network.module.state_dict())
    if log is not None:
        for note in network.notes:
            log(f"--weights {weights}: {note}")
    return network


def _load_state(
    network: Network, state: dict[str, Tensor], weights: str | None, num_classes: int | None, *, new_head: bool
) -> None:
    """Put a state dict into the network; counters of batch norm that it lacks begin at zero."""
    own = network.module.state_dict()
    counters = {key: torch.zeros_like(value) for key, value in own.items() if key.endswith(foreign.COUNTER)}
    state = counters | state
    if new_head:
        head = _head(network.module)
        layers = tuple({f"{key.rpartition('.')[0]}." for key in head})
        state = {key: value for key, value in state.items() if not key.startswith(layers)} | head
    elif num_classes:
        state = _with_classifier(network, state)
        _check_classes(network, state, num_classes)
    what = f"the weights {weights or 'in the package'} and {network.name}"
    checkpoint.check_keys(own, state, what=what, hint=_suggest(state))
    network.module.load_state_dict(state)


def build(name: str, *, seed: int, num_classes: int | None = None) -> Network:
    """A network with random weights drawn from (seed, "init").

    Raises:
        UsageError: unknown name.
    """
    row, argument = MODELS.find(_qualified(name))
    with seeds.global_stream(seed, "init"):
        found: Network = MODELS.builder(row)(argument, num_classes=num_classes)
        return found


def _qualified(name: str) -> str:
    """Prefix a bare open_clip name with its source; leave anything else unchanged."""
    if ":" in name or name in {row.name for row in MODELS.rows()}:
        return name
    import open_clip

    from effvl_cli.core.registry import nearest

    if name in open_clip.list_models():
        return f"openclip:{name}"
    known = [*(row.name for row in MODELS.rows()), *open_clip.list_models()]
    hint = nearest(name, known) or "See `effvl list models`"
    raise UsageError(f"unknown --model {name!r}", hint)


def _checkpoint_file(weights: str | None) -> Path | None:
    if weights is None or weights == "none":
        return None
    path = Path(weights)
    if path.is_dir():
        return path / CHECKPOINT
    return path if path.exists() or path.suffix in {".safetensors", ".pt", ".pth", ".bin"} or "/" in weights else None


def manifest_of(weights: str | None) -> dict[str, Any]:
    """The manifest beside an effvl checkpoint; empty for a foreign file, a tag or none.

    Raises:
        ModelError: it describes something other than a network.
    """
    path = _checkpoint_file(weights)
    if path is None or not (path.parent / checkpoint.MANIFEST).is_file():
        return {}
    manifest = checkpoint.read_manifest(path.parent)
    if manifest.get("kind") != "model":
        raise ModelError(
            f"--weights {path.parent} hold {manifest.get('kind')!r}, not a network", "Give the run that trained one"
        )
    return manifest


def _read_weights(
    network: Network,
    weights: str | None,
    path: Path | None,
    manifest: dict[str, Any],
    options: ModelOptions,
) -> dict[str, Tensor]:
    """State dict for the network, whose `source` is set."""
    if manifest and path is not None:
        state, network.manifest = checkpoint.load_model(path)
        network.preprocess = preprocess_of(manifest, path)
        network.source = str(path.parent)
    elif path is not None:
        network.source = str(path)
        state = _foreign(network, path, options.weights_key)
    elif weights is None and network.shipped:
        state, network.manifest = checkpoint.load_model(network.shipped)
        network.source = "package"
    elif weights is None:
        raise ModelError(
            f"{network.name} comes without weights", "Give --weights FILE, a run folder, a pretrained tag, or none"
        )
    elif network.fetch:
        network.source = weights
        state = _foreign(network, network.fetch(weights, options.download), options.weights_key)
    else:
        raise ModelError(f"no weights at --weights {weights}", "Give a run folder or a file")
    return state


def preprocess_of(manifest: Mapping[str, Any], path: Path) -> Preprocess:
    """Preprocessing from the manifest beside a checkpoint.

    Raises:
        ModelError: the manifest has none.
    """
    try:
        return Preprocess.from_dict(manifest["preprocess"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{checkpoint.MANIFEST} beside {path} describes no preprocessing: {error}", "Copy it again"
        ) from error


def _foreign(network: Network, path: Path, key: str | None) -> dict[str, Tensor]:
    """State dict of a file that is not a checkpoint of ours."""
    found = foreign.read(path, network.module.state_dict().keys(), key)
    found.add_head(_head(network.module))
    if found.note:
        network.notes.append(found.note)
    return network.adapt(network, found.state)


def _head(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a classifier's last linear layer, by key."""
    layers = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    own = module.state_dict()
    return {key: own[key] for path in layers[-1:] for key in (f"{path}.weight", f"{path}.bias") if key in own}


def _with_classifier(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the network's random classifier to the state dict of a run that trained a backbone only."""
    head = _head(network.module)
    if not network.manifest or network.manifest.get("num_classes") or any(key in state for key in head):
        return state
    network.notes.append(RANDOM_CLASSIFIER)
    return state | head


def _check_classes(network: Network, state: Mapping[str, Tensor], num_classes: int) -> None:
    """Raise a specific error for weights of the same network with other classes."""
    for key, ours in _head(network.module).items():
        theirs = state.get(key)
        if theirs is not None and theirs.shape[1:] == ours.shape[1:] and len(theirs) != len(ours) == num_classes:
            raise DataError(
                f"the weights of {network.name} have {len(theirs)} classes, and the data have {num_classes}",
                "Give data of the same classes, or --new-head to prune-blocks",
            )


def _compare_classes(theirs: Any, ours: Sequence[str], weights: str | None, warn: Callable[[str], None]) -> None:
    """Refuse weights whose outputs are the data's classes in another order; warn of other classes."""
    if not ours or not isinstance(theirs, list) or len(theirs) != len(ours) or theirs == list(ours):
        return
    place = next(k for k, name in enumerate(ours) if theirs[k] != name)
    text = f"output {place} of --weights {weights} is {theirs[place]!r}, and class {place} of the data {ours[place]!r}"
    if set(map(str, theirs)) == set(ours):
        raise DataError(text, "Give the classes in the order of the weights, or --new-head to prune-blocks")
    warn(f"{text}: accuracies mean something only if these are two names of one class")


def _suggest(state: Mapping[str, Tensor]) -> str:
    """Names of open_clip models whose image tower has the sizes of this state dict."""
    patches = state.get("visual.conv1.weight")
    if patches is None or patches.ndim != 4:
        return "Give the --model that these weights were trained as"
    import open_clip

    layers = len({key.split(".")[3] for key in state if key.startswith("visual.transformer.resblocks.")})
    width, _, patch, _ = patches.shape
    fitting = []
    for name in open_clip.list_models():
        vision = (open_clip.get_model_config(name) or {}).get("vision_cfg", {})
        sizes = (vision.get("width", 768), vision.get("patch_size", 16), vision.get("layers", 12))
        if sizes == (width, patch, layers) and "timm_model_name" not in vision:
            fitting.append(name)
    names = ", ".join(sorted(fitting, key=len)[:3])
    return f"Their image tower is that of --model {names}" if names else "Give the --model they were trained as"


SHOWN = 40  # letters of a class name in a message


def check_class_texts(network: Network, classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Warnings about class names that do not reach the text tower unchanged.

    Names are looked for in the longest template, which leaves them the least room; whether they can be told apart, in
    the shortest.

    Raises:
        DataError: names that differ are cut to the same tokens.
    """
    from effvl_cli.models.openclip_text import cut_off

    longest, shortest = max(templates, key=len), min(templates, key=len)
    cut = cut_off(network.tokenize, longest, classes)
    named: dict[bytes, list[str]] = {}
    rows = network.tokenize([shortest.format(name) for name in classes])
    for name, row in zip(classes, rows.numpy(), strict=True):
        named.setdefault(row.tobytes(), []).append(name)
    alike = [names for names in named.values() if len(names) > 1]
    for names in alike:
        if len(set(names)) > 1 and set(names) & set(cut):
            shown = " and ".join(repr(name[-SHOWN:]) for name in names[:2])
            raise DataError(
                f"{len(names)} class names are identical to {network.name}, which reads {rows.shape[1]} tokens; "
                f"they end in {shown}",
                "Shorten them, or give shorter --templates",
            )
    said = [f"class names that {network.name} reads as the same: {', '.join(map(repr, names))}" for names in alike]
    if cut:
        first = ", ".join(repr(name[:SHOWN]) for name in cut[:3])
        said.append(f"{network.name} does not read {len(cut)} class names to their end: {first}")
    return said


def zero_shot_classifier(
    network: Network,
    classes: Sequence[str],
    templates: Sequence[str],
    device: torch.device,
    warn: Callable[[str], Any] | None = None,
) -> Tensor:
    """Unit text embeddings of the classes, averaged over templates (Radford et al., arXiv 2103.00020, sec. 3.1.4).

    They are computed in evaluation mode; the network does not change.

    Args:
        network: with a text tower.
        classes: C names.
        templates: texts with one "{}" each.
        device: of the result.
        warn: receives warnings about names that are cut off.

    Returns:
        (E, C) float32 on `device`.

    Raises:
        DataError: names that differ are cut to the same tokens.
    """
    from open_clip import build_zero_shot_classifier

    if warn is not None:
        for text in check_class_texts(network, classes, templates):
            warn(text)
    with as_found(network.module, training=False), torch.no_grad():
        weights = build_zero_shot_classifier(network.module, network.tokenize, classes, templates, 64, device)
    found: Tensor = weights.float()
    return found
