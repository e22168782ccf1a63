"""Tests of cache building: records compared with the teacher on single views, record formats compared with NumPy."""

import errno
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from tqdm.auto import tqdm

from hf_deit.data.batch_ops import Mixing
from hf_deit.data.sampling import ViewKey, ViewSampler, keys_at, pair_generator, permutation
from hf_deit.distillation.cache import (
    FORMAT,
    FORMAT_VERSION,
    ExtraArray,
    RecordFormat,
    TeacherCache,
    finished_epochs,
    is_finished,
    read_json,
)
from hf_deit.distillation.cache_writer import CacheWriter, merge_caches
from hf_deit.distillation.cached_teacher import most_by_rounding, verify_teacher_cache
from hf_deit.distillation.teacher import Teacher
from hf_deit.errors import TeacherCacheError
from hf_deit.losses import soft_distillation_loss, teacher_decisions, teacher_loss, top_k_distillation_loss
from tests.helpers import tiny
from tests.helpers.caches import RECORD_FORMATS, build, flip, tiny_teacher, tiny_views

MIXING = Mixing(0.8, 1.0)
MEAN, STD = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (tiny.MEAN, tiny.STD))


@torch.no_grad()
def logits_by_hand(key, dataset, mixing):
    """Return the teacher's logits `(4,)` for one view, which is mixed with its partner by the formula in NumPy."""
    own = dataset[key]["pixel_values"].numpy() / 255.0
    if mixing.is_on:
        partner_index = permutation(dataset.seed, key.epoch, len(dataset))[
            (key.position ^ 1) % (2 * (len(dataset) // 2))
        ]
        partner = dataset[ViewKey(key.epoch, int(partner_index), key.view, key.position ^ 1)]
        other = partner["pixel_values"].numpy() / 255.0
        generator = pair_generator(dataset.seed, key.epoch, key.position // 2)
        share, top, bottom, left, right = mixing.draw(generator, tiny.SIZE, tiny.SIZE)
        own = share * own + (1 - share) * other
        rows, columns = (slice(round(a * tiny.SIZE), round(b * tiny.SIZE)) for a, b in ((top, bottom), (left, right)))
        own[:, rows, columns] = other[:, rows, columns]
    pixels = (torch.tensor(own[None], dtype=torch.float32) - MEAN) / STD
    return tiny.conv_teacher().eval()(pixels)[0]


@pytest.mark.parametrize("mixing", [Mixing(), MIXING], ids=["plain", "mixed"])
def test_every_record_is_the_teachers_output_for_the_view_at_its_position(tmp_path, mixing):
    data = tiny.training_data(11)  # odd: one image has no partner
    cache = build(
        tmp_path / "cache", "dense", views=tiny_views(data, 4, 4, mixing, repeats=2), epochs=2, validation=None
    )
    assert cache.records_per_epoch == 20
    for epoch in range(2):
        sampler = ViewSampler(11, 10, seed=0, repeats=2)  # another batch size
        sampler.set_epoch(epoch)
        shown = list(sampler)
        stored = cache.outputs(epoch, [key.position for key in shown])["teacher_logits"]
        expected = torch.stack([logits_by_hand(key, data, mixing) for key in shown])
        torch.testing.assert_close(stored, expected, rtol=1e-4, atol=1e-4)
        assert expected.std(dim=0).min() > 0.1  # views differ, so a record in a wrong place would be noticed
        everything = cache.outputs(epoch, range(20))["teacher_logits"]
        assert len(everything.unique(dim=0)) >= 18  # two views may have the same crop


@pytest.mark.parametrize(("size", "batch", "repeats"), [(11, 4, 1), (43, 8, 3), (6, 20, 1)])
def test_keys_at_equals_the_sampler_and_batches_hold_each_position_once(size, batch, repeats):
    sampler = ViewSampler(size, batch, seed=3, repeats=repeats)
    sampler.set_epoch(2)
    shown = list(sampler)
    assert keys_at(3, size, 2, [key.position for key in shown]) == shown
    data = tiny.training_data(size)
    data.seed = 3
    views = tiny_views(data, 2, batch, repeats=repeats)
    batches = views.batches(2)
    positions = [position for one in batches for position in one]
    assert sorted(positions) == list(range(views.records))
    assert positions[: len(shown)] == [key.position for key in shown]  # the training's order comes first
    assert max(key.view for key in shown) < sampler.views_per_image


def test_the_teachers_accuracy_is_that_of_its_validation_outputs(tmp_path):
    cache = build(tmp_path / "cache", "top_k")
    images = tiny.evaluation_data()
    rows = [images[index] for index in range(len(images))]
    pixels = (torch.stack([row["pixel_values"] for row in rows]).float() / 255 - MEAN) / STD
    predicted = tiny.conv_teacher().eval()(pixels).argmax(dim=-1)
    accuracy = (predicted == torch.tensor([row["labels"] for row in rows])).float().mean().item()
    assert cache.summary()["teacher_accuracy"] == pytest.approx(accuracy)
    assert torch.equal(teacher_decisions(cache.validation_outputs(range(len(images)))), predicted)


def test_bytes_per_view_of_every_record_format():
    assert RecordFormat("hard", 1000).bytes_per_view == 2
    assert RecordFormat("hard", 65536).bytes_per_view == 2
    assert RecordFormat("hard", 65537).bytes_per_view == 4
    assert RecordFormat("dense", 1000).bytes_per_view == 4000
    assert RecordFormat("dense", 1000, "float16").bytes_per_view == 2000
    assert RecordFormat("top_k", 1000, "float16", 10, 3.0).bytes_per_view == 10 * (2 + 2) + 4


def test_hard_records_hold_the_largest_class_index():
    logits = torch.zeros(2, 70000)
    logits[0, 69999] = logits[1, 65535] = 1.0
    record_format = RecordFormat("hard", 70000)
    assert record_format.decode(record_format.encode(logits))["teacher_labels"].tolist() == [69999, 65535]
    small = RecordFormat("hard", 65536)
    assert small.decode(small.encode(logits[1:, :65536]))["teacher_labels"].tolist() == [65535]


def test_top_k_holds_the_largest_logits_and_the_rest_at_its_temperature():
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)) * 4
    record_format = RecordFormat("top_k", 12, top_k=3, tau=2.5)
    stored = record_format.decode(record_format.encode(logits))
    ordered = np.sort(logits.double().numpy(), axis=1)[:, ::-1]
    np.testing.assert_array_equal(stored["teacher_top_logits"].numpy(), ordered[:, :3].astype(np.float32))
    rest = np.log(np.exp(ordered[:, 3:] / 2.5).sum(axis=1))
    np.testing.assert_allclose(stored["teacher_rest"].numpy(), rest, rtol=1e-6)
    gathered = logits.gather(1, stored["teacher_top_indices"])
    assert torch.equal(gathered, stored["teacher_top_logits"])


def test_the_decision_among_equal_logits_is_the_same_in_every_record_format():
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 0.0, 2.0]])
    for record_format in RECORD_FORMATS.values():
        assert teacher_decisions(record_format.decode(record_format.encode(logits))).tolist() == [1, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 70000.0])
