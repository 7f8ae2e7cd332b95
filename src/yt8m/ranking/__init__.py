"""Ranking: merge the models' probabilities and keep the top segments of every class."""
