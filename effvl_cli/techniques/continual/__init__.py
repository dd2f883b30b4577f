"""Compacting, picking and growing: Hung et al., "Compacting, Picking and Growing for Unforgetting Continual Learning".

NeurIPS 2019, arXiv 1910.06562. Tasks are numbered from 1; owner 0 is a free weight.
"""
