"""`python -m bindlm` is the same program as `bindlm`."""

import sys

from bindlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
