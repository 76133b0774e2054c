"""Models of every kind, and layers."""
