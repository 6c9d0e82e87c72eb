"""Significance priors: how much attention each position of an encoder receives (PAD, ASP)."""
