"""Run folder, loop, checkpoints, report, cache: what every command stands on."""
