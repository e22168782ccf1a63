"""`hf-deit ablation`, by the name under which definitions and results mention it."""

import sys

from hf_deit.cli import main

if __name__ == "__main__":
    sys.exit(main(["ablation", *sys.argv[1:]]))
