"""Datasets, and how batches come from them."""
