"""What leaves the process: log lines, JSON files, CSV cells. Without passwords, and safe on a terminal."""
