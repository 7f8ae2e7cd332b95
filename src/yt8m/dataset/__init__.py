"""Datasets: what we read from shards, and how."""