def test_logits_that_are_not_finite_in_the_stored_type_are_refused(value):
    logits = torch.zeros(3, 4)
    logits[1, 2] = value
    for name in ("half", *(() if value == 70000 else ("hard", "dense", "top_k"))):
        with pytest.raises(TeacherCacheError, match="float(16|32).*largest"):
            RECORD_FORMATS[name].encode(logits)
    if value == 70000:
        assert RECORD_FORMATS["dense"].encode(logits)["outputs"][1, 2] == 70000


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "soft"},
        {"dtype": "int8"},
        {"kind": "top_k"},
        {"kind": "top_k", "top_k": 4, "tau": 1.0},
        {"kind": "top_k", "top_k": 2, "tau": 0.0},
        {"kind": "dense", "top_k": 2},
        {"kind": "top_k", "top_k": 2.5, "tau": 1.0},
        {"kind": "top_k", "top_k": 2, "tau": float("inf")},
        {"kind": "top_k", "top_k": 2, "tau": float("nan")},
        {"num_labels": 0},
        {"num_labels": 2**32},
        {"num_labels": 3.0},
    ],
    ids=str,
)
def test_invalid_record_formats_are_refused(fields):
    with pytest.raises(TeacherCacheError):
        RecordFormat(**{"kind": "hard", "num_labels": 4, **fields})


def test_a_rest_that_a_small_temperature_makes_infinite_is_refused():
    record_format = RecordFormat("top_k", 4, top_k=2, tau=1e-38)
    with pytest.raises(TeacherCacheError, match="tau=1e-38"):
        record_format.encode(torch.tensor([[400.0, 300.0, 200.0, 100.0]]))


