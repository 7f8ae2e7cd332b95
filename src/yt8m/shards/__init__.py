"""Shards: TFRecord files as others write them, and how to write them ourselves."""
