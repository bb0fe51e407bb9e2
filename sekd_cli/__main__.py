"""`python -m sekd_cli`, which torchrun needs."""

import sys

from sekd_cli.cli import run

if __name__ == "__main__":
    sys.exit(run())
