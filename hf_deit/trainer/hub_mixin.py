"""`HubMixin`: what the Trainer pushes to the Hub, and the card it writes, made by this package's publishing.

The stock methods upload whatever lies in the folder and write a card without results, licence or recipe. Which files go up
is in publishing.py, what the card says in model_card.py.
"""

import functools
import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.utils import PushInProgress

from ..errors import PublishError, UserError
from ..files import write_json
from ..hub.facts import LOG_FILE, RESULTS_FILE, CardMetadata, facts_of_trainer
from ..hub.model_card import write_card
from ..hub.publishing import commit, explained, published_files
from .validation import Problems, publishing_problems

logger = logging.getLogger(__name__)


def _warn_of_failure(upload: Future) -> None:
    if not upload.cancelled() and upload.exception() is not None:
        logger.warning("A push to the Hub failed, training goes on: %s", upload.exception())


def _first(names: str | list[str] | None) -> str | None:
    return names[0] if isinstance(names, list) and names else names or None


class HubMixin:
    """Adds cards and uploads that hold what they should to a `Trainer` that inherits from this class too."""

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's: makes the repository before the first step, if `push_to_hub` is asked for.

        Raises:
            PublishError: The Hub does not know the token, or was not reached.
            RecipeError: The model could not be published in the end.
        """
        problems = Problems()
        problems.add(publishing_problems(self.model, self.processing_class))
        problems.raise_all()
        init = functools.partial(super().init_hf_repo, *args, **kwargs)
        folder = Path(self.args.output_dir)
        explained(init, self.args.hub_model_id or folder.resolve().name, folder)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes README.md into `output_dir`: the facts of this run as it stands, see model_card.py; and results.json.

        A README.md that was written by hand is left as it is, and the log says so. A student without a transformers
        configuration gets the stock card.

        Args:
            language: As the stock method; not in our card.
            license: Identifier of the Hub.
            tags: As the stock method; not in our card.
            model_name: Title; default: the name in `hub_model_id`, or of `output_dir`.
            finetuned_from: Hub name of the weights the run began with.
            tasks: As the stock method; not in our card.
            dataset_tags: Hub name of the data.
            dataset: The same.
            dataset_args: As the stock method; not in our card.
        """
        if not self.is_world_process_zero():
            return
        if not hasattr(self.accelerator.unwrap_model(self.model).config, "to_json_string"):
            super().create_model_card(language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset)
            return
        folder = Path(self.args.output_dir)
        title = model_name or (self.args.hub_model_id or folder.resolve().name).split("/")[-1]
        statements = CardMetadata(license, finetuned_from, _first(dataset_tags) or _first(dataset))
        facts = facts_of_trainer(self)
        write_json(folder / RESULTS_FILE, facts.results)  # what the card says can be rendered again from the folder
        try:
            write_card(folder, facts, title, statements)
        except PublishError as error:
            logger.warning("No card was rendered: %s", error)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Saves the model and uploads it with processor, card, recipe, results and log, and nothing else.

        Args:
            commit_message: Of the commit.
            blocking: Whether to wait until it is up. If not, a failure is logged and training goes on.
            token: Default: `args.hub_token`, or the login.
            revision: Branch; default: `args.hub_revision`, or main.
            private: Of a repository that is made now; default: `args.hub_private_repo`.
            **kwargs: As `create_model_card`.

        Returns:
            huggingface_hub's CommitInfo, or a future of one; None in processes other than the first.

        Raises:
            PublishError: The model cannot be published, or the Hub did not take it (only if `blocking`).
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, **({} if private is None else {"private": private}))
        self._finish_current_push()  # before the files are replaced that it is reading
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        folder = Path(self.args.output_dir)
        write_json(folder / LOG_FILE, self.state.log_history)
        self.create_model_card(**kwargs)
        try:
            files = published_files(folder, self.hub_model_id)
        except UserError as error:
            if blocking:
                raise
            logger.warning("Nothing was pushed, training goes on: %s", error)
            return None
        revision = revision if revision is not None else self.args.hub_revision
        send = functools.partial(
            commit, HfApi(), self.hub_model_id, files, commit_message, revision, token, not blocking
        )
        done = explained(send, self.hub_model_id, folder)
        if not blocking:
            done.add_done_callback(_warn_of_failure)
            self.push_in_progress = PushInProgress([done])
        return done
