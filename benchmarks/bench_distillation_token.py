"""Initialisation of the distillation token that is added to a plain ViT: the change of its predictions before training.

The benchmark compares a newly initialised token (several seeds) with a copy of the class token, on real weights and
photographs. For each head it reports the mean absolute change of the logits relative to the plain model, and the share
of images whose top-1 class stays the same.

python benchmarks/bench_distillation_token.py MODEL_FOLDER IMAGE_FOLDER [--images 128]
"""

import argparse
from pathlib import Path

import torch

from hf_deit.cli.common import print_table
from hf_deit.data.loading import load_validation
from hf_deit.models.fine_tuning import TOKEN_INITIALIZATIONS, distilled_from_plain
from hf_deit.models.loading import load_model, load_processor


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a plain ViT")
    parser.add_argument("data", type=Path, help="folder of photographs, as for hf-deit train")
    parser.add_argument("--images", type=int, default=128)
    options = parser.parse_args()
    plain, processor = load_model(options.model).eval(), load_processor(options.model)
    source = load_validation(str(options.data))
    step = max(len(source) // options.images, 1)
    images = [source.image(index) for index in range(0, len(source), step)][: options.images]
    pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])
    expected = torch.cat([plain(batch).logits for batch in pixels.split(32)])
    rows = [["token", "seed", "head", "mean |logit change|", "same top-1"]]
    for initialization in TOKEN_INITIALIZATIONS:
        for seed in range(3 if initialization == "new" else 1):
            torch.manual_seed(seed)
            student = distilled_from_plain(plain, initialization)
            outputs = [student(batch) for batch in pixels.split(32)]
            for head in ("logits", "cls_logits", "distillation_logits"):
                logits = torch.cat([output[head] for output in outputs])
                change = (logits - expected).abs().mean().item()
                same = (logits.argmax(-1) == expected.argmax(-1)).float().mean().item()
                rows.append([initialization, str(seed), head, f"{change:.3f}", f"{100 * same:.1f} %"])
    print_table(rows)


if __name__ == "__main__":
    main()
