"""Spliced videos: frame-level data with exact ground truth from video-level features."""
