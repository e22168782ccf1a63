"""What `.ci/published` runs: write folders of students with this package, and read them with stock transformers alone.

    python .ci/published.py write FOLDER     needs this package
    python .ci/published.py read FOLDER      needs transformers, torch and Pillow only

`write` saves students with random weights, photographs, and for each student the pixels and logits that this package computes.
`read` loads every student as its users do: the model, `AutoImageProcessor`, and `pipeline`. It prints a row of a Markdown table for
each student: the largest difference of a logit (of a probability for `pipeline`) over the photographs, or the error. Its exit code is
1 if a way fails, or differs by more than the tolerance.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps

STUDENTS = ("plain", "distilled", "non-square", "folded")
CLASSES = ("ant", "bee", "cat", "dog")
# Without torchvision the pixels are Pillow's, as here. torchvision resizes in other arithmetic, and may crop one pixel off.
TOLERANCES = {False: 1e-5, True: 2e-2}
_DECLARED = torch.library.Library("torchvision", "FRAGMENT")


def write(room: Path) -> None:
    """Save the photographs, and a folder for each student with `expected.npz` beside its files."""
    room.mkdir(parents=True, exist_ok=True)
    photos = _write_photos(room)
    for seed, name in enumerate(STUDENTS):
        _write_student(room / name, name, seed, photos)


def _write_photos(room: Path) -> list[Path]:
    """Write smooth colour patterns: wide, high, smaller than the crop, grey, and one that EXIF turns."""
    sizes = {
        "wide.png": (90, 61),
        "high.jpg": (75, 140),
        "small.png": (20, 23),
        "grey.png": (64, 64),
        "turned.jpg": (99, 70),
    }
    for seed, (name, size) in enumerate(sizes.items()):
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        photo, exif = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), Image.Exif()
        if name == "turned.jpg":
            exif[0x0112] = 6
        (photo.convert("L") if name == "grey.png" else photo).save(room / name, exif=exif)
    return [room / name for name in sizes]


def _write_student(folder: Path, name: str, seed: int, photos: list[Path]) -> None:
    import hf_deit
    from hf_deit.models.loading import load_model, load_processor

    torch.manual_seed(seed)
    size = (32, 48) if name == "non-square" else 32
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_size": 8,
    }
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {label: index for index, label in enumerate(CLASSES)}}
    scale = {"layer_scale_init_value": 0.5} if name == "folded" else {}
    if name == "plain":
        model = hf_deit.ViTForImageClassification(hf_deit.ViTConfig(image_size=size, **shape, **names))
    else:
        model = hf_deit.DeiTForImageClassificationWithTeacher(
            hf_deit.DeiTConfig(image_size=size, **shape, **names, **scale)
        )
    for layer in model.modules():  # weights as large as trained ones, so that an error shows in the logits
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=0.2)
    model.save_pretrained(folder, **({"fold_layer_scale": True} if scale else {}))
    hf_deit.DeiTImageProcessor.for_image_size(
        size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3]
    ).save_pretrained(folder)

    model, processor = load_model(str(folder)).eval(), load_processor(str(folder))
    if type(processor) is not hf_deit.DeiTImageProcessor:
        raise AssertionError(f"{folder} is read with {type(processor)}")
    pixels = torch.cat([processor(Image.open(photo), return_tensors="pt")["pixel_values"] for photo in photos])
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
    np.savez(
        folder / "expected.npz", pixels=pixels.numpy(), logits=logits.numpy(), photos=[photo.name for photo in photos]
    )


def _has_torchvision() -> bool:
    """Import torchvision, if it is installed.

    PyPI's torchvision is built for a CUDA torch. Beside a CPU torch its compiled operators do not load, and its import fails where
    it describes two of them. Images need none of them, so these two are declared here.
    """
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in ("nms", "qnms"):
            _DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401
    return True


def read(room: Path) -> int:
    """Print the rows of the table. Return the number of failures."""
    transformers.logging.set_verbosity_error()
    torchvision = _has_torchvision()
    failures = 0
    for student in STUDENTS:
        cells = []
        for way, difference_of in WAYS.items():
            # transformers 5.17 cannot import its own AutoImageProcessor without torchvision; `pipeline` does without.
            if way == "AutoImageProcessor" and not torchvision and (5,) <= _version() < (5, 18):
                cells.append("needs torchvision")
                continue
            try:
                difference = difference_of(room, room / student)
            except Exception as error:  # whatever a user would see is the result
                cells.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
                failures += 1
            else:
                cells.append(f"{difference:.0e}" if difference else "0")
                failures += difference > TOLERANCES[torchvision and way != "model"]
        has = "yes" if torchvision else "no"
        sys.stdout.write(f"| {' | '.join([transformers.__version__, has, student, *cells])} |\n")
        sys.stdout.flush()
    return failures


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in transformers.__version__.split(".")[:2])


def _expected(folder: Path) -> dict[str, Any]:
    with np.load(folder / "expected.npz") as content:
        return {"photos": content["photos"], **{name: torch.from_numpy(content[name]) for name in ("pixels", "logits")}}


@torch.no_grad()
def _model(room: Path, folder: Path) -> float:
    expected = _expected(folder)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    return (model(pixel_values=expected["pixels"]).logits - expected["logits"]).abs().max().item()


@torch.no_grad()
def _processor(room: Path, folder: Path) -> float:
    expected = _expected(folder)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    logits = []
    for name in expected["photos"]:
        photo = ImageOps.exif_transpose(Image.open(room / str(name)))
        logits.append(model(**processor(photo, return_tensors="pt")).logits)
    return (torch.cat(logits) - expected["logits"]).abs().max().item()


def _pipeline(room: Path, folder: Path) -> float:
    expected = _expected(folder)
    classifier = transformers.pipeline("image-classification", model=str(folder))
    largest = 0.0
    for name, logits in zip(expected["photos"], expected["logits"], strict=True):
        probabilities = dict(zip(CLASSES, logits.softmax(-1).tolist(), strict=True))
        found = {row["label"]: row["score"] for row in classifier(str(room / str(name)), top_k=len(CLASSES))}
        largest = max(largest, *(abs(found[label] - probabilities[label]) for label in CLASSES))
    return largest


WAYS: dict[str, Callable[[Path, Path], float]] = {
    "model": _model,
    "AutoImageProcessor": _processor,
    "pipeline": _pipeline,
}


if __name__ == "__main__":
    command, place = sys.argv[1:]
    if command == "write":
        write(Path(place))
    else:
        if any(name.split(".")[0] == "hf_deit" for name in sys.modules):
            raise AssertionError("the folders are to be read without hf_deit")
        sys.exit(1 if read(Path(place)) else 0)
