"""`effvl prune-blocks`: the job and its verbs."""
