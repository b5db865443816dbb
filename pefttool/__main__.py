"""`python -m pefttool` is the `pefttool` command."""

from pefttool.cli import main

if __name__ == "__main__":
    main()
