"""Dropping the patches that CLS attends to least, with one token in place of all that is dropped.

Liang et al., "Not All Patches are What You Need", ICLR 2022, arXiv 2202.07800, at one depth and without
training.
"""

from typing import ClassVar

from .dropped import Dropped
from .selectors import ClsAttentionSelector


class EvitSelector(ClsAttentionSelector):
    """CLS attention, with the attention-weighted mean of the dropped patches appended to the kept ones."""

    dropped: ClassVar[Dropped] = "fuse"
