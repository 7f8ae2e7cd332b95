"""Timelines of single videos."""
