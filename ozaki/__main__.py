"""``python -m ozaki`` is the command ``ozaki`` (floor 9)."""

from ozaki.cli import main

if __name__ == "__main__":
    main()
