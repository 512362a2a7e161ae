"""``python -m laconic`` is the command ``laconic``."""

from laconic.cli import main

if __name__ == "__main__":
    main()
