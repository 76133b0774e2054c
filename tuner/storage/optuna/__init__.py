"""Optuna's storage interface over our tables."""
