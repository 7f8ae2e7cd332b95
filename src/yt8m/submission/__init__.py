"""Submission files and the Parquet table: write, read, check."""
