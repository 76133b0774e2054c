"""Changes that users make to studies by hand, and checks of a machine."""
