"""Training: what a stage learns, on what, judged by what."""
