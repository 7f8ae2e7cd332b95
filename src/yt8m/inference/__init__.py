"""Networks folded for prediction."""
