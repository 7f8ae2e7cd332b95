"""Import of models of the 2019 implementation."""
