"""An ablation: named variants of one recipe × seeds, which runs that makes, what is done of them, and the table of it all.

A definition is a YAML: `title`, `recipe` (a name of the package's, or a YAML beside it), `fields` (for all), `seeds`, `variants`
(name → fields) and `rows` of the table (`title`, `variant`, `metric`, `paper`). Of the recipe its data, teacher, folders and seed
do not count. A run is known by its fields, its data and its teacher, not by the definition it stands in: definitions share runs,
and a run that has its result is not done again. Doing runs is run_ablation.py's business, searching for fields search_space.py's.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..files import parsed_yaml
from ..fingerprints import short_digest_of
from ..recipes.recipe import read_fields, recipe_path

# Fields that the command line says, or run_ablation.py itself.
_NOT_HERE = ("data", "teacher", "teacher_weights", "teacher_cache", "verify_teacher_cache", "output_dir", "resume")
# Fields that say where and how often things are written, and nothing about what is trained.
_ABOUT_FILES = frozenset(
    {*_NOT_HERE, "run_name", "report_to", "disable_tqdm", "logging_steps", "logging_strategy", "dataloader_num_workers"}
    | {"eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit"}
)
# Fields that only say how a teacher is listened to: of a run without one they do not count.
_ABOUT_TEACHER = frozenset(
    {"distillation_tau", "distillation_alpha", "distillation_reduction", "distillation_target", "teacher_dtype"}
    | {"teacher_image_mean", "teacher_image_std", "teacher_image_size", "teacher_labels"}
)
_ROW_TYPES = {"title": str, "variant": str, "metric": str, "paper": int | float | None}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        title: Its first cell.
        variant: Whose runs it shows.
        metric: Of their validation, without `eval_`.
        paper: The paper's figure in percent, if it has one.
    """

    title: str
    variant: str
    metric: str = "accuracy"
    paper: float | None = None


@dataclass(frozen=True)
class Run:
    """One training of an ablation.

    Args:
        variant: Its name.
        fields: Every field that is given, the seed too.
    """

    variant: str
    fields: Mapping[str, Any] = field(hash=False)

    @property
    def distils(self) -> bool:
        """Whether it has a teacher."""
        return self.fields.get("distillation_type") != "none"

    @property
    def key(self) -> str:
        """The digest of its fields: 12 hexadecimal digits; where files lie does not count."""
        ignored = _ABOUT_FILES if self.distils else _ABOUT_FILES | _ABOUT_TEACHER
        told = {name: value for name, value in self.fields.items() if name not in ignored}
        return short_digest_of(told)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.variant}, seed {self.fields['seed']}"


@dataclass(frozen=True)
class Ablation:
    """A definition, read and checked; see the module."""

    title: str
    fields: Mapping[str, Any]
    seeds: Sequence[int]
    variants: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Row]
    recipe: str

    def run(self, variant: str, seed: int) -> Run:
        """The training of a variant by a seed."""
        return Run(variant, {**self.fields, **self.variants[variant], "seed": seed})

    def runs(self) -> list[Run]:
        """Every training, seed by seed, so that what is there early can be compared."""
        return [self.run(variant, seed) for seed in self.seeds for variant in self.variants]


