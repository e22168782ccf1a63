"""Streams: keys, order, workers and broken images of a pass, and training on a stream."""

import itertools
import random

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from hf_deit.data.augmentation import Augmentation
from hf_deit.data.loading import load_splits, load_stream, load_validation
from hf_deit.data.sampling import ViewKey, view_generator
from hf_deit.data.streams import ViewStream, shuffled, whole_batches
from hf_deit.data.table_files import open_all
from hf_deit.data.tables import Columns, TableReader
from hf_deit.data.views import collate
from hf_deit.errors import DataError
from hf_deit.recipes.arguments import DataArguments
from hf_deit.recipes.data import RunData
from hf_deit.trainer.trainer import DistillationTrainer
from hf_deit.trainer.training_args import DistillationTrainingArguments
from tests.helpers.images import cut_off, picture, saved
from tests.helpers.tables import KINDS, as_csv, as_parquet_of_images, as_parquet_of_structures, lines, table, write

pytestmark = pytest.mark.usefixtures("own_cache")
KIND = Columns("file", ("kind",))


def reader_of(path, root=None):
    rows = open_all(str(path), streaming=True)["train"]
    rows = rows.to_iterable_dataset() if hasattr(rows, "__len__") else rows
    return TableReader(rows, KIND, "the stream", root)


def stream_of(path, buffer=1, root=None, **kwargs):
    return ViewStream(reader_of(path, root), Augmentation((8, 8)), 5, shuffle_buffer=buffer, **kwargs)


def view_of(number, epoch=0):
    """Return the pixels of the view of picture `number` as row `number` of a stream."""
    view = Augmentation((8, 8))(picture(number), view_generator(5, ViewKey(epoch, number, 0, 0)))
    return np.asarray(view).tobytes()


def views_of(rows):
    return [row["pixel_values"].permute(1, 2, 0).contiguous().numpy().tobytes() for row in rows]


def as_saved(folder):
    features = datasets.Features({"file": datasets.Image(), "kind": datasets.ClassLabel(names=["eel", "dog", "cat"])})
    rows = {"file": [str(folder / f"photos/{number}.png") for number in range(10)], "kind": KINDS}
    return saved(datasets.Dataset.from_dict(rows, features=features), folder / "set")


@pytest.mark.parametrize("make", [as_csv, as_parquet_of_structures, as_parquet_of_images, as_saved])
def test_a_stream_of_any_table_has_the_view_of_each_row_with_its_number_as_index(photos, make):
    stream = stream_of(make(photos), root=photos)
    names = ("eel", "dog", "cat") if make is as_saved else ("cat", "dog", "eel")
    assert stream.class_names == names
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        rows = list(stream)
        assert views_of(rows) == [view_of(number, epoch) for number in range(10)]
        assert [names[row["labels"]] for row in rows] == KINDS
        assert rows[0]["pixel_values"].dtype == torch.uint8


def test_the_shuffle_buffer_changes_the_order_but_not_the_views(photos):
    path = as_csv(photos)
    orders = []
    for epoch in (0, 0, 1):
        stream = stream_of(path, 4, photos)
        stream.set_epoch(epoch)
        expected = {view_of(number, epoch): number for number in range(10)}
        order = [expected[view] for view in views_of(stream)]
        assert sorted(order) == list(range(10))
        orders.append(order)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_a_shuffle_buffer_holds_no_more_rows_than_its_size():
    read = []

    def source():
        for number in range(100):
            read.append(number)
            yield number

    yielded = []
    for row in shuffled(source(), 8, random.Random(0)):
        yielded.append(row)
        assert len(read) - len(yielded) <= 8
    assert sorted(yielded) == list(range(100))
    assert all(row <= place + 8 for place, row in enumerate(yielded))
    assert list(shuffled(range(9), 1, random.Random(0))) == list(range(9))


def test_the_first_row_of_a_shuffled_stream_is_uniform_over_the_buffer():
    counts = np.bincount([next(shuffled(range(50), 10, random.Random(seed))) for seed in range(2000)], minlength=50)
    assert counts[10:].sum() == 0
    assert counts[:10].min() > 140  # 200 each are expected, with a standard deviation of 13
    assert counts[:10].max() < 260


