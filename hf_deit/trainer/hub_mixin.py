"""`HubMixin`: pushes and model cards of a Trainer, made by the modules in hub/.

The stock methods upload every file of the output folder and write a card without results, licence or recipe.
hub/publishing.py selects the files to upload, and hub/model_card.py defines the content of a card.
"""

import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.utils import PushInProgress

from ..errors import Problems, PublishError, UserError
from ..files import write_json
from ..hub.facts import LOG_FILE, RESULTS_FILE, CardMetadata, RunSummary, with_files
from ..hub.inspection_files import private_files
from ..hub.model_card import write_card
from ..hub.publishing import explain_failures, published_files
from .checks import publishing_problems

logger = logging.getLogger(__name__)


def _warn_of_failure(upload: Future) -> None:
    if not upload.cancelled() and upload.exception() is not None:
        logger.warning("A push to the Hub failed; training continues: %s", upload.exception())


def _first(names: str | list[str] | None) -> str | None:
    return names[0] if isinstance(names, list) and names else names or None


class HubMixin:
    """Mixin that replaces the model cards and uploads of a `Trainer`. It must come before the Trainer in the bases."""

    def summary(self) -> RunSummary:
        """Return the facts of the run that its card shows. The class that uses this mixin must define this method."""
        raise NotImplementedError(f"{type(self).__name__} does not define summary(), which the model card needs.")

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Create the repository on the Hub. The Trainer calls this before the first step if `push_to_hub` is set.

        Raises:
            PublishError: The token is invalid, or the Hub cannot be reached.
            RecipeError: The model could not be published at the end of the run.
        """
        problems = Problems()
        problems.add(publishing_problems(self.model, self.processing_class))
        problems.raise_all()
        folder = Path(self.args.output_dir)
        with explain_failures(self.args.hub_model_id or folder.resolve().name, folder):
            super().init_hf_repo(*args, **kwargs)

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
        """Write the model card (README.md) and results.json into `output_dir`, from the present state of the run.

        If README.md was written by hand, it is not changed, and a warning is logged. A student without a transformers
        configuration gets the stock card.

        Args:
            language: Used by the stock card only.
            license: Licence identifier of the Hub.
            tags: Used by the stock card only.
            model_name: Title of the card. Default: the name in `hub_model_id`, else the name of `output_dir`.
            finetuned_from: Hub name of the weights that training started from.
            tasks: Used by the stock card only.
            dataset_tags: Hub name of the data.
            dataset: Hub name of the data, if `dataset_tags` is not given.
            dataset_args: Used by the stock card only.
        """
        if not self.is_world_process_zero():
            return
        if not hasattr(getattr(self.accelerator.unwrap_model(self.model), "config", None), "to_json_string"):
            super().create_model_card(
                language=language,
                license=license,
                tags=tags,
                model_name=model_name,
                finetuned_from=finetuned_from,
                tasks=tasks,
                dataset_tags=dataset_tags,
                dataset=dataset,
                dataset_args=dataset_args,
            )
            return
        folder = Path(self.args.output_dir)
        title = model_name or (self.args.hub_model_id or folder.resolve().name).split("/")[-1]
        metadata = CardMetadata(
            license=license, base_model=finetuned_from, dataset=_first(dataset_tags) or _first(dataset)
        )
        summary = with_files(self.summary(), folder)
        write_json(folder / RESULTS_FILE, summary.results)  # so that the card can be rendered again from the folder
        try:
            write_card(folder, summary, title, metadata)
        except PublishError as error:
            logger.warning("No model card was written: %s", error)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model and upload it with its image processor, card, recipe, results and log, and no other files.

        Args:
            commit_message: Message of the commit.
            blocking: Whether to wait until the upload is finished. If not, a failure is logged and training continues.
            token: Access token of the Hub. Default: `args.hub_token`, else the stored login.
            revision: Branch of the repository. Default: `args.hub_revision`, else main.
            private: Whether a new repository is private. Default: `args.hub_private_repo`.
            **kwargs: Arguments of `create_model_card`.

        Returns:
            The `CommitInfo` of huggingface_hub, or a future of it if not `blocking`. None in all processes except the
            first; also None if `blocking` is False and the model cannot be published.

        Raises:
            PublishError: The model cannot be published, or the upload failed (only if `blocking`).
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, **({} if private is None else {"private": private}))
        self._finish_current_push()  # the running push reads the files that are replaced below
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
            logger.warning("Nothing was pushed; training continues: %s", error)
            return None
        if kept := private_files(folder):
            logger.info("Not uploaded, because they hold photographs of your data or name them: %s.", ", ".join(kept))
        with explain_failures(self.hub_model_id, folder):
            upload = HfApi().create_commit(
                self.hub_model_id,
                files,
                commit_message=commit_message,
                revision=revision if revision is not None else self.args.hub_revision,
                token=token,
                run_as_future=not blocking,
            )
        if not blocking:
            upload.add_done_callback(_warn_of_failure)
            self.push_in_progress = PushInProgress([upload])
        return upload
