"""Optuna's storage interface for our tables."""
