"""Class weights of the user: mappings and files, softening, and what is refused."""

import json

import pytest
import torch

from hf_deit.errors import RecipeError
from hf_deit.trainer.class_weights import read_class_weights, weight_problems, weights_of
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import NAMES, arguments, student, training_data

OWN = {"ant": 1.0, "bee": 2.0, "cat": 0.0, "dog": 4.0}


def of(weights, labels=None, power=1.0, names=NAMES):
    return weights_of(weights, class_names=names, num_labels=4, labels=labels, power=power)


@pytest.mark.parametrize("kind", ["mapping", "text", "json", "yaml", "csv", "csv with names", "tsv"])
def test_own_weights_are_read_from_a_mapping_and_from_files(tmp_path, kind):
    text = {
        "json": json.dumps(OWN),
        "yaml": "dog: 4\ncat: 0\nbee: 2.0\nant: 1e0\n",
        "csv": "".join(f"{name},{weight}\n" for name, weight in OWN.items()),
        "csv with names": "class,weight\n" + "".join(f"{name},{weight}\n" for name, weight in OWN.items()),
        "tsv": "".join(f"{name}\t{weight}\n" for name, weight in OWN.items()),
    }.get(kind)
    if text is None:
        given = OWN if kind == "mapping" else json.dumps(OWN)
    else:
        file = tmp_path / f"weights.{kind.split()[0]}"
        file.write_text(text)
        given = str(file)
    assert read_class_weights(given) == OWN


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("ant,1\nbee,lots\n", "'bee'"),
        ("ant,1\nant,2\n", "two weights"),
        ("ant,1,2\n", "ant,1,2"),
        ("ant,-1\n", "'ant'"),
        ("ant,nan\n", "'ant'"),
        ("ant,0\nbee,0\n", "all weights are 0"),
        ("", "mapping"),
    ],
)
def test_a_file_of_invalid_weights_is_refused(tmp_path, content, word):
    (tmp_path / "weights.csv").write_text(content)
    with pytest.raises(RecipeError, match=word):
        read_class_weights(str(tmp_path / "weights.csv"))


@pytest.mark.parametrize("given", ["blanced", "weights.csv", "weights.npy", 3, "{broken"])
def test_a_value_that_is_neither_a_choice_nor_a_file_is_refused(given):
    with pytest.raises(RecipeError, match="class_weights="):
        read_class_weights(given)


def test_classes_without_a_weight_and_unknown_classes_are_named():
    problems = list(weight_problems({"ant": 1.0, "bees": 2.0, "cat": 1.0}, list(NAMES), 4))
    assert "'bee', 'dog'" in problems[0]
    assert "'bees'" in problems[1]
    assert "'bee'" in problems[1]
    assert list(weight_problems({"0": 1.0, "1": 2.0, "2": 1.0, "3": 1.0}, None, 4)) == []


def test_weights_are_in_the_order_of_the_student_and_softened_by_the_power():
    assert of(OWN).tolist() == [1, 2, 0, 4]
    assert of(OWN, power=0.5).tolist() == pytest.approx([1, 2**0.5, 0, 2])
    assert of(OWN, power=0.0).tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_softened_balanced_weights_are_one_on_average(power):
    labels = [0] * 9 + [1] * 4 + [2] + [3] * 2
    weights = of("balanced", labels, power)
    assert weights[torch.tensor(labels)].mean().item() == pytest.approx(1)
    # A class with n times the images has the weight n ** -power, by hand.
    assert (weights[2] / weights[0]).item() == pytest.approx(9**power)


def test_own_weights_weight_the_loss(tmp_path):
    args = arguments(tmp_path, distillation_type="none", class_weights=json.dumps(OWN), class_weights_power=0.5)
    assert json.loads(args.to_json_string())["class_weights"] == OWN
    trainer = DistillationTrainer(student(), None, args, train_dataset=training_data(16))
    batch = next(iter(trainer.get_train_dataloader()))
    plain = DistillationTrainer(
        student(), None, arguments(tmp_path, distillation_type="none"), train_dataset=training_data(16)
    )
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    by_hand = plain.objective.terms({"logits": logits}, {}, batch["labels"])["loss"]
    by_hand = by_hand * torch.tensor([1, 2**0.5, 0, 2])[batch["labels"]]
    weighted = trainer.objective.terms({"logits": logits}, {}, batch["labels"])["loss"]
    torch.testing.assert_close(weighted, by_hand)


def test_weights_for_other_classes_are_refused_before_training(tmp_path):
    args = arguments(tmp_path, distillation_type="none", class_weights={"ant": 1, "bee": 1, "cat": 1, "eel": 1})
    with pytest.raises(RecipeError, match="'dog'"):
        DistillationTrainer(student(), None, args, train_dataset=training_data(16))
