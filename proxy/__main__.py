"""`python -m proxy`: the same command as `sidestep`."""

import sys

from proxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