class Bars:
    """Replacement for tqdm that records the progress bars."""

    def __init__(self):
        self.bars = []

    def __call__(self, **options):
        options["disable"] = bool(options["disable"])  # None shows a bar on a terminal
        self.bars.append(tqdm(**options, file=io.StringIO()))
        return self.bars[-1]


def test_progress_counts_every_view_that_is_computed_and_no_other(tmp_path, caplog, monkeypatch):
    shown = Bars()
    monkeypatch.setattr("hf_deit.distillation.cache_builder.tqdm", shown)
    caplog.set_level("INFO")
    network = Failing(1 + 3 + 3)  # alignment, validation, and part of the first epoch of views
    teacher = tiny_teacher(network=network)
    with pytest.raises(RuntimeError, match="enough"):
        build(tmp_path / "cache", teacher=teacher, part_records=16)
    assert (shown.bars[0].n, shown.bars[0].total) == (22 + 24, 22 + 84)
    network.left = 10**6
    caplog.clear()
    build(tmp_path / "cache", teacher=teacher, part_records=16)
    count = 26 + 42  # the 22 validation images and 16 views of the first epoch are already stored
    assert (shown.bars[1].n, shown.bars[1].total) == (count, count)
    assert f" {count} views in " in caplog.text
    build(tmp_path / "whole", teacher=teacher)
    assert (shown.bars[2].n, shown.bars[2].total) == (22 + 84, 22 + 84)
    build(tmp_path / "quiet", teacher=teacher, disable_tqdm=True)
    assert shown.bars[3].disable


class Failing(nn.Module):
    """Teacher that fails after a number of batches."""

    def __init__(self, left):
        super().__init__()
        self.network, self.left = tiny.conv_teacher(), left

    def forward(self, pixels):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("enough")
        return self.network(pixels)


def top_k_by_hand(student, teacher, k, tau):
    """Return τ² KL over the K + 1 outcomes of one image, computed in NumPy in float64."""
    student, teacher = (np.exp(logits.double().numpy() / tau) for logits in (student, teacher))
    p, q = teacher / teacher.sum(), student / student.sum()
    best = np.argsort(-p)[:k]
    p = np.append(p[best], 1 - p[best].sum())
    q = np.append(q[best], 1 - q[best].sum())
    return tau**2 * np.sum(p * np.log(p / q))


@pytest.mark.parametrize(("k", "tau"), [(1, 1.0), (3, 3.0), (9, 0.7)])
def test_the_top_k_loss_is_the_kl_over_the_top_classes_and_the_sum_of_the_others(k, tau):
    generator = torch.Generator().manual_seed(k)
    student, teacher = (3 * torch.randn(6, 10, generator=generator) for _ in range(2))
    record_format = RecordFormat("top_k", 10, top_k=k, tau=tau)
    loss = teacher_loss(
        record_format.decode(record_format.encode(teacher)), distillation_type="soft", tau=tau, reduction="image"
    )(student)
    expected = [top_k_by_hand(*pair, k, tau) for pair in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-4, atol=1e-6)
    full_loss = soft_distillation_loss(student, teacher, tau)
    assert (loss <= full_loss + 1e-5).all()
    official = teacher_loss(
        record_format.decode(record_format.encode(teacher)), distillation_type="soft", tau=tau, reduction="official"
    )(student)
    torch.testing.assert_close(official, loss / 10)


def test_the_top_k_loss_is_the_full_loss_if_only_one_class_is_left_out():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 10, generator=generator) for _ in range(2))
    record_format = RecordFormat("top_k", 10, top_k=9, tau=3.0)
    student.requires_grad_()
    loss = teacher_loss(
        record_format.decode(record_format.encode(teacher)), distillation_type="soft", tau=3.0, reduction="image"
    )(student)
    full_loss = soft_distillation_loss(student, teacher, 3.0)
    torch.testing.assert_close(loss, full_loss)
    ours, theirs = (torch.autograd.grad(value.sum(), student)[0] for value in (loss, full_loss))
    torch.testing.assert_close(ours, theirs)


def test_the_top_k_loss_of_all_classes_is_refused():
    with pytest.raises(ValueError, match="use soft_distillation_loss"):
        top_k_distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3).long(), torch.zeros(2))
    stored = (torch.zeros(2, 1), torch.zeros(2, 1).long(), torch.zeros(2))
    with pytest.raises(ValueError, match="reduction='mean'"):
        top_k_distillation_loss(torch.zeros(2, 3), *stored, reduction="mean")


