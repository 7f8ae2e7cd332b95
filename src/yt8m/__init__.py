"""Find the moments in videos where a concept appears: temporal concept localization on YouTube-8M features."""

__version__ = "0.1.0"
