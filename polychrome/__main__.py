"""`python -m polychrome`: the command `polychrome`."""

from polychrome.command import main

if __name__ == "__main__":
    raise SystemExit(main())
