"""One video: its concepts over time."""
