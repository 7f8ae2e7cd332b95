"""Tests of yt8m.scoring."""
