"""Multiply-adds of class features and of a training step through a frozen text tower.

Counted: the matrix products of the blocks and the projection, not norms, biases, softmax and activations. Ours; held
against torch's FlopCounterMode.

Shapes: K classes, T tokens of a prompt, P of them shared, t those of a tail, d width, E embedding width.
"""

from dataclasses import dataclass

from .learner import PromptLearner


@dataclass(frozen=True)
class TextCost:
    """Multiply-adds of one forward pass over all classes.

    Attributes:
        linear: products of states with weights.
        attention: products of states with states.
    """

    linear: int
    attention: int

    @property
    def forward(self) -> int:
        """Of a forward pass."""
        return self.linear + self.attention

    @property
    def step(self) -> int:
        """Of a forward and a backward pass: weights are frozen, so that only states get gradients."""
        return 2 * self.linear + 3 * self.attention


def text_cost(learner: PromptLearner) -> TextCost:
    """Multiply-adds of a learner as it stands: truncated or not, with or without a shared prefix.

    A chunk that is computed again in the backward pass adds one more forward pass, which is not counted.
    """
    tower = learner.tower
    width, depth, count = tower.width, tower.depth, len(learner.index)
    block = width * (4 * width + 2 * tower.mlp_width)  # of a token: query, keys, values, output, and the MLP
    keys = 2 * width * width
    project = count * width * tower.embed_dim
    if not learner.num_shared:
        length = learner.index.shape[1]
        return TextCost(count * length * depth * block + project, 2 * count * length * length * width * depth)
    shared, tail = learner.num_shared, learner.num_tail
    tokens = shared + count * tail
    linear = tokens * ((depth - 1) * block + keys) + count * (block - keys) + project
    whole = shared * shared + count * tail * (shared + tail)
    return TextCost(linear, 2 * width * ((depth - 1) * whole + count * (shared + tail)))
