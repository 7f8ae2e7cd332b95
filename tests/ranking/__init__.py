"""Tests of yt8m.ranking."""
