"""Probabilities of every segment: one pass, 16-bit codes, the store."""
