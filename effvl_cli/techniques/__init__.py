"""The mathematics of the papers: pure torch, one package a technique."""
