"""The report that a training makes of its own model, when the model is saved."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import TeacherCacheError, TeacherError
from ..recipes.arguments import Recipe, TeacherArguments
from ..trainer.environment import install_command, missing_packages

logger = logging.getLogger(__name__)

REPORT_FOLDER = "report"
# Seconds for the predictions; writing the page takes a few more.
_SECONDS = 100.0


def report_after_training(recipe: Recipe) -> Path | None:
    """Write a report about the model that a recipe trained, into `output_dir`/report, if the recipe does not turn it off.

    Nothing that happens here fails the training: the model is saved, and a failure is logged.

    Args:
        recipe: Recipe of the run, whose model, results and card are saved.

    Returns:
        The report; None if there is none.
    """
    if not recipe.run.report:
        return None
    out = Path(recipe.training.output_dir) / REPORT_FOLDER
    try:
        from .report import PACKAGES, ReportArguments, make_report

        missing = missing_packages(PACKAGES)
        if missing:
            logger.info("No report about the model was written: it needs %s.", install_command(missing))
            return None
        written = _with_an_opinion(
            make_report,
            ReportArguments(
                model=recipe.training.output_dir,
                data=recipe.data.data,
                out=str(out),
                batch_size=max(recipe.training.per_device_eval_batch_size, 1),
                seconds=_SECONDS,
            ),
            recipe.teacher,
        )
        logger.info("A report about the model is in %s. It holds photographs, and is never uploaded.", written.path)
        return written.path
    except KeyboardInterrupt:
        logger.warning("The report about the model was interrupted. The model is saved in %s.", out.parent)
    except Exception as error:  # a report is a gift: whatever fails, the training has succeeded
        logger.debug("Traceback of the error:", exc_info=True)
        logger.warning(
            "No report about the model was written (%s: %s). The model is saved in %s. Try again: hf-deit report %s --data %s --out DIR.",
            type(error).__name__,
            error,
            out.parent,
            out.parent,
            recipe.data.data,
        )
    return None


def _with_an_opinion(make: Callable[[Any], Any], arguments: Any, teacher: TeacherArguments) -> Any:
    """Make a report with the teacher of a run or, if it cannot be loaded, with its cache or, if that holds no opinions, without both."""
    given = [{name: value} for name in ("teacher", "teacher_cache") if (value := getattr(teacher, name)) is not None]
    for fields in given:
        try:
            return make(replace(arguments, **fields))
        except (TeacherError, TeacherCacheError) as error:
            logger.info("The report about the model is made without %s: %s", next(iter(fields)), error)
    return make(arguments)
