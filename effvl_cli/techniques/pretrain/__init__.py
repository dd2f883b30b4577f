"""Contrastive objectives and token dropout for training Vision Transformers."""
