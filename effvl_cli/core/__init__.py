"""Run folder, training loop, checkpoints, report and cache: the basis of every command."""