@pytest.mark.parametrize("make", [as_csv, as_saved])
def test_workers_share_the_rows_and_yield_each_once(photos, make):
    stream = stream_of(make(photos), 3, photos, batch_size=2)
    batches = list(DataLoader(stream, batch_size=2, num_workers=2, collate_fn=collate))
    labels = [stream.class_names[label] for batch in batches for label in batch["labels"].tolist()]
    assert sorted(labels) == sorted(KINDS)
    assert all(len(batch["labels"]) == 2 for batch in batches)


def test_rows_that_do_not_fill_a_batch_at_the_end_are_left_out(photos):
    assert len(list(stream_of(as_csv(photos), root=photos, batch_size=4))) == 8


def test_positions_count_yielded_rows_and_indices_count_read_rows(photos, monkeypatch):
    (photos / "photos" / "2.png").write_bytes(cut_off((photos / "photos" / "2.png").read_bytes()))
    keys = []

    def record_key(image, label, augmentation, seed, key):
        keys.append(key)
        return {"pixel_values": torch.zeros(1), "labels": label}

    monkeypatch.setattr("hf_deit.data.streams.view_row", record_key)
    list(stream_of(as_csv(photos), root=photos))
    assert [key.index for key in keys] == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert [key.position for key in keys] == list(range(9))
    assert {(key.epoch, key.view) for key in keys} == {(0, 0)}


def test_a_broken_image_is_left_out_logged_once_and_counted(photos, caplog):
    for number in (2, 7):
        file = photos / "photos" / f"{number}.png"
        file.write_bytes(cut_off(file.read_bytes()))
    stream = stream_of(as_csv(photos), root=photos)
    for epoch in range(3):
        stream.set_epoch(epoch)
        assert views_of(stream) == [view_of(number, epoch) for number in range(10) if number not in (2, 7)]
    assert stream.broken_count == 2
    for number in (2, 7):
        assert caplog.text.count(f"{number}.png) cannot be read") == 1
    with pytest.raises(DataError, match="2.png"):
        list(stream_of(as_csv(photos), root=photos, broken_images="raise"))


def test_a_stream_needs_a_validation_split_and_has_an_indexed_one(photos):
    with pytest.raises(DataError, match=r"table\.csv has no validation split"):
        load_stream(as_csv(photos), KIND)
    text = (photos / "table.csv").read_text().splitlines()
    (photos / "train.csv").write_text("\n".join(text[:7]))
    (photos / "validation.csv").write_text("\n".join([text[0], *text[7:]]))
    reader, validation = load_stream(str(photos), KIND)
    assert reader.class_names == validation.class_names == ("cat", "dog", "eel")
    assert len(list(reader.rows())) == 6
    assert [validation.class_names[label] for label in validation.labels] == KINDS[6:]
    for number in range(4):
        np.testing.assert_array_equal(validation.image(number), picture(6 + number))
    assert validation.fingerprint == load_validation(str(photos), columns=KIND).fingerprint


def test_the_trainer_trains_on_a_stream_pass_after_pass(photos, tmp_path, tiny_student, caplog):
    stream = stream_of(as_csv(photos), 4, photos, batch_size=4)
    seen = []
    set_epoch = stream.set_epoch
    stream.set_epoch = lambda epoch: (seen.append(epoch), set_epoch(epoch))
    args = DistillationTrainingArguments(
        str(tmp_path / "out"),
        distillation_type="none",
        max_steps=5,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        learning_rate=0.1,
    )
    trainer = DistillationTrainer(tiny_student("plain", image_size=8), None, args, train_dataset=stream)
    before = trainer.model.classifier.weight.detach().clone()
    trainer.train()
    assert trainer.state.global_step == 5  # ten images: two complete batches per pass, and one in the third pass
    assert sorted(set(seen)) == [0, 1, 2]
    assert not torch.equal(before, trainer.model.classifier.weight)
    assert "do not take view keys" not in caplog.text


@pytest.mark.parametrize("wrong", [{"shuffle_buffer": 0}, {"batch_size": 0}])
def test_a_size_below_one_is_refused(photos, wrong):
    with pytest.raises(DataError, match=f"{next(iter(wrong))}=0"):
        ViewStream(reader_of(as_csv(photos)), Augmentation((8, 8)), 0, **wrong)


# Complete optimizer steps


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("size", [1, 4])
def test_whole_batches_yields_all_rows_in_order_except_an_incomplete_last_batch(count, size):
    assert list(whole_batches(range(count), size)) == list(range(count - count % size))


