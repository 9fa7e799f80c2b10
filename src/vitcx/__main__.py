"""`python -m vitcx` is the command line."""

from vitcx.cli import run

if __name__ == "__main__":
    run()
