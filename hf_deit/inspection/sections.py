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
from .measures import headline, paired_interval
from .quality_sections import classes, confusion, coverage, multi_label_classes, reliability
from .recipe_tables import changed_rows, main_rows
from .section_parts import (
    Findings,
    Section,
    answer,
    beyond_chance,
    chart,
    counted,
    interval,
    label_of,
    number,
    percent,
    point_interval,
    points,
    say,
    short_name,
    table_block,
)
from .style import as_svg, drawn
from .table import HEAD_TITLES, PREDICTION, TEACHER, ImageTable
from .thumbnails import Thumbnails
from .token_layers import TokenLayers

# Cosine of what both heads read.
_SAME_VECTOR, _SIMILAR_VECTORS = 0.99, 0.9


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
    if len(table.heads) > 1:
        section.texts.append(
            "The model has two heads (final linear layers): the class head reads the class token and learns from the labels, the "
            "distillation head reads the distillation token and is there to learn from the teacher. “Prediction” is the answer of the "
            "model: it comes from the mean of both heads’ logits."
        )
    if found.has_teacher:
        section.texts.append(
            "The teacher is the model that was given to this report as such, as a rule the one that this model, the student, learned "
            "from. It is no upper limit: a student can be better or worse than its teacher."
        )
    if found.teacher:
        section.texts.append(found.teacher)
    if not len(labelled):
        section.texts.append("No image has a label, so it is not known how often the model is right.")
        section.next = "Label a random sample of a few hundred images, and make the report on them."
        return section
    values = headline(labelled)
    blocks = _multi_label_figures(found, values) if table.multi_label else _single_label_figures(found, values)
    section.blocks.append({"kind": "figures", "figures": blocks})
    if table.multi_label:
        say(
            section,
            "Each class of each image is a decision of its own. Average precision tells how well the scores of a class rank the "
            "images that have it above the others: 100 % is perfect. Chance is the share of images that have the class.",
        )
        section.next = "Look for the classes with a low average precision in the table of classes below."
    else:
        say(
            section,
            "Top-1 accuracy is the share of images whose most probable class is the label. "
            + _what_is_measured_against_what(found),
        )
        section.next = _against_majority(found, values)
    say(section, _what_intervals_are(found, len(labelled)))
    if values.get("difference_interval") is not None:
        say(section, _against_teacher(values, "mean average precision" if table.multi_label else "accuracy"))
    return section


def _what_is_measured_against_what(found: Findings) -> str:
    measured = [*(["each head"] if len(found.table.heads) > 1 else []), *(["the teacher"] if found.has_teacher else [])]
    texts = []
    if measured:
        texts.append(f"The accuracy of {' and of '.join(measured)} is measured against the labels too.")
    if found.has_teacher:
        texts.append("Agreement is the share of images for which the student predicts the same class as the teacher.")
    return " ".join(texts)


def _what_intervals_are(found: Findings, images: int) -> str:
    how = "bootstrap over the images" if found.table.multi_label else "Wilson’s score interval"
    return (
        f"With {counted(images)}, no figure is exact: in 95 of 100 such samples of images, the 95 % interval ({how}) contains the value "
        "for all images of this kind."
    )


def _against_teacher(values: Mapping[str, Any], score: str) -> str:
    """Return the sentences that compare student and teacher on the same images."""
    difference, low_high = values["difference"], values["difference_interval"]
    how = "bootstrap over the images" if "mean_average_precision" in values else "Newcombe’s interval for paired shares"
    text = (
        f"To compare two models on the same images, look at the interval of their difference, and not at whether their own intervals "
        f"overlap. Student − teacher is {points(difference)} of {score}, 95 % interval {point_interval(low_high)} ({how})."
    )
    if not beyond_chance(low_high):
        return f"{text} The interval contains 0: the difference may be chance, and neither is shown to be better."
    return f"{text} The interval does not contain 0: the student is {'better' if difference > 0 else 'worse'} than the teacher beyond chance."


def _against_majority(found: Findings, values: Mapping[str, Any]) -> str:
    name, low = found.table.class_names[values["majority_class"]], values["interval"][0]
    always = f"always answering “{name}”, which is right for {percent(values['majority'])}"
    if low > values["majority"]:
        text = f"The model is better than {always}."
        return f"{text} The sections on confusions and on classes show where it still loses."
    return f"The model is not shown to be better than {always}: look at the training curves first, it may not have learned."