def test_whole_batches_holds_back_less_than_a_batch():
    read = []
    rows = whole_batches((read.append(number) or number for number in range(40)), 8)
    assert all(len(read) == number + 8 for number in itertools.islice(rows, 32))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_optimizer_step_of_a_stream_has_complete_batches_of_one_pass(photos, tmp_path, tiny_student, workers):
    """There are 26 rows, 2 per batch, and 3 batches per optimizer step.

    One process has four steps per pass. Two workers have 13 rows and two steps each.
    """
    rows = [(f"photos/{number % 10}.png", KINDS[number % 10]) for number in range(26)]
    path = write(photos / "long.csv", lines(("file", "kind"), *rows))
    args = DistillationTrainingArguments(
        str(tmp_path / "out"),
        distillation_type="none",
        max_steps=9,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        dataloader_num_workers=workers,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
    )
    arguments = DataArguments(data=str(path), streaming=True, shuffle_buffer=4)
    stream = RunData(reader_of(path, photos), None, arguments, 0, 0).training_set(Augmentation((8, 8)), 5, 6)
    trainer = DistillationTrainer(tiny_student("plain", image_size=8), None, args, train_dataset=stream)
    batches, at_steps = [], []
    loss = trainer.compute_loss

    def count_batches(model, inputs, *rest, **kwargs):
        batches.append(len(inputs["labels"]))
        return loss(model, inputs, *rest, **kwargs)

    class RecordBatches(TrainerCallback):
        def on_optimizer_step(self, *unused, **kwargs):
            at_steps.append(len(batches))

    trainer.compute_loss = count_batches
    trainer.add_callback(RecordBatches())
    trainer.train()
    assert at_steps == [3 * step for step in range(1, 10)]
    assert set(batches) == {2}


def test_a_stream_of_one_class_is_refused_like_an_indexed_data_set(photos):
    for name in ("train", "validation"):
        table(photos, ["cat"] * 10, f"{name}.csv")
    with pytest.raises(DataError, match=r"one class .*cat") as streamed:
        load_stream(str(photos), KIND)
    with pytest.raises(DataError) as indexed:
        load_splits(str(photos), columns=KIND)
    assert str(streamed.value) == str(indexed.value)


def test_a_row_without_a_label_is_counted_before_training_and_yielded_as_such(photos):
    table(photos, [*KINDS[:6], "", *KINDS[7:]], "train.csv")
    table(photos, KINDS, "validation.csv")
    reader, _ = load_stream(str(photos), KIND)
    assert reader.unlabelled_rows == 1
    assert reader.class_names == ("cat", "dog", "eel")
    assert [label for _, label in reader.rows()][6] == -100
    table(photos, [*KINDS[:6], "-1", *KINDS[7:]], "train.csv")
    with pytest.raises(DataError, match="without a label.*row 6"):
        load_stream(str(photos), KIND)


def test_a_stream_with_fewer_rows_than_a_step_is_refused_before_training(photos):
    reader = reader_of(as_csv(photos), photos)
    data = RunData(reader, None, DataArguments(data="x", streaming=True), 0, 0)
    with pytest.raises(DataError, match=r"10 row\(s\).*takes 12.*gradient_accumulation_steps"):
        data.training_set(Augmentation((8, 8)), 0, 12)
    assert len(list(data.training_set(Augmentation((8, 8)), 0, 10))) == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_fills_no_batch_is_refused_with_a_remedy(photos, workers):
    def read(size):
        stream = stream_of(as_csv(photos), root=photos, batch_size=size)
        return list(DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=collate))

    with pytest.raises(DataError, match="12 images.*the stream.*per_device_train_batch_size"):
        read(12)
    for number in range(1, 10):
        file = photos / "photos" / f"{number}.png"
        file.write_bytes(cut_off(file.read_bytes()))
    with pytest.raises(DataError, match=r"9 image\(s\) cannot be read"):
        read(2)


def test_a_worker_whose_rows_fill_no_batch_does_not_stop_the_others(tmp_path, photos):
    content = [(photos / "photos" / f"{number}.png").read_bytes() for number in range(10)]
    for part, numbers in enumerate((range(8), range(8, 10))):
        rows = {"file": [content[number] for number in numbers], "kind": [KINDS[number] for number in numbers]}
        datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / f"train-{part}.parquet"))
    stream = stream_of(tmp_path, batch_size=4)
    batches = list(DataLoader(stream, batch_size=4, num_workers=2, collate_fn=collate))
    assert [len(batch["labels"]) for batch in batches] == [4, 4]
