"""Checks of the recipes of one experiment, before its first training."""

from ..distillation.teacher import Teacher
from ..errors import Problems
from ..recipes.arguments import Recipe, TeacherArguments
from ..recipes.build import teacher_of
from ..recipes.data import RunData
from ..recipes.validate import validate


class RecipeChecks:
    """Checker of recipes that have the same data. A teacher that recipes share is loaded once.

    Args:
        data: The data of all recipes.
    """

    def __init__(self, data: RunData):
        self.data = data
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
        problems.extend(validate(recipe, self.data, teacher) if not problems.errors else ())
        problems.raise_all()
