"""``python -m ozaki`` is the command ``ozaki``."""

from ozaki.cli import main

if __name__ == "__main__":
    main()
