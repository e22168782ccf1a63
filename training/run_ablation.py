"""Entry point for ablations: the same as `hf-deit ablation`.

The headers of the definitions in training/ablations/ use this script.
"""

import sys

from hf_deit.cli import main

if __name__ == "__main__":
    sys.exit(main(["ablation", *sys.argv[1:]]))
