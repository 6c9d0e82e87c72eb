"""Distillation of a text encoder into a speech encoder (PAD, arXiv 2303.03600), on `pad_kernels`."""
