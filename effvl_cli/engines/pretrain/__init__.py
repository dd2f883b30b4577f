"""`effvl pretrain`."""
