"""`python -m hf_deit.cli`, the same as `hf-deit`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