def read_ablation(path: str | Path) -> Ablation:
    """Reads a definition.

    Raises:
        RecipeError: It is no YAML of the form above, names an unknown variant, or nothing to run.
        RecipeError: Its recipe is unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"No definition at {path}; training/ablations/ holds some.")
    content = parsed_yaml(path, RecipeError)
    allowed = {"title", "recipe", "fields", "seeds", "variants", "rows"}
    if not isinstance(content, dict) or not allowed - {"fields"} <= set(content) <= allowed:
        given = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise RecipeError(f"{path} holds {given}; it must hold {', '.join(sorted(allowed))} (fields may be left out).")
    for name in ("title", "recipe"):
        if not isinstance(content[name], str):
            raise RecipeError(f"{path}: {name}={content[name]!r}: a text.")
    seeds = content["seeds"]
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise RecipeError(f"{path}: seeds={seeds!r}: a list of whole numbers from 0 to 2**32 - 1, at least one.")
    if len(set(seeds)) < len(seeds):
        raise RecipeError(f"{path}: seeds={seeds}: each once.")
    fields = _fields(path, "fields", content.get("fields"))
    variants = _variants(path, content["variants"])
    rows = _rows(path, content["rows"], variants)
    own_recipe = path.parent / content["recipe"]
    base = read_fields(own_recipe if own_recipe.suffix in (".yaml", ".yml") else recipe_path(content["recipe"]))
    return Ablation(content["title"], {**base, **fields}, seeds, variants, rows, content["recipe"])


def _fields(path: Path, where: str, fields: Any) -> dict[str, Any]:
    if not isinstance(fields, dict | None):
        raise RecipeError(f"{path}: {where} must map fields to values ({{student: plain}}), and is {fields!r}.")
    fields = fields or {}
    strange = [name for name in fields if not isinstance(name, str)]
    if strange:
        raise RecipeError(f"{path}: {where} gives {strange[0]!r}, which is the name of no field.")
    if "seed" in fields:
        raise RecipeError(f"{path}: {where} gives a seed: they stand in seeds, and every variant has them all.")
    elsewhere = [name for name in _NOT_HERE if name in fields]
    if elsewhere:
        raise RecipeError(
            f"{path}: {where} gives {elsewhere[0]}: data and teacher are those of the command line (--data, --teacher), the same "
            "for every variant; caches and folders are made."
        )
    return fields


def _variants(path: Path, variants: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(variants, dict) or not variants:
        raise RecipeError(f"{path}: variants must map names to fields (plain: {{student: plain}}), at least one.")
    return {str(name): _fields(path, f"variant {name!r}", own) for name, own in variants.items()}


def _rows(path: Path, entries: Any, variants: Mapping[str, Any]) -> list[Row]:
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"{path}: rows must list what the table shows, at least one row.")
    rows = [_row(path, entry, variants) for entry in entries]
    titles = [row.title for row in rows]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise RecipeError(f"{path}: two rows are called {twice[0]!r}.")
    unused = sorted(set(variants) - {row.variant for row in rows})
    if unused:
        raise RecipeError(f"{path}: no row shows the variant {unused[0]!r}: its runs would be done for nothing.")
    return rows


def _row(path: Path, entry: Any, variants: Mapping[str, Any]) -> Row:
    try:
        row = Row(**entry)
    except TypeError as error:
        if not isinstance(entry, dict):
            raise RecipeError(f"{path}: row {entry!r} must map title and variant to texts.") from error
        raise RecipeError(f"{path}: row {entry!r} takes title, variant, metric and paper ({error}).") from error
    for name, kind in _ROW_TYPES.items():
        value = getattr(row, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = "a number" if name == "paper" else "a text"
            raise RecipeError(f"{path}: row {entry!r}: {name}={value!r}: {wanted} is wanted.")
    if row.variant not in variants:
        raise RecipeError(
            f"{path}: row {row.title!r} names the variant {row.variant!r}; there are {', '.join(variants)}."
        )
    return row


def result_file(folder: str | Path, run: Run, data: str, teacher: str | None) -> Path:
    """Gives where a run's result lies: its fields, its data and its teacher make the name."""
    return Path(folder) / f"{run.key}-{short_digest_of([data, teacher if run.distils else None])}.json"


