"""Models of every flavour, and layers."""
