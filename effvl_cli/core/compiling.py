"""Networks compiled in place."""

from torch import nn

from effvl_cli.core.run import Run


def compile_backbone(method: nn.Module, run: Run) -> None:
    """Compile the forward passes of the encoders in place; failures fall back to eager, with a warning."""
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True  # falls back to eager, graph by graph
    for name, module in method.named_children():
        if name.endswith("backbone"):
            module.compile(dynamic=False)
    run.log("compiling: one graph for each sequence length, at most eight")
