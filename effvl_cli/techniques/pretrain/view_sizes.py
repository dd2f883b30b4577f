"""Sides of the views under a size policy: the input size stays, or snaps to whole patches.

Views with larger patches are from arXiv 2410.22364; the policies are ours.
"""

from dataclasses import dataclass

from .schedule import snapped_size


@dataclass(frozen=True)
class Sizes:
    """Sides of the views under a size policy.

    Attributes:
        image_size: side of the input, px.
        local_size: side of a local view, whole base patches, px.
        policy: "snap": views are made of whole patches of any size; else a patch has to divide the input.
    """

    image_size: int
    local_size: int
    policy: str

    def view(self, patch: int) -> int:
        """Side of a global view for a patch size."""
        return snapped_size(self.image_size, patch) if self.policy == "snap" else self.image_size

    def local(self, patch: int) -> int:
        """Side of a local view; always whole patches."""
        return snapped_size(self.local_size, patch)

    def allows(self, patch: int) -> bool:
        """Whether a patch size may be used."""
        return self.policy == "snap" or self.image_size % patch == 0
