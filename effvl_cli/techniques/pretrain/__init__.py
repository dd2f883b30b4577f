"""Accelerated contrastive training of Vision Transformers (arXiv 2410.22364): objectives, token dropout, schedules."""

from .dino import DINO
from .method import Method, MethodLoss, View, Views, alone
from .mocov3 import MoCoV3
from .schedule import Clock, Compression, Schedule, Stage
from .simclr import SimCLR
from .tokens import random_tokens
from .vit import VisionTransformer, ViTShape

__all__ = [
    "DINO",
    "Clock",
    "Compression",
    "Method",
    "MethodLoss",
    "MoCoV3",
    "Schedule",
    "SimCLR",
    "Stage",
    "ViTShape",
    "View",
    "Views",
    "VisionTransformer",
    "alone",
    "random_tokens",
]
