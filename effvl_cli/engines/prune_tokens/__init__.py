"""`effvl prune-tokens`: the job and its verbs."""
