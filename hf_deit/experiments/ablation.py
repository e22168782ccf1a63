"""Ablation: named variants of one recipe, each trained with several seeds, and the table of their results.

A definition is a YAML file with `title`, `recipe` (the name of a recipe of the package, or a YAML file beside the
definition), `fields` (for all variants), `seeds`, `variants` (name → fields) and `rows` of the table (`title`,
`variant`, `metric`, `paper`). Data, teacher, folders and seed of the recipe are not used. A run is identified by its
fields, its data and its teacher, not by its definition. Different definitions therefore share runs, and a run that has
a result is not repeated. experiments/run_ablation.py trains the runs.
"""

import importlib.util
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..files import check_folder, parsed_yaml, staged_files
from ..fingerprints import short_digest_of
from ..recipes.reading import ends_guidance, read_fields, recipe_path
from .charts import draw_accuracies

# Fields that are set by the command line or by run_ablation.py.
_NOT_HERE = ("data", "teacher", "teacher_weights", "teacher_cache", "verify_teacher_cache", "output_dir", "resume")
# Fields that decide where and how often files are written, but not what is trained.
_ABOUT_FILES = frozenset(
    {*_NOT_HERE, "run_name", "report_to", "disable_tqdm", "logging_steps", "logging_strategy", "dataloader_num_workers"}
    | {"eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit"}
)
# Fields that only decide how a teacher is used. They are ignored in the key of a run without a teacher.
_ABOUT_TEACHER = frozenset(
    {"distillation_tau", "distillation_alpha", "distillation_reduction", "distillation_target", "teacher_dtype"}
    | {"teacher_image_mean", "teacher_image_std", "teacher_image_size", "teacher_labels"}
    | {"guidance", "guidance_weight", "guidance_student_layers", "guidance_teacher_layers"}
)
# The keys of a definition; for each, the Python type of its value and a description for messages.
_CONTENT = {
    "title": (str, "a non-empty text"),
    "recipe": (str, "a non-empty text"),
    "fields": (dict, "a mapping of fields to values"),
    "seeds": (list, "a list with at least one seed"),
    "variants": (dict, "a mapping of at least one name to fields"),
    "rows": (list, "a list with at least one row"),
}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        title: Text of the first cell.
        variant: Name of the variant whose runs the row shows.
        metric: Metric on the validation images that the row shows, without the prefix `eval_`.
        paper: The figure in the paper, in percent; None if the paper has none.
    """

    title: str
    variant: str
    metric: str = "accuracy"
    paper: float | None = None


@dataclass(frozen=True)
class Run:
    """One training of an ablation.

    Args:
        variant: Name of the variant.
        fields: All fields that are given for this run, including the seed.
    """

    variant: str
    fields: Mapping[str, Any] = field(hash=False)

    @property
    def distils(self) -> bool:
        """Whether the run has a teacher."""
        return self.fields.get("distillation_type") != "none" or self.fields.get("guidance", "none") != "none"

    @property
    def unlabelled(self) -> str | None:
        """The unlabelled images that the run names; None if it names none."""
        return self.fields.get("unlabelled") or None

    @property
    def key(self) -> str:
        """Digest of the fields that decide what is trained: 12 hexadecimal digits.

        It says whether there are unlabelled images, but not where: `result_file` adds a digest of their content.
        """
        ignored = _ABOUT_FILES if self.distils else _ABOUT_FILES | _ABOUT_TEACHER
        fields = {name: value for name, value in self.fields.items() if name not in ignored}
        return short_digest_of(fields if self.unlabelled is None else {**fields, "unlabelled": True})

    @property
    def name(self) -> str:
        """Name of the run in messages."""
        return f"{self.variant}, seed {self.fields['seed']}"


@dataclass(frozen=True)
class Ablation:
    """A definition that has passed its checks; see the docstring of the module."""

    title: str
    fields: Mapping[str, Any]
    seeds: Sequence[int]
    variants: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Row]
    recipe: str
    recipe_guides: bool = False  # whether guidance is that of the recipe, and not one of the fields of the definition

    def run(self, variant: str, seed: int) -> Run:
        """Return the training of a variant with a seed."""
        own = self.variants[variant]
        fields = _merged(self.fields, own) if self.recipe_guides else {**self.fields, **own}
        return Run(variant, {**fields, "seed": seed})

    def runs(self) -> list[Run]:
        """Return the trainings of all variants, ordered by seed, so that variants can be compared early."""
        return [self.run(variant, seed) for seed in self.seeds for variant in self.variants]


def read_ablation(path: str | Path) -> Ablation:
    """Read a definition. Its fields are checked later, when the recipes of the runs are built.

    Raises:
        RecipeError: The file cannot be read, its content is invalid (see the docstring of the module), or its recipe is
            unknown.
    """
    path = Path(path)
    content = parsed_yaml(path, RecipeError)
    if not isinstance(content, dict) or not set(_CONTENT) - {"fields"} <= set(content) <= set(_CONTENT):
        given = ", ".join(map(str, content)) if isinstance(content, dict) else repr(content)
        raise RecipeError(
            f"{path} contains {given}. A definition must contain exactly {', '.join(_CONTENT)} (fields may be left "
            "out)."
        )
    content["fields"] = {} if content.get("fields") is None else content["fields"]
    for name, (kind, description) in _CONTENT.items():
        if not isinstance(content[name], kind) or (not content[name] and name != "fields"):
            raise RecipeError(f"{path}: {name}={content[name]!r} is invalid. Give {description}.")
    seeds = content["seeds"]
    if not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise RecipeError(f"{path}: seeds={seeds!r} is invalid. Give distinct integers from 0 to 2**32 - 1.")
    _check_fields(path, "fields", content["fields"])
    variants = {str(name): {} if fields is None else fields for name, fields in content["variants"].items()}
    for name, fields in variants.items():
        _check_fields(path, f"variants: {name}", fields)
    own_recipe = path.parent / content["recipe"]
    base = read_fields(own_recipe if own_recipe.suffix in (".yaml", ".yml") else recipe_path(content["recipe"]))
    _check_names(own_recipe, "the recipe", base)
    rows = _rows(path, content["rows"], variants)
    fields, guides = _merged(base, content["fields"]), "guidance" not in content["fields"]
    return Ablation(content["title"], fields, seeds, variants, rows, content["recipe"], guides)


def _merged(lower: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return two layers of fields as one. With distillation_type none, the guidance of a recipe ends: it is a run without a teacher."""
    return {**lower, **layer, **({"guidance": "none"} if ends_guidance(lower, layer) else {})}


