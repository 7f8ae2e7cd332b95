"""Submission files and Parquet tables: format, writing, checking."""
