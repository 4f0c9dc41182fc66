"""`python -m cloudburst` is the command `cb`."""

import sys

from cloudburst.cli import main

if __name__ == "__main__":
    sys.exit(main())
