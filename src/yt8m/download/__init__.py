"""The official dataset: what there is, and fetching it."""
