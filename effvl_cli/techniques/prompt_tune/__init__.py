"""Few-shot prompt tuning of CLIP under label noise (Wu et al., ICCV 2023, arXiv 2307.11978).

Learned context tokens before a class name (Zhou et al., arXiv 2109.01134) are trained through the frozen text tower.
"""
