"""The training loop, and the programs it compiles."""
