"""Patch-token pruning of Vision Transformers by a learned ranking (Wu, Lin, Hu, Morgado, WACV 2025, arXiv 2409.14607).

A greedy search orders the patches of an image by how little the tower's output suffers without them (`ranking`); a tiny
network learns to predict that order from the token states at an early depth (`predictor`); the tower then drops the
lowest ranked patches there and runs its remaining blocks on a shorter sequence (`tower`, with other ways to choose in
`selectors`); learnable tokens may make up for what is lost (`prompts`). `macs` counts what it saves.

Notation: B images, N patches on a grid, P prefix tokens (CLS, registers), D width, L blocks, E embedding width;
p the blocks run before pruning, K kept patches, v prompt tokens.
"""
