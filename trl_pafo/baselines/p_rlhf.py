"""P-RLHF: a reward model with a few tokens for each user, learned with it, and for users whom nobody knows those of a generic one."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset, Features, IterableDataset, Value
from peft import PeftConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.reward_trainer import suppress_seqcls_warning
from trl.trainer.utils import create_model_from_path, get_config_model_id

from trl_pafo.baselines.trainer import BaselineTrainer, Loss
from trl_pafo.baselines.user_table import FORMS, UserTable, add_user_tokens, generic_ids
from trl_pafo.data.history import rows_as_messages
from trl_pafo.data.labels import as_label
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.models.ranks import replaced
from trl_pafo.models.safe_loading import read_tokenizer
from trl_pafo.trainer.collator import PairBatch
from trl_pafo.trainer.config import PAFOConfig, check_visible_gpus
from trl_pafo.trainer.trainer import check_model

NUM_USER_TOKENS = 10
_KWARGS = "chat_template_kwargs"
_TABLE = "user_table.safetensors"
"""File of a checkpoint: what of the table trains."""


class PRLHFRewardTrainer(BaselineTrainer):
    """
    [`~trl.RewardTrainer`] with P-RLHF's implicit user model: each user has `num_user_tokens` soft tokens in front of the prompt, and
    each training pair counts twice, as one of its user and as one of a generic user, who stands for all that are not known.

    The method is that of *Personalized Language Modeling from Personalized Human Feedback* (Li et al., arXiv 2402.05133). Its authors
    train policies by DPO; **the Bradley-Terry loss in its place is our adaptation**. Past pairs in the prompt are what they call
    the explicit user model: give the column `history` to have both.

    What it saves is a plain sequence classification model or adapter, whose vocabulary has the users' tokens and whose chat template
    writes them: those of the user named by `chat_template_kwargs={"user": ...}`, and of the generic one for all others. The names
    of the training users stand in that template.

    Example:

    ```python
    >>> from trl_pafo import PAFOConfig
    >>> from trl_pafo.baselines import PRLHFRewardTrainer

    >>> trainer = PRLHFRewardTrainer(
    ...     model="Qwen/Qwen3-0.6B",
    ...     args=PAFOConfig(output_dir="p-rlhf-reward-model"),
    ...     train_dataset=dataset,  # prompt, chosen, rejected, user; optional history
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]):
            As for [`~trl.RewardTrainer`]; its vocabulary grows.
        args ([`PAFOConfig`] or [`~trl.RewardConfig`], *optional*):
            Configuration.
        train_dataset ([`~datasets.Dataset`]):
            Preference pairs as for [`PAFORewardTrainer`], texts or messages, with the column `user` (str).
        eval_dataset, processing_class, *positional, **kwargs:
            As for [`PAFORewardTrainer`]; users of evaluation pairs that are not among the training users are the generic one. A
            `peft_config` is one that has `trainable_token_indices`, such as [`~peft.LoraConfig`]; the tokens are added there.
        form (`str`, *optional*, defaults to `"individual"`):
            `"individual"`: an offset to the generic user for each; `"cluster"`: weights of `num_clusters` clusters
            ([`~trl_pafo.baselines.user_table.UserTable`]).
        num_user_tokens (`int`, *optional*, defaults to `10`):
            Tokens of each user.
        num_clusters (`int`, *optional*, defaults to `5`):
            Clusters of the form `"cluster"`.
        known_weight (`float`, *optional*, defaults to `0.5`):
            Weight `a` of the pairs as those of their users, in [0, 1].

    Raises:
        ConfigError: If an option has a value that cannot be used, or under FSDP and DeepSpeed, which cut the vocabulary up.
        DataError: If training pairs have no users, or rows are a stream or tokenized.
    """

    _tag_names = ["trl", "reward-trainer", "p-rlhf"]
    _name = "P-RLHF"
    columns = ("user",)
    how_trained = (
        "It was trained by the Bradley-Terry loss of P-RLHF: each pair counts as one of its user, who has tokens of its own, and as one of "
        "a generic user, who stands for all that are not known."
    )

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *positional: Any,
        form: str = "individual",
        num_user_tokens: int = NUM_USER_TOKENS,
        num_clusters: int = 5,
        known_weight: float = 0.5,
        **kwargs: Any,
    ):
        if form not in FORMS or num_user_tokens < 1 or num_clusters < 1 or not 0 <= known_weight <= 1:
            raise ConfigError(
                f"P-RLHF takes a `form` of {' or '.join(FORMS)}, at least 1 for `num_user_tokens` and `num_clusters`, and a "
                f"`known_weight` in [0, 1]; got {form!r}, {num_user_tokens}, {num_clusters}, {known_weight}."
            )
        self._refuse_teachers(args, kwargs)
        train_dataset = self._checked(train_dataset, data_collator)
        if "chosen_ids" in train_dataset.column_names:
            raise DataError("The training dataset is tokenized, so no users can be put there. Give texts or messages.")
        eval_dataset = _with_users(eval_dataset)
        self.users = sorted(train_dataset.unique("user"))
        """The training users, in the order of their numbers, the first of which is 1."""
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        args = copy.copy(PAFOConfig.from_reward_config(args or PAFOConfig(f"{name.split('/')[-1]}-P-RLHF")))
        check_visible_gpus(args, model)
        if any(
            parse_flag_from_env(f"ACCELERATE_USE_{launcher}") for launcher in ("FSDP", "DEEPSPEED")
        ):  # before it is loaded in parts
            raise ConfigError("P-RLHF adds rows to the embeddings, which FSDP and DeepSpeed cut up. Use DDP, or one process.")
        peft_config = kwargs.get("peft_config", positional[-1] if positional else None)
        peft_config = peft_config if isinstance(peft_config, PeftConfig) else None  # the base class refuses what is none
        if hasattr(model, "peft_config") or (peft_config is not None and not hasattr(peft_config, "trainable_token_indices")):
            raise ConfigError("P-RLHF trains added tokens: give the base as `model`, and a `peft_config` such as LoraConfig.")
        revision = check_model(model, args, peft_config, trains=True)
        if processing_class is None:
            processing_class = read_tokenizer(name, revision=revision, trust_remote_code=args.trust_remote_code)
        if isinstance(model, str):
            # On an accelerator TRL would spread it over all devices, also where a launcher starts a process for each.
            options: Any = {"num_labels": 1, "device_map": None, **args.model_init_kwargs}  # type: ignore[dict-item]
            args.model_init_kwargs = None
            set_seed(args.seed)  # as the base class does before it draws a new head
            with suppress_seqcls_warning():
                model = create_model_from_path(model, AutoModelForSequenceClassification, **options)  # type: ignore[arg-type]
        tokenizer = copy.deepcopy(processing_class)
        num_words = len(tokenizer)
        first = add_user_tokens(tokenizer, self.users, num_user_tokens)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        words = model.get_input_embeddings().weight[:num_words]
        self.user_table = UserTable(form, words, first, len(self.users), num_user_tokens, num_clusters, args.seed)
        _fill(model, self.user_table)
        if peft_config is not None:
            _train_tokens(peft_config, model, range(first, len(tokenizer)))
        self.known_weight = known_weight
        self._generic = {"first": first, "num_tokens": num_user_tokens, "num_users": len(self.users)}
        given = (model, args, data_collator, _with_user(train_dataset), eval_dataset, tokenizer, *positional)
        super().__init__(*given, **kwargs)
        self.user_table.put_on(self.model)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # Rows that are evaluated later; the others name their users already.
        return super()._prepare_dataset(_with_user(dataset), processing_class, args, dataset_name)

    def get_train_dataloader(self) -> Any:
        with replaced(self, data_collator=_TwiceEachPair(self.data_collator, self._generic)):
            return super().get_train_dataloader()

    def training_loss(self, losses: torch.Tensor, batch: PairBatch) -> Loss:
        known, generic = (part.mean() for part in losses.chunk(2))
        loss = self.known_weight * known + (1 - self.known_weight) * generic  # Eq. 6, with DPO's losses there
        return loss, {"known_user_loss": known, "generic_user_loss": generic}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        if folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            state = {name: value.contiguous() for name, value in self.user_table.state_dict().items()}
            save_file(state, folder / _TABLE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_table(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_table(str(self.state.best_model_checkpoint))

    def _load_table(self, checkpoint: str) -> None:
        file = Path(checkpoint) / _TABLE
        if not file.exists():
            raise ConfigError(f"{checkpoint} has no {_TABLE}, so it is no checkpoint of P-RLHF. Start the training over.")
        self.user_table.load_state_dict(load_file(file))


class _TwiceEachPair:
    """A collator that puts the pairs as those of the generic user behind the pairs of a batch."""

    def __init__(self, collator: Any, generic: dict[str, int]):
        self.collator, self.generic = collator, generic

    def __getattr__(self, name: str) -> Any:  # such as how it pads
        return getattr(vars(self)["collator"], name)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        sides = ("chosen_ids", "rejected_ids")
        generic = [{**row, **{side: generic_ids(row[side], **self.generic) for side in sides}} for row in rows]
        return self.collator([*rows, *generic])


def _with_users(datasets: Any) -> Any:
    return {name: _with_user(rows) for name, rows in datasets.items()} if isinstance(datasets, dict) else _with_user(datasets)


def _with_user(dataset: Any) -> Any:
    """Rows as messages that name their user to the chat template."""
    if isinstance(dataset, IterableDataset):
        raise DataError("An evaluation dataset is a stream, whose prompts cannot name users. Load it without streaming.")
    if not isinstance(dataset, Dataset) or not len(dataset) or "chosen_ids" in dataset.column_names:
        return dataset
    known = dataset.features.get(_KWARGS) or {}
    if "user" in known:
        return dataset
    rows = rows_as_messages(dataset)
    features = Features({**rows.features, _KWARGS: {**known, "user": Value("string")}})

    def name(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        nobody: list[Any] = [None] * len(batch["chosen"])
        users, variables = batch.get("user", nobody), batch.get(_KWARGS, nobody)
        return {_KWARGS: [{**(each or {}), "user": as_label(user)} for each, user in zip(variables, users, strict=True)]}

    return rows.with_format(None).map(name, batched=True, features=features, desc="Naming users")


@torch.no_grad()
def _fill(model: Any, table: UserTable) -> None:
    """Write the rows of the table into the vocabulary, and raise [`ConfigError`] where the model would read others."""
    embedding, rows = model.get_input_embeddings(), table().flatten(0, 1)
    ids = torch.arange(table.first, table.first + len(rows), device=embedding.weight.device)
    embedding.weight[ids] = rows.to(embedding.weight)
    if not torch.equal(embedding(ids), embedding.weight[ids]):
        raise ConfigError(f"{type(model).__name__} scales what its embeddings give, so P-RLHF cannot put tokens there.")


def _train_tokens(peft_config: Any, model: Any, ids: range) -> None:
    """Let an adapter bring the rows of the tokens."""
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    given = peft_config.trainable_token_indices
    given = {name: given} if isinstance(given, list) else dict(given or {})
    peft_config.trainable_token_indices = {**given, name: [*given.get(name, ()), *ids]}
