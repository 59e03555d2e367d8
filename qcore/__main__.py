"""`python -m qcore`."""

import sys

from qcore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
