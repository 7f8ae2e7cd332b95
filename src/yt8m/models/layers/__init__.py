"""Layers shared by the encoders and classifiers."""
