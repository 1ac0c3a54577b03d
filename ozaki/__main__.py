"""``python -m ozaki`` is the command ``ozaki`` (floor 10)."""

from ozaki.cli import main

if __name__ == "__main__":
    main()
