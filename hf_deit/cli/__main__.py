"""Entry point of `python -m hf_deit.cli`, which does the same as `hf-deit`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