def _check_fields(path: Path, where: str, fields: Any) -> None:
    """Check that fields are a mapping, and that none of them would be overwritten silently."""
    if not isinstance(fields, dict):
        raise RecipeError(
            f"{path}: {where} is {fields!r}. It must be a mapping of fields to values, such as {{student: plain}}."
        )
    _check_names(path, where, fields)
    replaced = [name for name in ("seed", *_NOT_HERE) if name in fields]
    if replaced:
        raise RecipeError(
            f"{path}: {where} gives {replaced[0]}, which cannot be set in a definition, because it is the same for all "
            "variants. List the seeds under seeds, and give data and teacher on the command line (--data, --teacher). "
            "The ablation sets folders, caches and resume."
        )


def _check_names(path: Path, where: str, fields: Mapping[Any, Any]) -> None:
    odd = [name for name in fields if not isinstance(name, str)]
    if odd:
        raise RecipeError(
            f"{path}: {where} gives {odd[0]!r}, which is not the name of a field. YAML reads yes, no, on and off as "
            "true and false; put them in quotes."
        )


def _rows(path: Path, entries: Sequence[Any], variants: Mapping[str, Any]) -> list[Row]:
    """Read and check the rows, so that a mistake is found before the runs instead of after them."""
    rows = []
    for entry in entries:
        try:
            row = Row(**entry)
        except TypeError as error:
            raise RecipeError(
                f"{path}: row {entry!r} is invalid ({error}). A row has the keys title and variant, and optionally "
                "metric and paper."
            ) from error
        number = row.paper is None or (isinstance(row.paper, int | float) and not isinstance(row.paper, bool))
        if not number or not all(isinstance(text, str) for text in (row.title, row.variant, row.metric)):
            raise RecipeError(
                f"{path}: row {entry!r} is invalid. title, variant and metric must be texts, and paper must be a "
                "number."
            )
        if row.variant not in variants:
            raise RecipeError(
                f"{path}: row {row.title!r} names the unknown variant {row.variant!r}. The variants are "
                f"{', '.join(variants)}."
            )
        if row.title in [other.title for other in rows]:
            raise RecipeError(f"{path}: two rows have the title {row.title!r}. Give each row a different title.")
        rows.append(row)
    hidden = [name for name in variants if name not in [row.variant for row in rows]]
    if hidden:
        raise RecipeError(
            f"{path}: no row shows the variant {hidden[0]!r}. Add a row for it, or leave the variant out."
        )
    return rows


