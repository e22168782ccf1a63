"""Small images, folders of images, and saved data sets."""

import datasets
import numpy as np
from PIL import Image

from hf_deit.data.augmentation import Augmentation
from hf_deit.data.views import ViewDataset


def picture(seed=0, height=20, width=24):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_class(folder, name, count, first_seed=0):
    (folder / name).mkdir(parents=True)
    for number in range(count):
        picture(first_seed + number).save(folder / name / f"{number:02}.png")


def folder_of(path, counts):
    """Write one folder per class with the given numbers of images, which are all different."""
    for number, (name, count) in enumerate(counts.items()):
        write_class(path, name, count, first_seed=1000 * number)
    return path


def with_validation(path, name="validation"):
    folder_of(path / "train", {"cat": 3, "dog": 2})
    folder_of(path / name, {"cat": 1, "dog": 2})
    return path


def dataset_of(labels, names=("cat", "dog"), image="picture of it", label="kind", **others):
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list(names))}
    columns = {image: [picture(number) for number in range(len(labels))], label: labels, **others}
    features |= {name: datasets.Value("string") for name in others}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def saved(dataset, path):
    dataset.save_to_disk(str(path))
    return str(path)


def pixels_of(source):
    return [np.asarray(source.image(index)) for index in range(len(source))]


def views_of(source, size=(8, 8), seed=0):
    return ViewDataset(source, Augmentation(size), seed)


def cut_off(content):
    return content[: len(content) // 2]
