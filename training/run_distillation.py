"""Entry point for `accelerate launch`: the same as `hf-deit train`.

accelerate launch --num_processes 2 training/run_distillation.py --recipe deit_tiny_hard_300ep --data DATA --teacher TEACHER --output_dir out
"""

import sys

from hf_deit.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