def _single_label_figures(found: Findings, values: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = [_figure("top-1 accuracy", values["accuracy"], f"95 % interval {interval(values['interval'])}")]
    if found.has_teacher:
        agreement = f"student and teacher agree on {percent(values['agreement'])}"
        note = f"95 % interval {interval(values['teacher_interval'])}"
        rows.append(_figure("teacher", values["teacher_accuracy"], note))
        rows.append(_difference_figure(values, agreement))
    frequent = found.table.class_names[values["majority_class"]]
    rows.append(_figure("most frequent class", values["majority"], f"always answering “{frequent}”"))
    rows.append(_figure("balanced accuracy", values["balanced_accuracy"], "mean recall of the classes that occur"))
    rows += [
        _figure(HEAD_TITLES[name], values[f"{name}_accuracy"], "top-1 accuracy of this head alone")
        for name in found.table.heads
        if name != PREDICTION
    ]
    if "top5_accuracy" in values:
        rows.append(_figure("top-5 accuracy", values["top5_accuracy"], "label among the 5 most probable classes"))
    return rows


def _difference_figure(values: Mapping[str, Any], more: str) -> dict[str, str]:
    low_high = values["difference_interval"]
    known = [] if low_high is None else [f"95 % interval {point_interval(low_high)}"]
    note = "; ".join([*known, *([more] if more else [])])
    return {"title": "student − teacher", "value": points(values["difference"]), "note": note}


def _multi_label_figures(found: Findings, values: Mapping[str, Any]) -> list[dict[str, str]]:
    def note(key: str) -> str:
        return "" if values.get(key) is None else f"95 % interval {interval(values[key])}"

    rows = [_figure("mean average precision", values["mean_average_precision"], note("interval"))]
    for name in found.table.probabilities:
        if name != PREDICTION:
            more = note("teacher_interval") if name == TEACHER else "of this head alone"
            rows.append(_figure(HEAD_TITLES[name], values[f"{name}_mean_average_precision"], more))
    if values.get("difference") is not None:
        rows.append(_difference_figure(values, ""))
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
    log = found.log or []
    losses = drawn(figures.loss_curves, log)
    scores = drawn(figures.score_curves, log, score)
    charts = [
        {"svg": as_svg(figure, name, title), "label": title}
        for name, title, figure in (
            ("losses", "Losses of the training", losses),
            ("scores", f"{score.replace('_', ' ').capitalize()} on the validation images", scores),
        )
        if figure is not None
    ]
    if losses is None:
        section.texts.append("No training log is beside the model, so its training curves are not known.")
        return section
    section.texts.append(
        "Loss is what the training makes small. “All terms” is the weighted sum; each term is also drawn by itself: what the class "
        "head learns from the labels, and what is learned from the teacher, as far as the training had them. Training images are "
        "augmented and may be mixed, so their loss can be above that of the validation images."
    )
    section.blocks.append({"kind": "svgs", "charts": charts})
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
    title = "Map of the images by their embeddings"
    section.texts.append(
        f"Each point is one of {counted(len(part))}; points are close if the model sees the images alike (its class token, brought to two "
        "dimensions by t-SNE). Only neighbourhoods mean something: directions, distances between groups and their sizes do not."
    )
    section.texts.append(_what_colours_mean(part, wrong))
    section.blocks.append(
        chart(
            figures.embedding_map,
            *(places, groups, names, wrong),
            name="map",
            title=title,
            points=[_about_point(part, index) for index in range(len(part))],
        )
    )
    if part.labelled.any() and not part.multi_label:
        section.next = "A point inside the group of another class is worth a look: its label may be wrong, or the image may show two things."
    return section


def _what_colours_mean(table: ImageTable, wrong: np.ndarray) -> str:
    labelled = int(table.labelled.sum())
    if table.multi_label or not labelled:
        kind = "most probable class"
    else:
        kind = "label" if labelled == len(table) else "label or, without a label, the predicted class"
    rings = f" The {number(int(wrong.sum()))} rings mark wrong predictions." if wrong.any() else ""
    return (
        f"Colour and shape are those of the {kind}; the name of a class is at the centre of its points.{rings} On a wide screen, a point "
        "shows its file, label and prediction when the pointer rests on it."
    )


def _about_point(table: ImageTable, index: int) -> str:
    predicted = answer(table.class_names[table.predicted()[index]], table.confidence()[index])
    label = label_of(table, index) or "none"
    return f"{short_name(table.files[index])}\nlabel: {label}\nprediction: {predicted}"


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
        "A token is a vector that the transformer carries from layer to layer. The class head reads the class token, the distillation "
        "head the distillation token. The cosine of the two is 1 if they point the same way, and 0 if they have no direction in common."
    )
    section.texts.append(
        f"In the chart, “learned” compares the tokens as the model stores them, “input” the same with their position embeddings, the "
        f"numbers are layers, and “norm” is after the final layer norm: the vectors that the heads read. A dot is the mean over {counted(tokens.images)}, "
        "the band one standard deviation between images to both sides; where there is no band to see, the images hardly differ."
    )
    paper = tokens.paper
    section.texts.append(
        f"Measured here: {tokens.learned_cosine:.2f} for the learned tokens, {tokens.cosine[0]:.2f} after the first layer, "
        f"{tokens.cosine[-1]:.2f} after the last one, {tokens.final_cosine[0]:.2f} after the norm. The DeiT paper "
        f"(Touvron et al., arXiv:2012.12877, section 4) reports {paper.learned:.2f} for the learned tokens and {paper.last_layer:.2f} after "
        "the last layer, for a model that was trained on ImageNet from scratch."
    )
    title = "Cosine of the class token and the distillation token, layer by layer"
    section.blocks.append(chart(cosine_figure, tokens, name="tokens", title=title))
    say(section, _what_the_cosine_means(tokens))
    section.next = " ".join([*_heads_together(found), "`hf-deit explain` shows what each token reads of an image."])
    return section


