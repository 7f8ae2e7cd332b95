"""Models of the 2019 implementation, converted to model folders."""
