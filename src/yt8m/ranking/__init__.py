"""Ranking: merge the models' probabilities and keep the top segments of every class."""

MAX_SEGMENTS = 100_000
"""Most segments that a submission may list per class, and the K of MAP@K (docs/method.md, "Task")."""


def value_name(is_calibrated: bool) -> str:
    """What the values of segments are called: probabilities if they are calibrated, otherwise scores."""
    return "probability" if is_calibrated else "score"
