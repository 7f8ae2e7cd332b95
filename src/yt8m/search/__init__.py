"""Search: the moments of all videos at which a concept appears."""
