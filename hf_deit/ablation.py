"""An ablation: named variants of one recipe × seeds, which runs that makes, what is done of them, and the table of it all.

A definition is a YAML: `title`, `recipe` (a name of the package's), `fields` (for all), `seeds`, `variants` (name → fields) and
`rows` of the table (`title`, `variant`, `metric`, `paper`). A run is known by its fields, its data and its teacher, not by the
definition it stands in: definitions share runs, and a run that has its result is not done again. Doing runs is
ablation_runs.py's business, searching for fields sweep.py's.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .recipe_files import read_fields, recipe_path

# Fields that say where and how often things are written, and nothing about what is trained.
_ABOUT_FILES = frozenset(
    {"data", "teacher", "teacher_weights", "teacher_cache", "verify_teacher_cache", "output_dir", "resume", "run_name"}
    | {"report_to", "disable_tqdm", "logging_steps", "logging_strategy", "dataloader_num_workers"}
    | {"eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit"}
)
# Fields that only say how a teacher is listened to: of a run without one they do not count.
_ABOUT_TEACHER = frozenset(
    {"distillation_tau", "distillation_alpha", "distillation_reduction", "distillation_target", "teacher_dtype"}
)


class AblationError(UserError):
    """A definition that says something impossible, or results that do not belong to it."""


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
        """The sign of its fields: 12 hexadecimal digits; where files lie does not count."""
        ignored = _ABOUT_FILES if self.distils else _ABOUT_FILES | _ABOUT_TEACHER
        told = {name: value for name, value in self.fields.items() if name not in ignored}
        return sign(told)

    @property
    def overrides(self) -> list[str]:
        """Its fields as command-line arguments."""
        return as_overrides(self.fields)


@dataclass(frozen=True)
class Ablation:
    """A definition, read and checked; see the module."""

    title: str
    fields: Mapping[str, Any]
    seeds: Sequence[int]
    variants: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Row]
    recipe: str

    def runs(self) -> list[Run]:
        """Every training, seed by seed, so that what is there early can be compared."""
        return [
            Run(name, {**self.fields, **own, "seed": seed})
            for seed in self.seeds
            for name, own in self.variants.items()
        ]


def sign(content: Any) -> str:
    """A short name for plain values: 12 hexadecimal digits of the SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def as_overrides(fields: Mapping[str, Any]) -> list[str]:
    """Gives fields as the command line takes them: `{"crop_scale": [0.5, 1]}` → `["--crop_scale", "0.5", "1"]`."""
    words: list[str] = []
    for name, value in fields.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [
            f"--{name}",
            *(json.dumps(value) if isinstance(value, dict | bool) else str(value) for value in values),
        ]
    return words


def read_ablation(path: str | Path) -> Ablation:
    """Reads a definition.

    Raises:
        AblationError: It is no YAML of the form above, names an unknown variant, or nothing to run.
        RecipeError: Its recipe is unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise AblationError(f"No definition at {path}; training/ablations/ holds some.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AblationError(f"{path} is not valid YAML: {error}") from error
    allowed = {"title", "recipe", "fields", "seeds", "variants", "rows"}
    if not isinstance(content, dict) or not allowed - {"fields"} <= set(content) <= allowed:
        given = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise AblationError(
            f"{path} holds {given}; it must hold {', '.join(sorted(allowed))} (fields may be left out)."
        )
    seeds, variants = content["seeds"], content["variants"]
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise AblationError(f"{path}: seeds={seeds!r}: a list of whole numbers, at least one.")
    if not isinstance(variants, dict) or not all(isinstance(own or {}, dict) for own in variants.values()):
        raise AblationError(f"{path}: variants must map names to fields (plain: {{student: plain}}).")
    rows = [_row(path, entry, variants) for entry in content["rows"] or []]
    if not rows or not variants:
        raise AblationError(f"{path} has no rows or no variants: there is nothing to run or to show.")
    if len({row.title for row in rows}) < len(rows):
        raise AblationError(f"{path}: two rows have one title.")
    base = read_fields(recipe_path(content["recipe"]))
    return Ablation(
        content["title"],
        {**base, **(content.get("fields") or {})},
        seeds,
        {str(name): own or {} for name, own in variants.items()},
        rows,
        content["recipe"],
    )


def _row(path: Path, entry: Any, variants: Mapping[str, Any]) -> Row:
    try:
        row = Row(**entry)
    except TypeError as error:
        raise AblationError(f"{path}: row {entry!r} takes title, variant, metric and paper ({error}).") from error
    if row.variant not in variants:
        raise AblationError(
            f"{path}: row {row.title!r} names the variant {row.variant!r}; there are {', '.join(variants)}."
        )
    return row


def result_file(folder: str | Path, run: Run, data: str, teacher: str | None) -> Path:
    """Gives where a run's result lies: its fields, its data and its teacher make the name."""
    return Path(folder) / f"{run.key}-{sign([data, teacher if run.distils else None])}.json"


def read_results(folder: str | Path, ablation: Ablation) -> dict[str, dict[int, dict[str, Any]]]:
    """Reads what there is of an ablation: variant → seed → result.

    Raises:
        AblationError: There are results of a run on several data sets or teachers, or one cannot be read.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in ablation.runs():
        files = sorted(Path(folder).glob(f"{run.key}-*.json"))
        if len(files) > 1:
            raise AblationError(
                f"{folder} holds results of {run.variant!r} on {len(files)} data sets or teachers ({', '.join(file.name for file in files)}): "
                "keep those of one in a folder."
            )
        for file in files:
            try:
                result = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise AblationError(
                    f"{file} cannot be read ({error}): remove it, and the run is done again."
                ) from error
            found.setdefault(run.variant, {})[run.fields["seed"]] = result
    return found


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
    """Gives the figures of each row of the table; the first row is what the others are compared with."""

    def values(row: Row) -> dict[int, float]:
        runs = results.get(row.variant, {})
        metric = f"eval_{row.metric}"
        return {seed: 100 * run["metrics"][metric] for seed, run in runs.items() if metric in (run["metrics"] or {})}

    first = values(ablation.rows[0])
    rows = []
    for row in ablation.rows:
        own = values(row)
        diverged = sum(run["metrics"] is None for run in results.get(row.variant, {}).values())
        rows.append(Figures(own, diverged, [own[seed] - first[seed] for seed in sorted(own) if seed in first]))
    return rows


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


def markdown(ablation: Ablation, results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Gives the table: mean ± standard deviation, paired gain over the first row ± standard error, the paper's figures."""
    rows, paper = figures(ablation, results), any(row.paper is not None for row in ablation.rows)
    head = ["", "top-1, %", "seeds", f"gain over {ablation.rows[0].title}"] + (
        ["paper, %", "paper's gain"] if paper else []
    )
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    base = ablation.rows[0].paper
    for row, shown in zip(ablation.rows, rows, strict=True):
        seeds = str(len(shown.values)) + (f", {shown.diverged} diverged" if shown.diverged else "")
        cells = [row.title, spread(shown.values.values()), seeds, "" if row is ablation.rows[0] else gain(shown.gains)]
        if paper:
            told = row.paper is not None and base is not None and row is not ablation.rows[0]
            cells += ["" if row.paper is None else f"{row.paper:.1f}", f"{row.paper - base:+.1f}" if told else ""]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
