"""Names of the tensors in files of CoCLR and CPR (github.com/TengdaHan/CoCLR, github.com/necla-ml/CPR): S3D only.

The map is `assets/coclr_s3d.yaml`. Their S3D has each block twice in its state dict, as `Conv_1a` and as `block1.0`.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from torch import Tensor

_MAP = Path(__file__).parent / "assets" / "coclr_s3d.yaml"


@functools.cache
def _rules() -> tuple[re.Pattern[str], re.Pattern[str], list[tuple[re.Pattern[str], str]]]:
    found = yaml.safe_load(_MAP.read_text())
    rules = [(re.compile(rule["from"]), rule["to"]) for rule in found["rules"]]
    return re.compile(found["prefix"]), re.compile(found["leave_out"]), rules


def of_coclr(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of CoCLR's S3D."""
    return any(re.search(r"(^|\.)(Conv_1a|block1\.0)\.conv1\.weight$", key) for key in state)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of our `s3d`; names that no rule knows stay as they are, so that loading reports them."""
    prefix, leave_out, rules = _rules()
    trained = any(key.startswith("encoder_q.") for key in state)
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if leave_out.match(key) or (trained and not key.startswith("encoder_q.")):
            continue
        name = prefix.sub("", key)
        if leave_out.match(name):
            continue
        for pattern, target in rules:
            name = pattern.sub(target, name)
        found[name] = value.flatten(1) if name.startswith("projection.") and value.ndim > 1 else value
    return found
