"""Script that builds a teacher cache and trains with it, in every process of a distributed launch.

`run_distributed` of `tests/helpers/processes.py` starts it with the path of a folder. The first process writes the
logged loss terms to `losses.json` there.
"""

import json
import sys
from pathlib import Path

from hf_deit.distillation.cache_builder import build_teacher_cache
from tests.helpers.caches import RECORD_FORMATS, tiny_teacher, tiny_views, trainer_of
from tests.helpers.tiny import arguments, evaluation_data, logged, training_data

CHANGES = {"distillation_type": "soft", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "max_steps": 20}
TERMS = ("loss", "cls_loss", "distillation_loss", "teacher_agreement")
IMAGES, GLOBAL_BATCH = 43, 8


def terms_of(trainer):
    return {name: logged(trainer, name) for name in TERMS}


def main(folder):
    folder = Path(folder)
    args = arguments(folder / "args", **CHANGES)
    batch = GLOBAL_BATCH // args.world_size
    mixing = trainer_of(folder / "unused", tiny_teacher(), **CHANGES).mixing
    views = tiny_views(training_data(IMAGES), batch, GLOBAL_BATCH, mixing)
    share = (args.process_index, args.world_size)
    build_teacher_cache(
        folder / "cache",
        tiny_teacher(),
        views,
        RECORD_FORMATS["dense"],
        range(4),
        validation=evaluation_data(),
        share=share,
    )
    args.distributed_state.wait_for_everyone()
    trainer = trainer_of(folder / "run", cache=folder / "cache", per_device_train_batch_size=batch, **CHANGES)
    trainer.train()
    if args.process_index == 0:
        (folder / "losses.json").write_text(json.dumps(terms_of(trainer) | {"evaluation": trainer.evaluate()}))
    else:
        trainer.evaluate()


if __name__ == "__main__":
    main(*sys.argv[1:])