def _what_the_cosine_means(tokens: TokenLayers) -> str:
    value = tokens.final_cosine[0]
    if value >= _SAME_VECTOR:
        return (
            f"What {value:.2f} means: both heads read the same vector, or almost, so the second token adds nothing of its own; only the linear "
            "layers of the heads differ. That is no fault, and no gain either. It happens when a plain ViT is fine-tuned, because the "
            "distillation token then starts as a copy of the class token (docs/method.md, “What the two tokens see”)."
        )
    if value >= _SIMILAR_VECTORS:
        return f"What {value:.2f} means: the heads read similar vectors that are not the same, as in the paper: the second token adds something of its own."
    return f"What {value:.2f} means: the heads read different vectors, more so than in the paper. Whether the second one helps is seen in the accuracies."


def _heads_together(found: Findings) -> list[str]:
    """Return what both heads gain together on these images, as sentences."""
    table = found.labelled if len(found.labelled) else found.table
    if table.multi_label or not {"cls", "distillation"} <= set(table.heads):
        return []
    same = float((table.predicted("cls") == table.predicted("distillation")).mean())
    texts = [f"Both heads predict the same class for {percent(same)} of {counted(len(table))}."]
    if len(found.labelled):
        mean, alone = (float((table.predicted(name) == table.labels).mean()) for name in (PREDICTION, "cls"))
        low_high = paired_interval(table.predicted() == table.labels, table.predicted("cls") == table.labels)
        chance = "more than chance explains" if beyond_chance(low_high) else "which may be chance"
        if mean == alone:
            texts.append("Their mean is right as often as the class head alone.")
        else:
            texts.append(
                f"The accuracy of their mean differs from that of the class head alone by {points(mean - alone)}, {chance}."
            )
    return texts


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
    section.blocks.append(table_block("The model and its run", ["property", "value"], rows, text=True))
    if facts.recipe:
        section.blocks.append(
            table_block("The main values of the recipe", ["property", "value"], main_rows(facts.recipe), text=True)
        )
        changed = changed_rows(facts.recipe)
        if changed:
            caption = "Other fields of the recipe that differ from their defaults"
            section.blocks.append(table_block(caption, ["field", "value", "default"], changed, text=True))
        text = yaml.safe_dump(public_recipe(facts.recipe), sort_keys=True, allow_unicode=True)
        section.blocks.append({"kind": "details", "summary": "All fields of the recipe", "text": text})
    else:
        section.blocks.append({"kind": "text", "text": "The recipe of the model is not known."})
    section.blocks.append({"kind": "list", "title": "What is not known", "texts": list(found.notes)})
    return section
