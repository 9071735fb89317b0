"""Run `python -m enginehouse`, the same as `enginehouse`."""

from enginehouse.cli import main

if __name__ == "__main__":
    main()
