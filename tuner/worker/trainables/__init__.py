"""What trains a trial: a `TrainerModule`, a function, an Optuna objective or a command, behind one protocol."""
