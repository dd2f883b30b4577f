"""Jobs and verbs: each module has `run(config, run)` and `table(report)`."""
