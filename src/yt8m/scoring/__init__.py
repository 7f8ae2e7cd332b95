"""Score rankings by MAP@K: ground truth, metric, tables and plots."""
