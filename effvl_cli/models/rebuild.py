"""`rebuild.py`: a network's structure and weights for people without effvl, in plain torch, torchvision or timm.

It stands beside `checkpoint.safetensors`, is written for people, and is never read by effvl.
"""

import json
import runpy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from effvl_cli.core import checkpoint
from effvl_cli.core.errors import CheckError, ModelError
from effvl_cli.core.files import disk_errors, write_text
from effvl_cli.core.measure import unfused_attention
from effvl_cli.models.constructors import Code, constructors
from effvl_cli.models.edits import in_words
from effvl_cli.models.network import CHECKPOINT, Network
from effvl_cli.models.program import noise, on_cpu

REBUILD = "rebuild.py"
_IMPORTS = ("from pathlib import Path", "from safetensors.torch import load_file", "from torch import nn")
_UNFUSED = "    torch.backends.mha.set_fastpath_enabled(False)  # attention's fused inference rounds otherwise\n"
_TEMPLATE = '''"""{title} as plain Python, without effvl.

`build()` gives the network with its weights. Its inputs are (B, 3, {height}, {width}) images in 0..1, less the mean
{mean} and over the deviation {std} of red, green and blue; its outputs are (B, {classes}) logits.
"""

{imports}

{definitions}
def structure() -> nn.Module:
    """The network with random weights."""
{structure}


def build() -> nn.Module:
    """The network with its weights, in evaluation mode."""
    network = structure()
    weights = load_file(Path(__file__).with_name("{file}"))
{aliases}    network.load_state_dict(weights)
{exact}    return network.eval()


if __name__ == "__main__":
    print(sum(parameter.numel() for parameter in build().parameters()))
'''


def write_rebuild(network: Network, folder: Path) -> None:
    """Write the `rebuild.py` of a network whose checkpoint lies in `folder`.

    The text is run exactly as written: it must load the checkpoint strictly and reproduce the network's logits bit
    for bit. A constructor with other arguments is tried first, then the whole network and deletions.

    Raises:
        NoConstructorError: nothing outside effvl builds such a network.
        ModelError: there is no checkpoint.
        CheckError: no text reproduces the logits; an existing file stays.
    """
    if not (folder / CHECKPOINT).is_file():
        raise ModelError(f"no {CHECKPOINT} in {folder}", "Write the checkpoint first")
    guesses = constructors(network)
    images = noise(2, network.preprocess.size)
    with torch.no_grad(), unfused_attention():
        logits = on_cpu(network.module)(images)
    faults = []
    for code in guesses:
        text = _text(network, code)
        fault = _fault(text, folder, images, logits)
        if not fault:
            write_text(folder / REBUILD, text)
            return
        faults.append(fault)
    raise CheckError(f"no plain code rebuilds {network.name}: {'; '.join(faults)}", f"No {REBUILD} is written")


def _text(network: Network, code: Code) -> str:
    preprocess = network.preprocess
    lines = [f"network = {code.value}", *code.statements, "return network"] if code.statements else []
    attends = any(isinstance(part, nn.MultiheadAttention) for part in network.module.modules())
    more = ["import torch"] if attends else []
    _, aliases = checkpoint.independent(network.module.state_dict())
    return _TEMPLATE.format(
        title=" with ".join(filter(None, (network.name, in_words(network.edits)))),
        height=preprocess.size[0],
        width=preprocess.size[1],
        mean=preprocess.mean,
        std=preprocess.std,
        classes=network.module.num_classes,
        imports="\n".join(_merged([*_IMPORTS, *code.imports, *more])),
        definitions="".join(f"\n{definition}\n" for definition in code.definitions),
        structure="\n".join(f"    {line}" for line in lines or [f"return {code.value}"]),
        file=CHECKPOINT,
        exact=_UNFUSED if attends else "",
        aliases="".join(
            f"    weights[{json.dumps(alias)}] = weights[{json.dumps(key)}]\n" for alias, key in aliases.items()
        ),
    )


def _merged(lines: Sequence[str]) -> list[str]:
    """Lines of imports in order, with one of each module that names are taken from."""
    names: dict[str, set[str]] = {}
    for line in lines:
        module, _, taken = line.partition(" import ") if line.startswith("from") else (line, "", "")
        names.setdefault(module, set()).update(filter(None, taken.split(", ")))
    merged = [f"{module} import {', '.join(sorted(taken))}" if taken else module for module, taken in names.items()]
    return sorted(merged, key=_import_order)


def _import_order(line: str) -> tuple[bool, str]:
    """`import` before `from`, each by name."""
    return line.startswith("from"), line


def _fault(text: str, folder: Path, images: Tensor, logits: Tensor) -> str:
    """The fault of the text; empty when there is none."""
    with disk_errors(folder), tempfile.NamedTemporaryFile("w", dir=folder, prefix=".rebuild-", suffix=".py") as file:
        file.write(text)
        file.flush()
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), unfused_attention():
                found = runpy.run_path(file.name)["build"]()(images)
        except Exception as error:  # a wrong guess may fail in any way: arguments, keys, shapes
            return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return "" if torch.equal(found, logits) else "other logits"
