"""Tiny teacher caches and trainers that use them, for the tests of caches and for the script build_caches.py."""

from hf_deit.data.batch_ops import Mixing
from hf_deit.distillation.cache import RecordFormat, TeacherCache
from hf_deit.distillation.cache_builder import build_teacher_cache
from hf_deit.distillation.teacher import Teacher
from hf_deit.distillation.view_schedule import ViewSchedule
from hf_deit.trainer.trainer import DistillationTrainer
from tests.helpers.tiny import NAMES, SIZE, arguments, conv_teacher, evaluation_data, student, training_data

RECORD_FORMATS = {
    "hard": RecordFormat("hard", len(NAMES)),
    "dense": RecordFormat("dense", len(NAMES)),
    "half": RecordFormat("dense", len(NAMES), dtype="float16"),
    "top_k": RecordFormat("top_k", len(NAMES), top_k=2, tau=3.0),
}


def tiny_teacher(seed=1, network=None, names=NAMES):
    teacher = Teacher(network or conv_teacher(len(names), seed), id2label=dict(enumerate(names)))
    teacher.align(list(NAMES), len(NAMES), (SIZE, SIZE))
    return teacher


def tiny_views(dataset=None, batch_size=8, global_batch_size=8, mixing=None, **fields):
    dataset = training_data(43) if dataset is None else dataset
    return ViewSchedule(dataset, mixing or Mixing(), batch_size, global_batch_size, **fields)


def build(folder, kind="hard", epochs=2, teacher=None, validation="tiny", views=None, **options):
    """Build a cache, by default of 43 images, and return it."""
    validation = evaluation_data() if validation == "tiny" else validation
    record_format = RECORD_FORMATS[kind] if isinstance(kind, str) else kind
    build_teacher_cache(
        folder,
        teacher or tiny_teacher(),
        views or tiny_views(),
        record_format,
        range(epochs),
        validation=validation,
        **options,
    )
    return TeacherCache(folder)


def trainer_of(
    folder,
    teacher=None,
    cache=None,
    two_heads=True,
    count=43,
    data=None,
    model=None,
    verified=0,
    evaluation=None,
    **changes,
):
    """Return a trainer for two epochs of 5 steps each, with a live teacher or a cache."""
    fields = {"max_steps": 10, "learning_rate": 2e-3, "distillation_type": "hard", **changes}
    return DistillationTrainer(
        model or student(two_heads, initializer_range=0.2),
        teacher,
        arguments(folder, **fields),
        train_dataset=training_data(count) if data is None else data,
        eval_dataset=evaluation_data() if evaluation is None else evaluation,
        teacher_cache=cache,
        verify_teacher_cache=verified,
    )


def flip(path, place):
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))
