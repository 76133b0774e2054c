"""Datasets and their batches."""
