"""Prediction of every segment in one pass, as 16-bit codes that are ranked at once or stored."""