def read_results(folder: str | Path, ablation: Ablation) -> dict[str, dict[int, dict[str, Any]]]:
    """Reads what there is of an ablation: variant → seed → result.

    Raises:
        RecipeError: There are results on several data sets or of several teachers, or one cannot be read.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    origins: dict[bool, Path] = {}
    for run in ablation.runs():
        for file in sorted(Path(folder).glob(f"{run.key}-*.json")):
            other = origins.setdefault(run.distils, file)
            if _origin(other) != _origin(file):
                raise _several_origins(folder, other, file)
            found.setdefault(run.variant, {})[run.fields["seed"]] = read_result(file)
    return found


def check_origin(folder: str | Path, run: Run, file: Path) -> None:
    """Refuses to do a run, whose result would be `file`, where there is one on other data or of another teacher.

    Raises:
        RecipeError: There is one.
    """
    for other in sorted(Path(folder).glob(f"{run.key}-*.json")):
        if other.name != file.name:
            raise _several_origins(folder, other, file)


def _origin(file: Path) -> str:
    return file.stem.partition("-")[2]


def _several_origins(folder: str | Path, one: Path, other: Path) -> RecipeError:
    return RecipeError(
        f"{folder} would hold results on two data sets or of two teachers, {one.name} and {other.name}: no table can compare "
        "them. Keep those of one in a folder (--results)."
    )


def read_result(file: Path) -> dict[str, Any]:
    """Reads a result.

    Raises:
        RecipeError: It cannot be read, or an accuracy is none.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        metrics = result["metrics"]
        if not isinstance(metrics, dict | None):
            raise ValueError(f"metrics is {metrics!r}")
        if metrics is not None:
            shares = {name: value for name, value in metrics.items() if name.endswith("accuracy")}
            wrong = [name for name, value in shares.items() if type(value) not in (int, float) or not 0 <= value <= 1]
            if wrong or "eval_accuracy" not in shares:
                name = wrong[0] if wrong else "eval_accuracy"
                raise ValueError(f"{name} is {shares.get(name)!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{file} cannot be read ({error!r}): remove it, and the run is done again.") from error
    return result


@dataclass(frozen=True)
class Figures:
    """What a row shows, in percent.

    Args:
        values: Seed → the metric; without the seeds whose training diverged.
        diverged: Number of those.
        gains: Differences to the first row's variant and metric, seed by seed.
    """

    values: Mapping[int, float]
    diverged: int
    gains: Sequence[float]


def figures(ablation: Ablation, results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[Figures]:
    """Gives the figures of each row of the table; the first row is what the others are compared with.

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
            raise RecipeError(f"Row {row.title!r}: runs of {row.variant!r} have no metric {row.metric!r}, but {known}.")
    return {seed: 100 * metrics[f"eval_{row.metric}"] for seed, metrics in finished.items()}


def spread(values: Iterable[float]) -> str:
    """Gives mean ± standard deviation, or the one value there is."""
    values = list(values)
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "–"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def gain(values: Sequence[float]) -> str:
    """Gives the mean difference ± its standard error."""
    if not values:
        return "–"
    if len(values) < 2:
        return f"{values[0]:+.1f}"
    return f"{statistics.fmean(values):+.1f} ± {statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def _cell(title: str) -> str:
    return " ".join(title.split()).replace("|", "\\|")


def markdown(ablation: Ablation, results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Gives the table: mean ± standard deviation, paired gain over the first row ± standard error, the paper's figures."""
    rows, paper = figures(ablation, results), any(row.paper is not None for row in ablation.rows)
    head = ["", "top-1, %", "seeds", f"gain over {_cell(ablation.rows[0].title)}"] + (
        ["paper, %", "paper's gain"] if paper else []
    )
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    base = ablation.rows[0].paper
    for row, shown in zip(ablation.rows, rows, strict=True):
        seeds = str(len(shown.values)) + (f", {shown.diverged} diverged" if shown.diverged else "")
        cells = [
            _cell(row.title),
            spread(shown.values.values()),
            seeds,
            "" if row is ablation.rows[0] else gain(shown.gains),
        ]
        if paper:
            told = row.paper is not None and base is not None and row is not ablation.rows[0]
            cells += ["" if row.paper is None else f"{row.paper:.1f}", f"{row.paper - base:+.1f}" if told else ""]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
