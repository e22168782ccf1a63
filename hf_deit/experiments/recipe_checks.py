"""Checks of the recipes of one experiment, before its first training."""

from ..distillation.teacher import Teacher
from ..recipes.arguments import Recipe, TeacherArguments
from ..recipes.build import build_teacher
from ..recipes.data import RunData
from ..recipes.validate import validate
from ..trainer.validation import Problems


class RecipeChecks:
    """Check recipes on the same data, and load the teacher that they share once.

    Args:
        data: The data of all recipes.
    """

    def __init__(self, data: RunData):
        self.data = data
        self._arguments: TeacherArguments | None = None
        self._teacher: Teacher | None = None

    def teacher(self, recipe: Recipe) -> Teacher | None:
        """Return the teacher of a recipe. The last one is kept, so only a recipe with other teacher fields loads one.

        Raises:
            TeacherError: The teacher cannot be loaded.
            RecipeError: A field of the teacher is invalid.
        """
        if recipe.teacher.teacher is None:
            return None
        if recipe.teacher != self._arguments:
            self._arguments = None
            self._teacher = build_teacher(recipe.teacher)
            self._arguments = recipe.teacher
        return self._teacher

    def check(self, recipe: Recipe) -> None:
        """Check that a training of the recipe can start.

        Raises:
            UserError: A field has an invalid value, or fields contradict each other.
        """
        problems = Problems()
        problems.extend(validate(recipe, self.data, self.teacher(recipe)))
        problems.raise_all()
