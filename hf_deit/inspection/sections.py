"""The sections of a report: their text, tables, figures and photographs, from the numbers of the other files of this folder.

Each section says in plain sentences what is shown, what to do next and what is not known. quality_sections.py and image_sections.py
have most of them; here are those about the model as a whole. report.html.jinja has the layout.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import yaml

from ..hub.facts import public_recipe
from . import figures
from .image_sections import duplicates, mislabelled, mistakes, multi_label_mistakes, unsure
from .layer_figures import cosine_figure
from .measures import headline
from .quality_sections import classes, confusion, coverage, multi_label_classes, reliability
from .section_parts import Findings, Section, counted, number, percent, say, table_block
from .style import as_svg, drawn
from .table import HEAD_TITLES, PREDICTION, ImageTable
from .thumbnails import Thumbnails


def build_sections(found: Findings, thumbnails: Thumbnails) -> Iterator[Section]:
    """Yield the sections of a report, in order. Sections that need labels are left out if no image has one."""
    has_labels = len(found.labelled) > 0
    yield _headline(found)
    yield _curves(found)
    if has_labels:
        yield reliability(found)
        if found.table.multi_label:
            yield multi_label_classes(found)
            yield multi_label_mistakes(found, thumbnails)
            yield mislabelled(found, thumbnails)
        else:
            yield confusion(found, thumbnails)
            yield classes(found)
            yield mistakes(found, thumbnails)
            yield mislabelled(found, thumbnails)
    yield duplicates(found, thumbnails)
    if has_labels and not found.table.multi_label:
        yield coverage(found)
    yield unsure(found, thumbnails)
    yield _map(found)
    if found.tokens is not None:
        yield _tokens(found)
    yield _about(found)


# ---- headline ----


def _headline(found: Findings) -> Section:
    table, labelled = found.table, found.labelled
    section = Section("headline", "How good is it?")
    seen = f"{counted(len(table))} of the split “{table.split}”"
    if len(table) + len(table.failures) < table.all_images:
        seen += f", out of {number(table.all_images)}: a random sample, because the time for this report is limited"
    section.texts.append(f"The model was run on {seen}.")
    if len(labelled) < len(table):
        section.texts.append(
            f"{number(len(table) - len(labelled))} of them have no label and count in no figure that needs one."
        )
    if table.failures:
        section.texts.append(f"{counted(len(table.failures))} could not be read and are left out.")
    if found.teacher:
        section.texts.append(found.teacher)
    if not len(labelled):
        section.texts.append("No image has a label, so it is not known how often the model is right.")
        section.next = "Label a random sample of a few hundred images, and make the report on them."
        return section
    values = headline(labelled)
    blocks = _multi_label_figures(found, values) if table.multi_label else _single_label_figures(found, values)
    section.blocks.append({"kind": "figures", "figures": blocks})
    low_high = values["interval"]
    if not table.multi_label:
        say(
            section,
            f"Top-1 accuracy is the share of images whose most probable class is the label. With {counted(len(labelled))}, the true "
            f"accuracy on such images lies between {percent(low_high[0])} and {percent(low_high[1])} in 95 of 100 such cases: "
            "a difference between two models that is smaller than this interval may be chance.",
        )
        section.next = (
            "Compare the figure with that of the most frequent class, which a model reaches without looking at the image"
            + (", and with the teacher, which shows what is possible on these images." if found.has_teacher else ".")
        )
    else:
        say(
            section,
            "Each class of each image is a decision of its own. Average precision tells how well the scores of a class rank the "
            "images that have it above the others: 100 % is perfect. Chance is the share of images that have the class.",
        )
        section.next = "Look for the classes with a low average precision in the table of classes below."
    return section


def _single_label_figures(found: Findings, values: Mapping[str, Any]) -> list[dict[str, str]]:
    low, high = values["interval"]
    rows = [_figure("top-1 accuracy", values["accuracy"], f"95 % interval {percent(low)} to {percent(high)}")]
    if found.has_teacher:
        agreement = f"student and teacher agree on {percent(values['agreement'])}"
        rows.append(_figure("teacher", values["teacher_accuracy"], agreement))
    frequent = found.table.class_names[values["majority_class"]]
    rows.append(_figure("most frequent class", values["majority"], f"always answering “{frequent}”"))
    rows.append(_figure("balanced accuracy", values["balanced_accuracy"], "mean over the classes that occur"))
    rows += [
        _figure(HEAD_TITLES[name], values[f"{name}_accuracy"], "top-1 accuracy of this head alone")
        for name in found.table.heads
        if name != PREDICTION
    ]
    if "top5_accuracy" in values:
        rows.append(_figure("top-5 accuracy", values["top5_accuracy"], "label among the 5 most probable classes"))
    return rows


def _multi_label_figures(found: Findings, values: Mapping[str, Any]) -> list[dict[str, str]]:
    interval = values["interval"]
    note = "" if interval is None else f"95 % interval {percent(interval[0])} to {percent(interval[1])}"
    rows = [_figure("mean average precision", values["mean_average_precision"], note)]
    for name in found.table.probabilities:
        if name != PREDICTION:
            rows.append(_figure(HEAD_TITLES[name], values[f"{name}_mean_average_precision"], "mean average precision"))
    rows.append(_figure("chance", values["chance"], "mean average precision of random scores"))
    for average in ("macro", "micro"):
        rows.append(_figure(f"F1, {average}", values.get(f"f1_{average}"), "classes above 50 % count as predicted"))
    return rows


def _figure(title: str, value: float | None, note: str) -> dict[str, str]:
    return {"title": title, "value": percent(value), "note": note}


# ---- training curves ----


def _curves(found: Findings) -> Section:
    section = Section("training", "How did it learn?")
    score = "mean_average_precision" if found.table.multi_label else "accuracy"
    figure = None if not found.log else drawn(figures.training_curves, found.log, score)
    if figure is None:
        section.texts.append("No training log is beside the model, so its training curves are not known.")
        return section
    section.texts.append(
        "Loss is what the training makes small. Each term is drawn by itself: what the class head learns from the labels, and what "
        "is learned from the teacher. Training images are augmented and may be mixed, so their loss can be above that of the "
        "validation images."
    )
    section.blocks.append(
        {"kind": "svg", "svg": as_svg(figure, "curves", "Training curves"), "label": "Training curves"}
    )
    section.next = (
        "If the validation curves still improve at the end, train for more epochs. If they turn back while the training loss falls, "
        "the model learns its training images by heart: use more images, stronger augmentation, or fewer epochs."
    )
    return section


# ---- map ----


def _map(found: Findings) -> Section:
    table = found.table
    section = Section("map", "How does it see the images?")
    if table.embeddings is None or len(table) < 5:
        section.texts.append(
            "There is no map: the model has no embeddings that are known here, or there are fewer than 5 images."
        )
        return section
    chosen = np.linspace(0, len(table) - 1, min(len(table), figures.MOST_MAPPED)).astype(int)
    part = table.rows(np.unique(chosen))
    groups, names = _groups(part)
    wrong = np.zeros(len(part), bool) if part.multi_label else part.labelled & (part.predicted() != part.labels)
    places = figures.embedding_places(part.embeddings)
    figure = drawn(figures.embedding_map, places, groups, names, wrong)
    title = "Map of the images by their embeddings"
    section.texts.append(
        f"Each point is one of {counted(len(part))}; points are close if the model sees the images alike (its class token, brought to two "
        "dimensions by t-SNE). Only neighbourhoods mean something: directions, distances between groups and their sizes do not."
    )
    section.blocks.append({"kind": "svg", "svg": as_svg(figure, "map", title), "label": title})
    section.next = (
        "A point inside the group of another class is worth a look: it is often in the list of probably wrong labels."
    )
    return section


def _groups(table: ImageTable) -> tuple[np.ndarray, list[str]]:
    """Return the group of each image and the names of the groups: its label or, without a label, its prediction."""
    kinds = np.where(table.labelled, table.predicted() if table.multi_label else table.labels, table.predicted())
    counts = np.bincount(kinds, minlength=len(table.class_names))
    largest = sorted(np.argsort(-counts, kind="stable")[:10].tolist())
    groups = np.full(len(table), -1)
    for group, index in enumerate(largest):
        groups[kinds == index] = group
    return groups, [table.class_names[index] for index in largest]


# ---- tokens ----


def _tokens(found: Findings) -> Section:
    tokens = found.tokens
    section = Section("tokens", "Do the two heads read different things?")
    section.texts.append(
        "The class head reads the class token, the distillation head the distillation token. The cosine of the two is 1 if they point the "
        f"same way. It is the mean over {counted(tokens.images)} here: {tokens.learned_cosine:.2f} for the learned tokens, "
        f"{tokens.cosine[0]:.2f} after the first layer and {tokens.cosine[-1]:.2f} after the last one. The band is the standard deviation "
        "between images. The paper reports 0.06 and 0.93 for a model trained on ImageNet from scratch."
    )
    title = "Cosine of the class token and the distillation token, layer by layer"
    figure = drawn(cosine_figure, tokens)
    section.blocks.append({"kind": "svg", "svg": as_svg(figure, "tokens", title), "label": title})
    section.next = (
        "If the cosine is near 1 in every layer, as after short fine-tuning, both heads read one vector, and their mean is hardly more than "
        "one head. hf-deit explain shows what each token reads of an image."
    )
    return section


# ---- about ----


def _about(found: Findings) -> Section:
    section = Section("about", "What is this model, and what is not known?")
    facts = found.facts
    run = facts.run
    rows = [["architecture", str((facts.config.get("architectures") or ["unknown"])[0])]]
    rows += [["classes", number(len(found.table.class_names))]]
    size = facts.config.get("image_size")
    rows += [["image size", "unknown" if size is None else f"{size} pixels"]]
    for name, title in (("parameters", "parameters"), ("train_images", "training images"), ("device", "trained on")):
        if run.get(name) is not None:
            rows.append([title, number(run[name]) if isinstance(run[name], int) else str(run[name])])
    if facts.results.get("steps") is not None:
        rows.append(["optimizer steps", number(facts.results["steps"])])
    rows += [[package, str(version)] for package, version in sorted((run.get("versions") or {}).items())]
    section.blocks.append(table_block("The model and its run", ["property", "value"], rows))
    if facts.recipe:
        text = yaml.safe_dump(public_recipe(facts.recipe), sort_keys=True, allow_unicode=True)
        section.blocks.append({"kind": "details", "summary": "All fields of the recipe", "text": text})
    else:
        section.blocks.append({"kind": "text", "text": "The recipe of the model is not known."})
    section.blocks.append({"kind": "list", "title": "What is not known", "texts": list(found.notes)})
    return section