class Drifting(nn.Module):
    """Teacher whose outputs can be changed without changing its weights."""

    def __init__(self):
        super().__init__()
        self.network, self.turned = tiny.conv_teacher(), 0.0

    def forward(self, pixels):
        logits = self.network(pixels)
        turned = torch.arange(len(logits)) < self.turned * len(logits)
        return torch.where(turned[:, None], -logits, logits)


def test_verifying_counts_the_records_that_differ(tmp_path):
    network = Drifting()
    teacher = tiny_teacher(network=network)
    views = tiny_views(tiny.training_data(64), 8, 8)
    cache = build(tmp_path / "cache", "dense", teacher=teacher, views=views)
    found = verify_teacher_cache(cache, teacher, views, 31, seed=0)
    assert (found.records, found.same_decision) == (32, 1.0)
    network.turned = 0.25
    found = verify_teacher_cache(cache, teacher, views, 1000)
    assert found.records == 128  # all records
    assert found.same_decision == 0.75
    assert found.equal <= 0.75
    with pytest.raises(TeacherCacheError, match="verify_teacher_cache=0"):
        verify_teacher_cache(cache, teacher, views, 0)


def test_the_limit_of_rounding_allows_chance_and_refuses_more():
    assert most_by_rounding(1) >= 1  # a single record is no evidence
    for records in (1, 8, 64, 300, 1000):
        least = math.floor(most_by_rounding(records)) + 1  # the smallest number that is refused
        chance = math.fsum(
            math.comb(records, count) * 0.02**count * 0.98 ** (records - count)
            for count in range(least, min(records, least + 100) + 1)
        )
        assert chance < 0.01, records
    assert most_by_rounding(10_000) < 0.03 * 10_000


WITH_FEATURES = RecordFormat("hard", 4, extra_arrays=(ExtraArray("features", (3, 8), "float16"),))
LOGITS, FEATURES = (torch.randn(12, *shape, generator=torch.Generator().manual_seed(0)) for shape in ((4,), (3, 8)))


def fill_with_features(folder):
    """Write a cache of 12 views and 5 validation images with an extra array, or complete it; return what was computed."""
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "teacher": {"fingerprint": "f"},
        "layout": WITH_FEATURES.describe(),
        "views": {"records": 12},
        "validation": {"images": 5},
    }
    writer = CacheWriter(folder, manifest, part_records=4)

    def outputs_of(batches):
        for batch in batches:
            yield WITH_FEATURES.encode(LOGITS[list(batch)], features=FEATURES[list(batch)])

    views = [[3, 7, 0], [11, 1, 2], [4, 5, 6], [10, 9, 8]]
    return writer.fill("epoch-00000", views, outputs_of), writer.fill("validation", [range(5)], outputs_of)


