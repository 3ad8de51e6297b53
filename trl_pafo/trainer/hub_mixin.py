"""HubMixin: what a trainer pushes to the Hub, and the card that goes with it."""

import logging
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import run_as_future
from peft import PeftModel
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from trl_pafo.errors import ConfigError, TrlPafoError
from trl_pafo.models.card import CARD_NAME, Card, hub_ids
from trl_pafo.models.safe_loading import ADAPTER_CONFIG
from trl_pafo.models.upload import create_repo, files_to_push, remove_adapter, upload_model
from trl_pafo.storage.files import replacing, write_text

logger = logging.getLogger(__name__)


def check_strategy(strategy: str) -> None:
    """Raise a [`ConfigError`] where a `hub_strategy` would push the optimizer's state."""
    if HubStrategy(strategy) in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ConfigError(
            f"hub_strategy={HubStrategy(strategy).value!r} would push the optimizer's state, which trl-pafo never does. Use "
            "hub_strategy='every_save' (the model at each save) or 'end', and keep checkpoints on your own disk to resume from."
        )


class HubMixin:
    """
    Pushes of a [`~transformers.Trainer`] that carry the model, its tokenizer and its card, and nothing else of the output folder.

    Put it before the class of the trainer, and say in [`model_card`] what the card says:

    ```python
    class MyTrainer(HubMixin, RewardTrainer):
        def model_card(self):
            return Card("My reward model")
    ```
    """

    # What it uses of the trainer.
    args: Any
    model: Any
    accelerator: Any
    state: Any
    control: Any
    callback_handler: Any
    push_in_progress: Any
    is_world_process_zero: Any
    _finish_current_push: Any
    hub_model_id: Any

    def model_card(self) -> Card:
        """What the card says of the model as it is now. Title, repository and datasets are filled in where it leaves them open."""
        raise NotImplementedError

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        if self.is_world_process_zero():
            check_strategy(self.args.hub_strategy)
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = create_repo(name, token=token or self.args.hub_token, private=private)
            self.push_in_progress = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        if not _internal_call:  # what a user asks for comes with its card
            self._write_card(output_dir or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        # The attribute is of adapters by transformers' `add_adapter`.
        has_adapter = isinstance(model, PeftModel) or getattr(model, "_hf_peft_config_loaded", False)
        if self.args.should_save and not has_adapter:
            remove_adapter(output_dir or self.args.output_dir)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model, its tokenizer and a card in `args.output_dir`, and push these and nothing else.

        The arguments are those of [`~transformers.Trainer`], and `private`; what is not given are `args.hub_token`,
        `args.hub_revision` and `args.hub_private_repo`. `kwargs` are those of [`create_model_card`]. Without `blocking`, a `Future`
        is returned at once; on all processes but the first, `None`.

        Raises:
            HubError: If the Hub refuses or cannot be reached. The model is saved by then.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)  # first: whatever the Hub says, nothing is lost
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:  # called without args.push_to_hub
            self.init_hf_repo(token=token, private=private)
        self.create_model_card(**kwargs)
        self._finish_current_push()
        future = self._push(commit_message or "End of training", token, revision)
        return future.result() if blocking else future

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        running = [] if self.push_in_progress is None or self.push_in_progress.is_done() else self.push_in_progress.jobs
        if running and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:  # a copy, as of the base class: the checkpoint may be removed while it is pushed
            for path in files_to_push(checkpoint_folder):
                with replacing(Path(self.args.output_dir) / path.name) as temporary:
                    shutil.copyfile(path, temporary)
            if not (Path(checkpoint_folder) / ADAPTER_CONFIG).exists():
                remove_adapter(self.args.output_dir)
        except (TrlPafoError, OSError) as error:
            logger.warning(f"The checkpoint was not pushed; the training continues. {error}")
            return
        # The step at the end of an epoch would tell the number of pairs, which the card does not tell of small groups.
        future = self._push("Training in progress")
        future.add_done_callback(_log_failure)
        self.push_in_progress = PushInProgress([*running, future])  # type: ignore[arg-type]

    def _push(self, message: str, token: str | None = None, revision: str | None = None) -> "Future[Any]":
        return run_as_future(
            upload_model,
            self.args.output_dir,
            str(self.hub_model_id),
            message=message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
        )

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write the card to `args.output_dir`.

        The title is the name of the model, by default that of the repository or of the folder. A dataset that is no Hub id is left
        out.
        """
        self._write_card(self.args.output_dir, model_name, dataset_name, [tags] if isinstance(tags, str) else tags or [])

    def _write_card(
        self, folder: str, model_name: str | None = None, dataset_name: str | None = None, tags: list[str] | None = None
    ) -> None:
        if not self.is_world_process_zero():
            return
        card = self.model_card()
        name = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        card = replace(
            card,
            title=model_name or card.title or name.split("/")[-1],
            repo_id=card.repo_id or self.hub_model_id,
            datasets=card.datasets or hub_ids([dataset_name]),
            tags=[*card.tags, *(tags or ())],
        )
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_text(Path(folder) / CARD_NAME, card.render())


def _log_failure(future: "Future[Any]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.warning(f"A push failed; the training continues. {error}")
