"""Draw a T-shirt and a pair of trousers: pictures for docs/explain.md that show nobody's photographs.

python benchmarks/draw_clothes.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 480
SHIRT = [(150, 90), (200, 70), (240, 95), (280, 70), (330, 90), (410, 170), (360, 215), (332, 185), (332, 410), (148, 410), (148, 185), (120, 215), (70, 170)]  # fmt: skip
TROUSERS = [(165, 60), (315, 60), (345, 430), (270, 430), (240, 190), (210, 430), (135, 430)]


def draw(outline: list[tuple[int, int]], colour: tuple[int, int, int], ground: tuple[int, int, int]) -> Image.Image:
    """Return a picture of one piece of clothing on a plain ground, with folds, a shadow and noise."""
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(picture)
    pen.polygon([(x + 8, y + 10) for x, y in outline], fill=tuple(shade // 2 for shade in ground))
    picture = picture.filter(ImageFilter.GaussianBlur(8))
    pen = ImageDraw.Draw(picture)
    pen.polygon(outline, fill=colour, outline=tuple(shade * 2 // 3 for shade in colour), width=3)
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    folds = 14 * np.sin(np.linspace(0, 26, SIDE)) * (np.asarray(mask) > 0)
    noise = np.random.default_rng(0).normal(0, 5, (SIDE, SIDE, 1))
    return Image.fromarray((np.asarray(picture) + folds[..., None] + noise).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    draw(SHIRT, (60, 100, 170), (214, 205, 190)).save(folder / "t-shirt.png")
    draw(TROUSERS, (58, 66, 88), (196, 178, 150)).save(folder / "trousers.png")
