"""Teachers in memory: adapters on one backbone, sharded where the student is, scored by all processes together, and freed."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_pafo.errors import ConfigError, TeacherError
from trl_pafo.models.batches import score_pairs
from trl_pafo.models.loading import check_positions, load_reward_model, plain_device, positions_of
from trl_pafo.models.weights import check_reward_model, complete_weights, name_some
from trl_pafo.prefix_sharing.choice import choose_sharing
from trl_pafo.trainer.teacher import QuantizedBase, Teacher
from trl_pafo.trainer.teacher_sharding import in_turn, shard, shards_the_student

logger = logging.getLogger(__name__)


def by_backbone(teachers: Mapping[str, Teacher]) -> list[dict[str, Teacher]]:
    """Teachers that need the same weights in memory together: adapters of one base, or one checkpoint for several groups."""
    shared: dict[Any, dict[str, Teacher]] = {}
    for group, teacher in teachers.items():
        shared.setdefault(teacher.backbone(), {})[group] = teacher
    return list(shared.values())


class TeacherModels(AbstractContextManager["TeacherModels"]):
    """
    Teachers of one backbone (see [`by_backbone`]) in memory, frozen, to be used as one of them at a time.

    They never meet the optimizer, and neither the accelerator nor the trainer knows of them, so that nothing saves them or keeps
    them alive. They are freed at the end of a `with` block. The accelerator says where the models go; all of its processes have to make
    this object together. Teachers that are adapters of the student's base are loaded on it as it is, `quantized`.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        dtype: torch.dtype = torch.float32,
        quantized: QuantizedBase | None = None,
    ):
        self.accelerator = accelerator
        self.pad_ids = {group: teacher.pad_id(tokenizer) for group, teacher in teachers.items()}
        self._adapters: dict[str, str] = {}
        self._model: torch.nn.Module | None = None
        self._load(teachers, dtype, None if quantized is None else quantized.config_for(next(iter(teachers.values()))))

    def _load(self, teachers: Mapping[str, Teacher], dtype: torch.dtype, quantization_config: Any) -> None:
        sharded = shards_the_student(self.accelerator)
        if quantization_config is not None:
            logger.info("Teachers that are adapters of the student's base are loaded on it as the student's is: quantized.")
        # The base of an adapter may get a random head: the student's random numbers must not depend on whether teachers were loaded.
        with in_turn(self.accelerator) if sharded else nullcontext(), complete_weights(), torch.random.fork_rng(devices=[]):
            folders = {group: teacher.folder for group, teacher in teachers.items()}
            first, *others = dict.fromkeys(folders.values())
            for folder in others:
                check_reward_model(folder)
            model = load_reward_model(first, dtype, quantization_config=quantization_config)
            if hasattr(model, "peft_config"):
                names = {first: model.active_adapter} | {folder: f"teacher{n}" for n, folder in enumerate(others, 1)}
                for folder in others:
                    found = model.load_adapter(folder, names[folder], is_trainable=False)
                    if found.missing_keys:
                        raise ConfigError(f"The adapter {folder} lacks weights: {name_some(found.missing_keys)}. Save it again.")
                self._adapters = {group: names[folder] for group, folder in folders.items()}
            model.requires_grad_(False).eval()
            is_quantized = getattr(model, "hf_quantizer", None) is not None
            if sharded and not is_quantized:
                shard(model, self.accelerator.device, self.accelerator.num_processes)
        self._model = model if is_quantized else model.to(plain_device(self.accelerator.device))

    def margins(
        self,
        group: str,
        chosen: Sequence[Sequence[int]],
        rejected: Sequence[Sequence[int]],
        *,
        batch_size: int = 16,
        prefix_sharing: str = "off",
        desc: str | None = None,
    ) -> np.ndarray:
        """Margins of pairs of token sequences under a group's teacher, of shape `(num_pairs,)`, float32, the same on every process, of which
        each computes its share. `batch_size` counts pairs.

        `prefix_sharing="auto"` computes once what both responses of a pair begin with, where the teacher can and the lengths
        promise a gain ([`~trl_pafo.prefix_sharing.choice.choose_sharing`]); margins are the same to rounding.

        Raises:
            TeacherError: If a reward is not finite.
            DataError: If a sequence is longer than the teacher's positions.
        """
        if self._model is None:
            raise RuntimeError("These teachers are closed.")
        model: Any = self._model
        if group in self._adapters:
            model.set_adapter(self._adapters[group], inference_mode=True)
        # Pooling looks for this id, and the base of an adapter may know another one or none.
        config = model.config.get_text_config()
        config.pad_token_id = self.pad_ids[group]
        check_positions(
            [*map(len, chain(chosen, rejected))], positions_of(config), "sequences", f"the teacher of group {group!r}"
        )
        pairs = Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected}) if prefix_sharing != "off" else None
        try:
            of_chosen, of_rejected = score_pairs(
                model,
                chosen,
                rejected,
                self.pad_ids[group],
                share_prefix=choose_sharing(prefix_sharing, model, pairs, batch_size).share,
                batch_size=2 * batch_size,
                device=next(model.parameters()).device,
                autocast=_autocast(self.accelerator),
                desc=desc,
                accelerator=self.accelerator,
            )
        except TeacherError as error:
            raise TeacherError(f"The teacher of group {group!r}: {error}") from error
        return of_chosen - of_rejected

    def __exit__(self, *error: object) -> None:
        self._model = None
        clear_device_cache(garbage_collection=True)


def _autocast(accelerator: Accelerator) -> Callable[[], AbstractContextManager]:
    """The mixed precision of the run. Under DeepSpeed `Accelerator.autocast` does nothing, as its engine casts the student."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    return partial(torch.autocast, accelerator.device.type, dtype=dtype) if dtype else nullcontext
