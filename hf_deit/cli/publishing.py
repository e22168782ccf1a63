"""Commands that publish a model: its card, its upload, its demo Space."""

import argparse
from typing import Any

from .common import print_table


def _add_publishing(commands: Any) -> None:
    card = commands.add_parser("card", help="render the card of a model (README.md) again from the files in its folder")
    card.add_argument("model", help="folder of the model")
    card.add_argument(
        "--license",
        metavar="ID",
        help="licence identifier of the Hub, such as apache-2.0; unknown withdraws a licence (default: as in the "
        "present card)",
    )
    card.add_argument(
        "--base_model",
        metavar="NAME",
        help="Hub name of the weights that training started from (default: as in the present card)",
    )
    card.add_argument("--dataset", metavar="NAME", help="Hub name of the data (default: as in the present card)")
    card.add_argument("--data_license", metavar="TEXT", help="licence of the data (default: as in the present card)")
    card.add_argument(
        "--base_model_license",
        metavar="TEXT",
        help="licence of the weights that training started from (default: as in the present card)",
    )

    push = commands.add_parser(
        "push",
        help="publish a model on the Hub: only configuration, weights, image processor, card and its "
        "figures, recipe, results, training log and calibration; never a report, which holds photographs",
        epilog="The push uses the login of `hf auth login`. A push that failed can be repeated.",
    )
    push.add_argument("model", help="folder of the model")
    push.add_argument("repo", help="owner/name on the Hub; a missing repository is created")
    push.add_argument("--private", action="store_true", help="create a private repository; refuse a public one")
    push.add_argument("--branch", help="branch to push to; a missing branch is created (default: main)")
    push.add_argument("--tag", help="new tag for the commit, such as v1.0")
    push.add_argument(
        "--dry-run", action="store_true", help="list the files that would be uploaded, with sizes, and send nothing"
    )

    space = commands.add_parser(
        "space", help="make a folder to push as a Gradio Space, which shows the classes of every head and the attention"
    )
    space.add_argument("model", metavar="MODEL", help="folder of a model, which is copied; or a Hub name")
    space.add_argument("out", metavar="OUT", help="new or empty folder")
    space.add_argument(
        "--license", metavar="ID", help="licence identifier of the Hub, such as apache-2.0 (default: unknown)"
    )
    space.add_argument("--title", help="title of the Space (default: the name of the model)")


def _card(options: argparse.Namespace, fields: list[str]) -> None:
    from ..hub.facts import CardMetadata
    from ..hub.model_card import render_model_card

    names = ("license", "base_model", "dataset", "data_license", "base_model_license")
    metadata = CardMetadata(**{name: getattr(options, name) for name in names})
    print(f"Written to {render_model_card(options.model, metadata)}")


def _space(options: argparse.Namespace, fields: list[str]) -> None:
    from ..hub.space import make_space

    files = make_space(options.model, options.out, options.license, options.title)
    print(f"Written to {options.out}: {', '.join(files)}")
    print(
        "README.md in it explains how to run the app here (in an environment with gradio) and how to push the folder."
    )


def _push(options: argparse.Namespace, fields: list[str]) -> None:
    from ..hub.inspection_files import private_files
    from ..hub.publishing import push

    files, address = push(options.model, options.repo, options.private, options.branch, options.tag, options.dry_run)
    sizes = {file.path_in_repo: file.upload_info.size for file in files}
    print_table([["file", "bytes"], *([name, f"{size:,}"] for name, size in sizes.items())])
    done = f"Pushed to {address}" if address else f"Dry run: nothing was sent to {options.repo}"
    print(f"\n{done}: {len(sizes)} files, {sum(sizes.values()):,} bytes.")
    if kept := private_files(options.model):
        print(f"Not uploaded, because they hold photographs of your data or name them: {', '.join(kept)}.")
