"""Optimizers, schedules and weight decay."""
