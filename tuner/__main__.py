"""`python -m tuner` is `tuner`; this is how a launcher starts its workers."""

from tuner.cli import main

if __name__ == "__main__":
    main()
