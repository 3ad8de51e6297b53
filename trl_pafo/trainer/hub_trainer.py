"""HubRewardTrainer: the hooks of a trainer by which a model and its card reach the Hub, and nothing else does."""

import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset
from huggingface_hub import HfApi
from peft import PeftModel
from transformers import is_wandb_available
from transformers.utils import PushInProgress
from trl.data_utils import get_dataset_column_names, is_conversational
from trl.trainer.utils import get_comet_experiment_url, get_config_model_id, get_trackio_space_url

from trl_pafo.data.overlap import pairs_in_common
from trl_pafo.errors import TrlPafoError
from trl_pafo.hub import upload as hub
from trl_pafo.hub.card import (
    CARD_NAME,
    HYPERPARAMETERS,
    PAPER,
    STUDENT_HYPERPARAMETERS,
    Accuracy,
    Card,
    GroupCount,
    base_id,
    hides_groups,
    hub_ids,
    wilson_interval,
)
from trl_pafo.metrics.intervals import fewest_users
from trl_pafo.trainer.evaluation import ExactRewardTrainer

logger = get_logger(__name__)


class HubRewardTrainer(ExactRewardTrainer):
    """
    [`ExactRewardTrainer`] that pushes the model, its tokenizer and a card, chosen file by file.

    A subclass calls `_prepare_to_push` before the base class loads a model.
    """

    _paper = PAPER
    _distills = False
    dropped_pairs: dict[str, Counter[str]]
    """Pairs dropped because they are longer than `max_length`, by dataset and group."""

    hub_model_id: Any
    push_in_progress: Any
    _given_rows: Dataset | None = None
    _evaluated: dict[tuple[str, float], tuple[Any, int | None]]
    """What an evaluation at a step, by its prefix, was on, and how many of these pairs were trained on, once that is known."""
    _is_conversational: bool | None = None
    _dataset_name: str | None = None
    _group_counts: list[GroupCount] | None = None
    _jobs: HfApi | None = None

    def _prepare_to_push(self, args: Any, train_dataset: Any) -> None:
        """Raise what would make a push fail after the training; look at the rows as they were given, for the card."""
        self._evaluated = {}
        if args.push_to_hub:
            hub.check_before_training(
                args.hub_model_id,
                args.output_dir,
                strategy=args.hub_strategy.value,
                token=args.hub_token,
                asks_hub=PartialState().is_main_process,
            )
        if train_dataset is None:
            return
        columns = get_dataset_column_names(train_dataset)
        if "chosen_ids" not in columns:
            first = next(iter(train_dataset), None)
            self._is_conversational = first is not None and ("history" in columns or is_conversational(first))
        if isinstance(train_dataset, Dataset):
            self._given_rows = train_dataset.select_columns([n for n in ("group", "user", "has_label") if n in columns])

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        if not self.is_world_process_zero():
            return
        args = self.args
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        private = args.hub_private_repo if private is None else private
        self.hub_model_id = hub.create_repo(name, token=token or args.hub_token, private=private)
        self.push_in_progress = None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(rows, dict):  # else the base class comes back with each of them
            rows = self.eval_dataset[rows] if isinstance(rows, str) else rows  # type: ignore[index]
            self._evaluated[metric_key_prefix, self.state.global_step] = (rows, None)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if not _internal_call:  # no checkpoint: what a user asks for comes with its card
            self._write_card(Path(output_dir or self.args.output_dir))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Save the model, its tokenizer and a card in `args.output_dir`, and push these and nothing else.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Return when the push is done; else at once, with a `Future`.
            token (`str`, *optional*):
                Token with permission to write. Defaults to `args.hub_token`, then to the one that is logged in.
            revision (`str`, *optional*):
                Branch. Defaults to `args.hub_revision`.
            private (`bool`, *optional*):
                Whether a new repository is private. Defaults to `args.hub_private_repo`.
            **kwargs:
                `model_name`, `dataset_name` and `tags` of the card, see `create_model_card`.

        Returns:
            [`~huggingface_hub.CommitInfo`] or `Future`; `None` on all processes but the first.

        Raises:
            HubError: If the Hub refuses or cannot be reached. The model is saved by then.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)  # first: whatever the Hub says, nothing is lost
        if not self.is_world_process_zero():
            return None
        self._dataset_name = kwargs.get("dataset_name") or self._dataset_name
        folder = Path(self.args.output_dir)
        name = self.hub_model_id or self.args.hub_model_id or folder.absolute().name
        self.create_model_card(**kwargs)
        with hub.readable_errors("The model was not pushed", name, folder):
            if self.hub_model_id is None:  # called without args.push_to_hub
                hub.check_before_training(self.args.hub_model_id, folder, token=token or self.args.hub_token, asks_hub=False)
                self.init_hf_repo(token=token, private=private)
                self.create_model_card(**kwargs)  # which now knows where the model is
            self._finish_current_push()
        future = self._push_in_background(folder, commit_message or "End of training", token, revision)
        if not blocking:
            self.push_in_progress = PushInProgress([future])  # type: ignore[arg-type]
            return future
        return future.result()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy.value == "end":
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            # The step at the end of an epoch would tell the number of pairs, and with it that of a group too small to be counted.
            where = "" if hides_groups(self._count_groups()) else f", step {self.state.global_step}"
            message = f"Training in progress{where}"
            future = self._push_in_background(Path(checkpoint_folder), message, goes_on=True)
        except (TrlPafoError, OSError) as error:  # the training is worth more than a push of what is not its end
            logger.warning(f"The checkpoint was not pushed, and the training goes on. {error}")
            return
        running: list[Any] = (
            [] if self.push_in_progress is None or self.push_in_progress.is_done() else self.push_in_progress.jobs
        )
        self.push_in_progress = PushInProgress([*running, future])  # type: ignore[arg-type]

    def _push_in_background(
        self, folder: Path, message: str, token: str | None = None, revision: str | None = None, goes_on: bool = False
    ) -> "Future[Any]":
        """Stage the files now, so that they may change or go afterwards, and push them, after what is being pushed.

        Where the training goes on, nobody may ask the push how it ended: a failure is logged, before it counts as done.
        """
        repo_id, token = str(self.hub_model_id), token or self.args.hub_token
        revision = revision or self.args.hub_revision
        out = Path(self.args.output_dir)
        card = (out / CARD_NAME).read_text(encoding="utf-8")
        with ExitStack() as stack:
            files = stack.enter_context(hub.staged(folder, repo_id, card, inside=out, is_adapter=self._is_adapter))
            until_done = stack.pop_all()

        def push() -> Any:
            try:
                with until_done, hub.readable_errors("The model was not pushed", repo_id, folder):
                    return hub.upload(files, repo_id, message=message, token=token, revision=revision)
            except TrlPafoError as error:
                if goes_on:
                    logger.warning(f"A push failed while training, and the training goes on. {error}")
                raise

        self._jobs = self._jobs or HfApi()
        return self._jobs.run_as_future(push)

    def create_model_card(  # type: ignore[override]  # TRL's takes three of the options of transformers'
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write the card to `args.output_dir`.

        Args:
            model_name (`str`, *optional*):
                Title. Defaults to the name of the repository, or of the folder.
            dataset_name (`str`, *optional*):
                Hub id of the training data; a path is left out.
            tags (`str` or `list[str]`, *optional*):
                Further tags.
        """
        self._write_card(Path(self.args.output_dir), model_name, dataset_name, tags)

    def _write_card(
        self,
        folder: Path,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | Iterable[str] | None = None,
    ) -> None:
        if not self.is_world_process_zero():
            return
        self._dataset_name = dataset_name or self._dataset_name
        text = self._card(model_name, [tags] if isinstance(tags, str) else list(tags or ())).render()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD_NAME).write_text(text, encoding="utf-8")

    @property
    def _is_adapter(self) -> bool:
        return isinstance(self.accelerator.unwrap_model(self.model, keep_torch_compile=False), PeftModel)

    def _card(self, model_name: str | None, tags: list[str]) -> Card:
        args = self.args
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        is_adapter = self._is_adapter
        peft_config: Any = model.peft_config[model.active_adapter] if is_adapter else None
        base = peft_config.base_model_name_or_path if is_adapter else get_config_model_id(model.config)
        base_model = base_id(base)
        own_tags = getattr(model, "model_tags", None) or ()
        options = {name: getattr(args, name, None) for name in HYPERPARAMETERS}
        options["num_processes"] = args.world_size
        if is_adapter:
            options |= {
                "lora_r": getattr(peft_config, "r", None),
                "lora_alpha": getattr(peft_config, "lora_alpha", None),
                "lora_dropout": getattr(peft_config, "lora_dropout", None),
                "lora_target_modules": getattr(peft_config, "target_modules", None),
            }
        if not self._distills:
            options = {name: value for name, value in options.items() if name not in STUDENT_HYPERPARAMETERS}
        history = hub.history_of(self.processing_class)
        conversational = self._is_conversational
        if conversational is None:
            conversational = bool(self.processing_class.chat_template)
        groups = self._count_groups()
        accuracies, split, evaluated_on = self._accuracies()
        return Card(
            title=model_name or (self.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name).split("/")[-1],
            repo_id=self.hub_model_id,
            method="pafo" if self._distills else "personalized_bt" if history else "bradley_terry",
            tags=[*self._tag_names, *own_tags, *tags],
            base_model=base_model,
            base_is_local=is_adapter and base_model is None,
            datasets=hub_ids([self._dataset_name]),
            is_adapter=is_adapter,
            is_conversational=conversational or history is not None,
            history=history,
            group_definition=_definition(self._given_rows, groups),
            groups=groups,
            dropped=self.dropped_pairs.get("train", {}),
            accuracies=accuracies,
            evaluated_on=evaluated_on,
            interval_method="Intervals are Wilson's and take pairs as independent, which those of one user are not: they are too "
            "narrow. `trl-pafo evaluate` draws users anew.",
            eval_split=split,
            hyperparameters=options,
            links=_links(),
        )

    def _count_groups(self) -> list[GroupCount]:
        if self._group_counts is None:
            self._group_counts = count_groups(self._given_rows)
        return self._group_counts

    def _accuracies(self) -> tuple[list[Accuracy], str, str]:
        """What the last evaluation found, with the name of its data and a sentence about it; of several sets the first."""
        log = [entry for entry in self.state.log_history if _prefix(entry)]
        if self.args.load_best_model_at_end and self.state.best_global_step:
            log = [entry for entry in log if entry["step"] == self.state.best_global_step] or log
        if not log:
            return [], "eval", ""
        step = log[-1]["step"]
        first = next(entry for entry in log if entry["step"] == step)
        prefix = str(_prefix(first))
        latest = next(entry for entry in reversed(log) if _prefix(entry) == prefix and entry["step"] == step)
        split = prefix.removeprefix("eval_") if prefix != "eval" else "eval"
        given = self.eval_dataset.get(split) if isinstance(self.eval_dataset, dict) else self.eval_dataset
        rows = self._evaluated.setdefault((prefix, step), (given, None))[0]
        counts = {count.name: count for count in count_groups(rows if isinstance(rows, Dataset) else None)}
        accuracies = []
        for key, value in latest.items():
            if key == f"{prefix}_accuracy" or key.startswith(f"{prefix}_accuracy/"):
                name = key.removeprefix(f"{prefix}_accuracy").removeprefix("/")
                pairs = int(latest.get(f"{prefix}_count/{name}", len(rows) if not name and isinstance(rows, Dataset) else 0))
                known = counts.get(name)
                users = sum(c.users or 0 for c in counts.values()) or None if not name else known.users if known else None
                enough = (pairs if users is None else users) >= fewest_users(0.95)
                ends = wilson_interval(value, pairs) if enough else (None, None)
                accuracies.append(Accuracy(name, users, pairs, value, *ends))
        accuracies.sort(key=lambda row: (row.name != "", row.name))
        hides = hides_groups(self._count_groups(), accuracies)
        when = "" if hides else f" at step {step} of {self.state.max_steps}"  # steps tell the number of pairs
        return accuracies, split, f"Measured by the trainer{when}, {self._trained_on(prefix, step, hides)}."

    def _trained_on(self, prefix: str, step: float, hides: bool) -> str:
        """Whether the pairs of an evaluation are in the training data, too; in words alone where a number would give a group away."""
        rows, common = self._evaluated[prefix, step]
        if common is None and self.state.max_steps and self.train_dataset is not None:
            common = pairs_in_common(rows, self.train_dataset)
            self._evaluated[prefix, step] = (rows, common)
        if common is None:
            return "on pairs of which it is not known whether they are in the training data"
        if not common:
            return "on pairs that are not in the training data"
        if common == len(rows):
            return "on pairs that are all in the training data, too: it says nothing of new pairs"
        share = "some of which" if hides else f"of which {common} of {len(rows)}"
        return f"on pairs {share} are in the training data, too: on new pairs it may be lower"


def count_groups(rows: Dataset | None) -> list[GroupCount]:
    """Users and labeled pairs of each group, the largest group first; nothing for rows without groups."""
    if rows is None or "group" not in rows.column_names:
        return []
    group = rows["group"][:]
    labeled = rows["has_label"][:] if "has_label" in rows.column_names else [True] * len(group)
    pairs = Counter(g for g, is_labeled in zip(group, labeled, strict=True) if g and is_labeled)
    users: Counter[str] = Counter()
    if "user" in rows.column_names:
        users.update(g for g, user in set(zip(group, rows["user"][:], strict=True)) if g and user)
    has_users = "user" in rows.column_names
    return [GroupCount(name, users[name] if has_users else None, count) for name, count in pairs.most_common()]


def _definition(rows: Dataset | None, groups: list[GroupCount]) -> str:
    if groups:
        return "The groups are those of the column `group` of the training data; how they were made is for its author to say."
    if rows is None:
        return "The groups of the training data are not known: it was a stream, or there was none."
    return "The training data name no groups."


def _prefix(entry: dict[str, Any]) -> str | None:
    """`eval`, or `eval_{name}` with several evaluation sets, of a log of an evaluation."""
    found = (re.fullmatch(r"(eval(?:_.+)?)_accuracy", key) for key in entry)
    return next((match[1] for match in found if match and "_user_" not in match[0]), None)


def _links() -> dict[str, str]:
    links = {"Comet": get_comet_experiment_url(), "Trackio": get_trackio_space_url()}
    if is_wandb_available():
        import wandb

        links["Weights & Biases"] = wandb.run.url if wandb.run is not None else None
    return {name: url for name, url in links.items() if url}
