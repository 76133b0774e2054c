"""Optimizers, schedules, and which parameters decay."""
