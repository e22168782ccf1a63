"""Checks of the recipes of one experiment, before its first training."""

import dataclasses

from ..distillation.teacher import Teacher
from ..errors import Problems
from ..recipes.arguments import Recipe, TeacherArguments
from ..recipes.build import teacher_of
from ..recipes.data import RunData, with_unlabelled, without_unlabelled
from ..recipes.validate import validate


class RecipeChecks:
    """Checker of recipes that have the same data, apart from their unlabelled images. A teacher that recipes share is loaded once.

    Args:
        data: The data of all recipes.
    """

    def __init__(self, data: RunData):
        self.data = data
        self._labelled = without_unlabelled(data)
        self._unlabelled: dict[tuple[str, str | None], RunData] = {}
        self._arguments: TeacherArguments | None = None
        self._teacher: Teacher | None = None

    def teacher(self, recipe: Recipe) -> Teacher | None:
        """Return the teacher of a recipe, None if it has none.

        The last teacher is kept, so a teacher is loaded only if the teacher fields differ from those of the last
        recipe.

        Raises:
            TeacherError: The teacher cannot be loaded.
            RecipeError: A field of the teacher is invalid.
        """
        if recipe.teacher.teacher is None:
            return None
        if recipe.teacher != self._arguments:
            self._arguments = None
            self._teacher = teacher_of(recipe.teacher)
            self._arguments = recipe.teacher
        return self._teacher

    def check(self, recipe: Recipe) -> None:
        """Check that a training with the recipe can start.

        Raises:
            UserError: A field has an invalid value, or fields contradict each other.
        """
        problems, teacher = Problems(), None
        with problems.gathered():
            teacher = self.teacher(recipe)
        if not problems.errors:
            with problems.gathered():
                problems.extend(validate(recipe, self._data_of(recipe), teacher))
        problems.raise_all()

    def unlabelled_digest(self, recipe: Recipe) -> str | None:
        """Return a digest of the unlabelled images of a recipe; None if it names none.

        Raises:
            DataError: The unlabelled images cannot be found or read, or all of them are validation images.
        """
        unlabelled = self._data_of(recipe).unlabelled
        return None if unlabelled is None else unlabelled.fingerprint

    def _data_of(self, recipe: Recipe) -> RunData:
        """Return the data with the unlabelled images of a recipe, which are read once for recipes that share them."""
        own = recipe.data
        if own == self.data.arguments:
            return self.data
        if own.unlabelled is None:
            return dataclasses.replace(self._labelled, arguments=own)
        named = (own.unlabelled, own.unlabelled_split)
        if named not in self._unlabelled:
            self._unlabelled[named] = with_unlabelled(self._labelled, own)
        return dataclasses.replace(self._unlabelled[named], arguments=own)
