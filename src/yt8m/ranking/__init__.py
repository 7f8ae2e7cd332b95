"""Ranking: merge the models' probabilities and keep the top segments of every class."""

MAX_SEGMENTS = 100_000
"""Most segments that a submission may list per class, and the K of MAP@K (docs/method.md, "Task")."""
