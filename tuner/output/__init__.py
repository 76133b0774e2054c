"""Output of the process: log lines, JSON files, CSV cells. Hides passwords and escapes control characters."""