def result_file(folder: str | Path, run: Run, data: str, teacher: str | None, unlabelled: str | None = None) -> Path:
    """Return the path of a run's result. The file name is computed from the fields, the images and the teacher.

    Args:
        folder: Folder of the results.
        run: The run.
        data: Digest of the labelled images.
        teacher: Fingerprint of the teacher, which is not used for a run without one.
        unlabelled: Digest of the unlabelled images of the run; None if it has none.
    """
    parts = [run.key, short_digest_of([data, teacher if run.distils else None])]
    parts += [] if unlabelled is None else [short_digest_of(unlabelled)]
    return Path(folder) / f"{'-'.join(parts)}.json"


def read_results(
    folder: str | Path, ablation: Ablation, files: Mapping[tuple[str, int], Path] | None = None
) -> dict[str, dict[int, dict[str, Any]]]:
    """Read the existing results of an ablation: variant → seed → result.

    Args:
        folder: Folder of the results.
        ablation: The definition.
        files: File of the result of a variant and a seed, for runs whose images and teacher are known.

    Raises:
        RecipeError: The results are of several data sets or teachers, or a result cannot be read.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    origins: dict[Any, tuple[Path, str]] = {}
    runs = ablation.runs()
    for run in runs:
        exact = (files or {}).get((run.variant, run.fields["seed"]))
        for file in _results_of(folder, run, runs) if exact is None else [exact] * exact.exists():
            origin, *images = _origin(file)
            for subject, part in (("teacher", run.distils), origin), (("images", run.unlabelled), images):
                other, known = origins.setdefault(subject, (file, part))
                if part != known:
                    raise _several_origins(folder, other, file)
            found.setdefault(run.variant, {})[run.fields["seed"]] = read_result(file)
    return found


def _results_of(folder: str | Path, run: Run, runs: Sequence[Run]) -> list[Path]:
    """Return the files of the results of a run. Runs that differ only in their unlabelled images are distinguished by their content."""
    files = sorted(Path(folder).glob(f"{run.key}-*.json"))
    if all(other.unlabelled == run.unlabelled for other in runs if other.key == run.key):
        return files
    return [file for file in files if _named_images(file) == run.unlabelled]


def _named_images(file: Path) -> str | None:
    return read_result(file).get("fields", {}).get("unlabelled")


def check_origin(folder: str | Path, run: Run, file: Path) -> None:
    """Check that the folder has no result of the same run on other images or of another teacher.

    Args:
        folder: Folder of the results.
        run: The run.
        file: Path of its future result.

    Raises:
        RecipeError: The folder contains such a result.
    """
    for other in sorted(Path(folder).glob(f"{run.key}-*.json")):
        same_origin = _origin(other)[0] == _origin(file)[0]
        # With the same origin, the result of a run that names other unlabelled images is that of another variant.
        if other.name != file.name and not (same_origin and _named_images(other) != run.unlabelled):
            raise _several_origins(folder, other, file)


def _origin(file: Path) -> list[str]:
    """Return the digest of data and teacher, and that of the unlabelled images if there are any."""
    return file.stem.split("-")[1:]


def _several_origins(folder: str | Path, one: Path, other: Path) -> RecipeError:
    return RecipeError(
        f"The results in {folder} must all be of the same images and the same teacher, so that one table can compare them, "
        f"but {one.name} and {other.name} are not. Give a separate folder (--results) for each data set and teacher, and "
        "another one if the unlabelled images of a variant have changed."
    )


def read_result(file: Path) -> dict[str, Any]:
    """Read the result of a run.

    Raises:
        RecipeError: The file cannot be read, or an accuracy in it is missing or not in [0, 1].
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        metrics = result["metrics"]  # None: the training diverged
        shares = {} if metrics is None else {k: v for k, v in metrics.items() if k.endswith("accuracy")}
        wrong = [name for name, value in shares.items() if type(value) not in (int, float) or not 0 <= value <= 1]
        if wrong or (metrics is not None and "eval_accuracy" not in shares):
            name = wrong[0] if wrong else "eval_accuracy"
            raise ValueError(f"{name} is {shares.get(name)!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{file} is not a valid result ({error!r}). Restore the file, or give another folder (--results), in which "
            "the run is repeated."
        ) from error
    return result


