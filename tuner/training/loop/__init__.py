"""The training loop and its compiled programs."""