def test_an_extra_array_is_written_and_read_with_the_logits(tmp_path):
    record_format, logits, values = WITH_FEATURES, LOGITS, FEATURES
    assert record_format.bytes_per_view == 2 + 2 * 3 * 8
    assert fill_with_features(tmp_path / "cache") == (12, 5)
    names = {f"{name}{ending}" for name in ("epoch-00000", "validation") for ending in (".npy", ".json")}
    names.add("epoch-00000.features.npy")  # the validation images have no extra arrays
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"manifest.json", *names}
    cache = TeacherCache(tmp_path / "cache")
    assert cache.record_format == record_format
    found = cache.outputs(0, [7, 0, 11])
    assert found["teacher_labels"].tolist() == logits[[7, 0, 11]].argmax(-1).tolist()
    assert torch.equal(found["teacher_features"], values[[7, 0, 11]].half())
    assert cache.validation_outputs([4]).keys() == {"teacher_labels"}
    assert cache.reading(()).outputs(0, [7]).keys() == {"teacher_labels"}
    assert np.array_equal(np.load(tmp_path / "cache" / "epoch-00000.features.npy"), values.half().numpy())
    assert merge_caches(tmp_path / "merged", [tmp_path / "cache"]) == [0]
    assert {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()
    }
    flip(tmp_path / "cache" / "epoch-00000.features.npy", 200)
    with pytest.raises(TeacherCacheError, match=r"epoch-00000.features.npy"):
        TeacherCache(tmp_path / "cache")
    assert TeacherCache(tmp_path / "cache", arrays=()).outputs(0, [7]).keys() == {"teacher_labels"}


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        *(("epoch-00000", ending) for ending in (".npy", ".features.npy", ".json")),
        *(("validation", ending) for ending in (".npy", ".json")),
    ],
)
def test_files_without_one_of_their_arrays_are_unfinished_and_the_same_build_completes_them(tmp_path, name, ending):
    fill_with_features(tmp_path / "cache")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    (tmp_path / "cache" / f"{name}{ending}").unlink()
    assert not is_finished(tmp_path / "cache", name)
    assert finished_epochs(tmp_path / "cache") == ([] if name == "epoch-00000" else [0])
    with pytest.raises(TeacherCacheError, match="same hf-deit cache-teacher command"):
        TeacherCache(tmp_path / "cache")
    assert fill_with_features(tmp_path / "cache") == ((12, 0) if name == "epoch-00000" else (0, 5))
    assert {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == whole


@pytest.mark.parametrize("file", ["manifest.json", "epoch-00000.json"])
@pytest.mark.parametrize("cause", ["permission", "folder", "damaged"])
def test_a_file_that_the_system_does_not_let_read_is_not_reported_as_damaged(tmp_path, monkeypatch, file, cause):
    build(tmp_path / "cache", epochs=1, validation=None)
    path = tmp_path / "cache" / file
    if cause == "permission":
        read_text = Path.read_text

        def refuse(self, *args, **fields):
            if self == path:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            return read_text(self, *args, **fields)

        monkeypatch.setattr(Path, "read_text", refuse)
    elif cause == "damaged":
        path.write_text(path.read_text()[:20])
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(TeacherCacheError) as caught:
        read_json(path)
    message = str(caught.value)
    assert str(path) in message
    assert ("is damaged" in message) == ("Build the cache again" in message) == (cause == "damaged")
    assert ("permissions" in message) == (cause != "damaged")
    if cause == "permission":
        with pytest.raises(TeacherCacheError, match="cannot be read"):
            TeacherCache(tmp_path / "cache")


@pytest.mark.parametrize(
    ("given", "named"),
    [({}, "features"), ({"features": (2, 3, 9)}, r"\(2, 3, 9\)"), ({"features": (2, 3, 8), "other": (2,)}, "other")],
    ids=["missing", "shape", "unknown"],
)
def test_extra_arrays_that_do_not_fit_are_refused_by_name(given, named):
    record_format = RecordFormat("hard", 4, extra_arrays=(ExtraArray("features", (3, 8)),))
    with pytest.raises(TeacherCacheError, match=named):
        record_format.encode(torch.zeros(2, 4), **{name: torch.zeros(shape) for name, shape in given.items()})


@pytest.mark.parametrize(
    "fields",
    [{"name": "outputs"}, {"name": "a.b"}, {"shape": ()}, {"shape": (0,)}, {"dtype": "int8"}],
    ids=str,
)
def test_invalid_extra_arrays_are_refused(fields):
    with pytest.raises(TeacherCacheError, match=next(iter(fields))):
        ExtraArray(**{"name": "features", "shape": (3,), **fields})
    with pytest.raises(TeacherCacheError, match="features, features"):
        RecordFormat("hard", 4, extra_arrays=(ExtraArray("features", (3,)),) * 2)


def test_the_manifest_of_a_format_without_extra_arrays_does_not_name_them():
    fields = {"kind": "top_k", "num_labels": 4, "dtype": "float32", "top_k": 2, "tau": 3.0}
    assert RECORD_FORMATS["top_k"].describe() == fields
    assert RecordFormat.from_manifest(fields) == RECORD_FORMATS["top_k"]
    extra = RecordFormat("hard", 4, extra_arrays=(ExtraArray("features", (3, 8)),))
    assert RecordFormat.from_manifest(json.loads(json.dumps(extra.describe()))) == extra


def test_logits_are_stored_in_the_class_order_of_the_data(tmp_path):
    network, order = tiny.conv_teacher(), [2, 0, 3, 1]
    names = [tiny.NAMES[index] for index in order]
    teacher = Teacher(network, id2label=dict(enumerate(names)))
    teacher.align(list(tiny.NAMES), 4, (tiny.SIZE, tiny.SIZE))
    turned = build(tmp_path / "turned", "dense", teacher=teacher, validation=None).outputs(0, range(42))
    plain = build(tmp_path / "plain", "dense", validation=None).outputs(0, range(42))
    # Output i of the network is the class names[i]. In the cache it has the index of this name in the data.
    torch.testing.assert_close(turned["teacher_logits"][:, order], plain["teacher_logits"])