@dataclass(frozen=True)
class Figures:
    """Figures of a row of the table, in percent.

    Args:
        values: Seed → metric, without the seeds whose training diverged.
        diverged: Number of seeds whose training diverged.
        gains: Difference from the first row for each seed that both rows have.
    """

    values: Mapping[int, float]
    diverged: int
    gains: Sequence[float]


def figures(ablation: Ablation, results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[Figures]:
    """Return the figures of each row of the table. All rows are compared with the first row.

    Raises:
        RecipeError: A row names a metric that its runs do not have.
    """
    shown = [_values(row, results.get(row.variant, {})) for row in ablation.rows]
    rows = []
    for row, own in zip(ablation.rows, shown, strict=True):
        diverged = sum(run["metrics"] is None for run in results.get(row.variant, {}).values())
        rows.append(Figures(own, diverged, [own[seed] - shown[0][seed] for seed in sorted(own) if seed in shown[0]]))
    return rows


def _values(row: Row, runs: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    finished = {seed: run["metrics"] for seed, run in runs.items() if run["metrics"] is not None}
    for metrics in finished.values():
        if f"eval_{row.metric}" not in metrics:
            known = ", ".join(sorted(name.removeprefix("eval_") for name in metrics if name.endswith("accuracy")))
            raise RecipeError(
                f"Row {row.title!r} shows the metric {row.metric!r} of the variant {row.variant!r}, but the runs of this "
                f"variant have only {known}. Set the metric of the row to one of these."
            )
    return {seed: 100 * metrics[f"eval_{row.metric}"] for seed, metrics in finished.items()}


def spread(values: Iterable[float]) -> str:
    """Return the text "mean ± standard deviation", the only value, or "–" if there are no values."""
    values = list(values)
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "–"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def gain(values: Sequence[float]) -> str:
    """Return the text "mean difference ± standard error", the only difference, or "–" if there are none."""
    if not values:
        return "–"
    if len(values) < 2:
        return f"{values[0]:+.1f}"
    return f"{statistics.fmean(values):+.1f} ± {statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def _cell(title: str) -> str:
    return " ".join(title.split()).replace("|", "\\|")


def markdown(ablation: Ablation, results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Return the table in Markdown.

    Its columns are mean ± standard deviation, number of seeds, paired gain over the first row ± standard error, and, if
    a row has one, the figure of the paper and its gain.
    """
    first, with_paper = ablation.rows[0], any(row.paper is not None for row in ablation.rows)
    head = ["", "top-1, %", "seeds", f"gain over {_cell(first.title)}"]
    head += ["paper, %", "paper's gain"] * with_paper
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row, shown in zip(ablation.rows, figures(ablation, results), strict=True):
        seeds = str(len(shown.values)) + (f", {shown.diverged} diverged" if shown.diverged else "")
        cells = [_cell(row.title), spread(shown.values.values()), seeds, "" if row is first else gain(shown.gains)]
        if with_paper:
            compared = row is not first and row.paper is not None and first.paper is not None
            cells += ["" if row.paper is None else f"{row.paper:.1f}"]
            cells += [f"{row.paper - first.paper:+.1f}" if compared else ""]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def write_report(
    ablation: Ablation, folder: Path, name: str, known: Mapping[tuple[str, int], Path] | None = None
) -> tuple[str, list[str]]:
    """Write the table and, if matplotlib is installed, a chart beside the results. Rows without values are not in the chart.

    Args:
        ablation: The definition.
        folder: Folder of the results.
        name: Name of the files, without suffix.
        known: File of the result of a variant and a seed, for runs whose images and teacher are known.

    Returns:
        The table, and the names of the files.

    Raises:
        RecipeError: The folder contains no result of the ablation, or the results are invalid (see `read_results` and
            `figures`).
    """
    check_folder(folder, RecipeError)
    results = read_results(folder, ablation, known)
    if not results:
        raise RecipeError(f"{folder} contains no result of {ablation.title!r}. Run it first (--data, --teacher).")
    table, rows, files = markdown(ablation, results), figures(ablation, results), [f"{name}.md"]
    with staged_files(folder) as staging:
        (staging / files[0]).write_text(table, encoding="utf-8")
        if importlib.util.find_spec("matplotlib") is not None and any(row.values for row in rows):
            files.append(f"{name}.png")
            shown = zip(ablation.rows, rows, strict=True)
            seeds = {row.title: list(own.values.values()) for row, own in shown if own.values}
            draw_accuracies(seeds, staging / files[1])
    return table, files
