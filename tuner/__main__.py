"""Runs `tuner` as `python -m tuner`. Launchers start their workers this way."""

from tuner.cli import main

if __name__ == "__main__":
    main()
