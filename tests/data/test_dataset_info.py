"""Properties of data sets of this package and of users."""

import datasets
import numpy as np
import pytest
import torch

from hf_deit.data.augmentation import Augmentation
from hf_deit.data.dataset_info import DatasetInfo, describe_dataset, inspect_dataset
from hf_deit.data.streams import ViewStream
from hf_deit.data.tables import Columns, TableReader
from hf_deit.data.views import EvaluationDataset, ViewDataset
from hf_deit.losses import ProblemType
from tests.helpers import tiny

NOTHING = DatasetInfo()


def test_a_view_dataset_has_all_properties_except_those_of_a_stream():
    source = tiny.source(12)
    info = inspect_dataset(ViewDataset(source, Augmentation((8, 12)), seed=3))
    assert info == DatasetInfo(
        12,
        source.labels,
        source.class_names,
        ProblemType.SINGLE_LABEL,
        (8, 12),
        seed=3,
        takes_view_keys=True,
        unlabelled_images=0,
    )


def test_an_evaluation_dataset_has_labels_and_takes_no_view_keys():
    source = tiny.source(12)
    dataset = EvaluationDataset(source, (8, 8))
    info = inspect_dataset(dataset)
    assert (info.images, info.labels, info.class_names) == (12, source.labels, source.class_names)
    assert info.problem_type is ProblemType.SINGLE_LABEL and not info.takes_view_keys
    assert (dataset.name, dataset.fingerprint) == (source.name, source.fingerprint)


def test_a_stream_has_classes_but_neither_labels_nor_length():
    table = datasets.Dataset.from_dict({"image": ["a.png", "b.png"], "label": ["x;y", "y"]}).to_iterable_dataset()
    reader = TableReader(table, Columns(separator=";", labels=("label",)), "the stream")
    info = inspect_dataset(ViewStream(reader, Augmentation((8, 8)), seed=5))
    assert info == DatasetInfo(
        class_names=("x", "y"),
        problem_type=ProblemType.MULTI_LABEL,
        view_size=(8, 8),
        seed=5,
        makes_view_keys=True,
        unlabelled_images=0,
    )


class WithoutProblemType(torch.utils.data.Dataset):
    """Data set like torchvision's SVHN: it has `labels`, but no problem type that states their meaning."""

    labels = np.array(["a", "b"])

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise AssertionError("a row was read")


def test_only_the_length_of_a_users_data_set_is_known():
    assert inspect_dataset(WithoutProblemType()) == DatasetInfo(images=2)
    assert inspect_dataset([1, 2, 3]) == DatasetInfo(images=3)
    assert inspect_dataset(datasets.Dataset.from_dict({"labels": [0, 1]})) == DatasetInfo(images=2)
    assert inspect_dataset(iter([1])) == inspect_dataset(None) == NOTHING


def test_a_users_data_set_may_have_all_properties():
    class WithProblemType(WithoutProblemType):
        labels, class_names, problem_type = [0, 1], ["a", "b"], "single_label_classification"

    info = inspect_dataset(WithProblemType())
    assert (info.labels, info.class_names, info.problem_type) == ([0, 1], ("a", "b"), ProblemType.SINGLE_LABEL)

    class Unknown(WithoutProblemType):
        problem_type = "many"

    with pytest.raises(ValueError, match="problem_type='many'.*multi_label_classification"):
        inspect_dataset(Unknown())


def test_a_data_set_is_described_by_its_method_its_fingerprint_or_its_length():
    dataset = tiny.training_data(8)
    assert describe_dataset(dataset) == dataset.describe()
    table = datasets.Dataset.from_dict({"labels": [0, 1]})
    assert describe_dataset(table) == {"fingerprint": table._fingerprint, "images": 2}
    assert describe_dataset(iter([1])) == {"fingerprint": None, "images": None}
