"""An oracle that trains: a LoRA member for each weight vector, by TRL's GRPOTrainer with `reward_weights`."""

import copy
import gc
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from peft import LoraConfig, PeftConfig
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import get_callable_name

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.models.base_models import WHEEL_MODELS, identity_of, load_base, load_tokenizer
from trl_pafo.models.ranks import forget_accelerator, on_first, same_model, together
from trl_pafo.models.safe_loading import safe_init_kwargs
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.models.weights import complete_weights
from trl_pafo.palm.core import OracleResult, check_weights
from trl_pafo.palm.oracles.candidates import SCALE_FILE, RewardScale
from trl_pafo.palm.oracles.decoding import MixedPolicy
from trl_pafo.palm.oracles.judging import Judged, RewardFunction, check_prompts, checked_rewards, digest_rows
from trl_pafo.palm.oracles.texts import ScaledReward, raw_rewards
from trl_pafo.storage.files import write_text
from trl_pafo.storage.run_folder import RunFolder
from trl_pafo.trainer.cache_keys import deciding_options
from trl_pafo.trainer.checkpoints import own_wandb_run
from trl_pafo.trainer.config import check_visible_gpus

_NUM_TYPICAL = 64
"""Responses that say where the raw rewards of a model lie."""


class GRPOOracle:
    """
    Trains a member for the weights that it is asked for, and evaluates it on held-out prompts.

    Every member is a LoRA adapter on one base, trained by [`~trl.GRPOTrainer`] with `reward_weights`, and saved as a folder
    that `peft` and vLLM load. A member that is complete in `output_dir` is neither trained nor evaluated again; one whose
    options have changed is refused. A member is renamed when it is complete, so an interrupted build loses the member
    at work and no other.

    Works under `accelerate launch`: all processes call the oracle with the same weights, train together, and each judges its
    share of the prompts, with the complete base; the main one writes. The responses judged do not depend on the number of
    processes, nor on what the launcher shards.

    The values are mean rewards, in [0, 1], and the KL divergence from the base, in nats a response, stands beside them: both
    are estimates from samples, and a trained member is not the best policy for its weights, so the oracle is inexact. With
    GRPO's default `scale_rewards="group"` and a KL weight a token (`args.beta`), training pursues w.R - beta KL in its own
    normalization, not exactly.

    Args:
        model (`str`):
            Base model: folder, Hub id, or `"smollm2"`.
        rewards (`Sequence[Callable or str]`):
            Reward functions, as GRPOTrainer takes them, with values in [0, 1]. They are known by their names: a function that
            changes and keeps its name is not noticed. Or folders and Hub ids of saved reward models, whose raw rewards become a
            sigmoid of the standard deviations that they lie above the mean of the base's responses to the first 64 training prompts.
        train_dataset ([`~datasets.Dataset`]):
            Rows with `prompt`.
        eval_dataset ([`~datasets.Dataset`]):
            Held-out rows with `prompt`, on which values and KL are estimated.
        output_dir (`str` or `Path`):
            Folder of the members.
        args ([`~trl.GRPOConfig`], *optional*):
            Options of the training; `output_dir` and `reward_weights` are set for each member.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The adapter; `LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")` by default.
        num_samples (`int`, *optional*, defaults to `1`):
            Responses a held-out prompt.
        eval_batch_size (`int`, *optional*, defaults to `16`):
            Responses that are drawn together in the evaluation.
        num_hidden_layers (`int`, *optional*):
            Keep only the first layers of the base.
        reward_names (`Sequence[str]`, *optional*):
            Names of the rewards; by default those of the functions, and the last part of a folder or Hub id.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace members that were trained with other options.

    Raises:
        ConfigError: If there are no rewards, the model is not found, or the prompts do not fill a batch of generations.
        DataError: If a dataset has no prompts, training and held-out prompts overlap, or a reward leaves [0, 1].
        RunFolderError: If `output_dir` holds something else, or members of other options.
    """

    def __init__(
        self,
        model: str,
        rewards: Sequence[RewardFunction | str],
        train_dataset: Dataset,
        eval_dataset: Dataset,
        output_dir: str | Path,
        args: GRPOConfig | None = None,
        peft_config: PeftConfig | None = None,
        *,
        num_samples: int = 1,
        eval_batch_size: int = 16,
        num_hidden_layers: int | None = None,
        reward_names: Sequence[str] | None = None,
        overwrite: bool = False,
    ):
        self.args = GRPOConfig(str(output_dir)) if args is None else args
        names = [Path(reward).name if isinstance(reward, str) else get_callable_name(reward) for reward in rewards]
        if reward_names is not None and len(reward_names) != len(names):
            raise ConfigError(f"`reward_names` must name each of the {len(names)} rewards, got {', '.join(reward_names)}.")
        self.names = list(reward_names or names)
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.peft_config = peft_config or LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        self.num_samples, self.eval_batch_size = num_samples, eval_batch_size
        self._check()
        check_visible_gpus(self.args)  # which sets up the processes
        models = {name: source for name, source in zip(self.names, rewards, strict=True) if isinstance(source, str)}
        scorers = {name: RewardScorer.from_pretrained(source, device=self.args.device) for name, source in models.items()}
        self.path = Path(output_dir)
        self._folder = on_first(lambda: RunFolder(self.path, overwrite))
        self.tokenizer = load_tokenizer(model, self.args.trust_remote_code)
        self.base, base_inputs = self._materialize(model, num_hidden_layers)
        self._inputs = {
            **base_inputs,
            "rewards": self.names,
            "args": deciding_options(self.args),
            "peft": deciding_options(self.peft_config),
            "prompts": digest_rows(self.train_dataset),
        }
        if models:
            self._inputs["reward_models"] = {name: same_model(source, identity_of(source)) for name, source in models.items()}
        self._judging = {"held_out": digest_rows(self.eval_dataset), "num_samples": num_samples}
        self.scale = self._fit_scale(scorers)
        scaled = dict(zip(scorers, self.scale.each() if self.scale else (), strict=True))
        self.rewards: list[RewardFunction] = [
            ScaledReward(name, scorers[name], scaled[name]) if isinstance(reward, str) else reward
            for name, reward in zip(self.names, rewards, strict=True)
        ]

    def __call__(self, weights: np.ndarray) -> OracleResult:
        """The member for `weights` of shape `(num_rewards,)`: values and KL on the held-out prompts, its folder as `policy`."""
        weights = check_weights(weights, len(self.rewards))
        name = member_name(weights)
        inputs = {**self._inputs, "weights": np.round(weights, 6).tolist()}
        output = f"members/{name}"
        self._stage(f"member {name}", inputs, output, lambda out: self._train(weights, out))
        return self._evaluate(name, inputs, [str(self.path / output)]).result(str(self.path / output))

    def evaluate_base(self) -> OracleResult:
        """The base on the held-out prompts, under the random numbers of the members: what every member starts from."""
        return self._evaluate("base", self._inputs, [self.base]).result(self.base)

    def responses(self, name: str) -> dict[int, list[tuple[str, list[float], float]]]:
        """What was judged: row of the held-out prompts -> (response, rewards, KL) of each sample. The name is [`member_name`] of
        the weights, or `"base"`.
        """
        saved = json.loads((self.path / "evaluations" / f"{name}.json").read_text(encoding="utf-8"))
        return {int(row): [tuple(answer) for answer in answers] for row, answers in saved["responses"].items()}

    def seconds(self) -> dict[str, float]:
        """Duration of each training and each evaluation that is complete."""
        return self._folder.seconds()

    @property
    def problem(self) -> dict[str, Any]:
        """What decides the answers, as JSON values."""
        return {"oracle": "grpo", "member": self._inputs, "judging": self._judging}

    def _check(self) -> None:
        if not self.names:
            raise ConfigError("Give at least one reward function.")
        if len(set(self.names)) < len(self.names):
            raise ConfigError(
                f"Two rewards have one name ({', '.join(self.names)}): members are known by the names of their rewards. Give "
                "`reward_names`."
            )
        if self.args.push_to_hub:
            raise ConfigError(
                "push_to_hub would push each member over the one before, or to a repository of its own. Leave it out; `trl-pafo portfolio export` "
                "writes all members into one folder."
            )
        if self.args.eval_strategy != "no" or self.args.eval_on_start:
            raise ConfigError(
                "eval_strategy and eval_on_start: a member is judged when it is trained, not meanwhile. Leave them out."
            )
        if self.args.max_completion_length is None:
            raise ConfigError(
                "Set `max_completion_length`: responses are cut there, in the training and where a member is judged."
            )
        check_prompts(self.train_dataset, "`train_dataset`")
        check_prompts(self.eval_dataset, "`eval_dataset`")
        seen = {json.dumps(prompt) for prompt in self.train_dataset["prompt"]}
        both = sum(json.dumps(prompt) in seen for prompt in self.eval_dataset["prompt"])
        if both:
            raise DataError(
                f"{both} prompts are in `train_dataset` and in `eval_dataset`; values must come from prompts held out."
            )
        needed = (self.args.generation_batch_size or 1) // (self.args.num_generations or 1)
        if len(self.train_dataset) < needed:
            raise ConfigError(
                f"A batch of generations takes {needed} prompts (generation_batch_size / num_generations), `train_dataset` has "
                f"{len(self.train_dataset)}. Give more prompts, or lower per_device_train_batch_size."
            )

    def _materialize(self, model: str, num_hidden_layers: int | None) -> tuple[str, dict[str, Any]]:
        """The base as a folder that `from_pretrained` reads, and what decides its answers."""
        identity = same_model(model, identity_of(model))
        if model in WHEEL_MODELS or num_hidden_layers is not None:
            inputs = {"model": model, "num_hidden_layers": num_hidden_layers, "identity": identity}

            def write(out: Path) -> None:
                load_base(AutoModelForCausalLM, model, num_hidden_layers=num_hidden_layers).save_pretrained(out)
                self.tokenizer.save_pretrained(out)

            on_first(lambda: self._do("model", inputs, "base_model", write))
            # Absolute: it is written into every adapter, which may be loaded from another working directory.
            return str((self.path / "base_model").resolve()), inputs
        return model, {"model": identity}

    def _train(self, weights: np.ndarray, out: Path) -> None:
        args = copy.deepcopy(self.args)
        args.output_dir = str(out)
        args.run_name = f"{args.run_name or self.path.name}: {member_name(weights)}"  # what trackers show
        args.reward_weights = weights.tolist()
        args.model_init_kwargs = safe_init_kwargs(self.base, args.model_init_kwargs)  # type: ignore[arg-type]
        forget_accelerator()
        trainer = GRPOTrainer(
            model=self.base,
            reward_funcs=[_Checked(reward) for reward in self.rewards],  # type: ignore[misc]
            args=args,
            train_dataset=self.train_dataset,
            processing_class=copy.deepcopy(self.tokenizer),
            peft_config=copy.deepcopy(self.peft_config),
        )
        with own_wandb_run():
            trainer.train()
        trainer.save_model(str(out))
        if PartialState().is_main_process:
            about = {"rewards": self.names, "weights": weights.tolist(), "steps": trainer.state.global_step}
            write_text(out / "member.json", json.dumps(about, indent=2) + "\n")
            trainer.state.save_to_json(str(out / "trainer_state.json"))
        # The evaluation loads the member from its folder: without this, the base would be in memory twice.
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _evaluate(self, name: str, inputs: dict[str, Any], policies: list[str]) -> Judged:
        """Judge a policy on the held-out prompts, unless it was judged before."""
        inputs = {"policy": inputs, **self._judging}
        output = f"evaluations/{name}.json"

        def work(out: Path) -> None:
            judged = self._judge(policies, self.rewards, self.eval_dataset, self.num_samples, name == "base")
            if PartialState().is_main_process:
                write_text(out, json.dumps({"rewards": self.names, "responses": judged}) + "\n")

        self._stage(f"evaluation {name}", inputs, output, work, derived=True)
        judged = Judged()
        judged.responses = on_first(lambda: self.responses(name))
        return judged

    def _judge(
        self, policies: list[str], rewards: Sequence[RewardFunction], prompts: Dataset, num_samples: int, is_base: bool
    ) -> dict[int, list[tuple[str, list[float], float]]]:
        """Responses to the prompts, of which each process draws its share, and what the rewards say of them; by row."""
        state = PartialState()
        with complete_weights():  # each process draws its share alone
            mixture = MixedPolicy(
                policies,
                reference=self.base if is_base else None,
                tokenizer=self.tokenizer,
                chat_template_kwargs=self.args.chat_template_kwargs,  # type: ignore[arg-type]
                device=self.args.device,
                dtype=(self.args.model_init_kwargs or {}).get("dtype", torch.float32),  # type: ignore[union-attr]
                bf16=bool(self.args.bf16),
            )
        judged = mixture.evaluate(
            np.ones(1),
            rewards,
            prompts,
            max_new_tokens=self.args.max_completion_length,  # type: ignore[arg-type]
            num_samples=num_samples,
            batch_size=self.eval_batch_size,
            seed=self.args.seed,
            rows=range(state.process_index, len(prompts), state.num_processes),
        )
        shares = gather_object([judged.responses])
        return dict(sorted((row, answers) for share in shares for row, answers in share.items()))

    def _fit_scale(self, scorers: dict[str, RewardScorer]) -> RewardScale | None:
        """The scale of the saved reward models, fitted to responses of the base that are judged nowhere else."""
        if not scorers:
            return None
        prompts = self.train_dataset.select(range(min(_NUM_TYPICAL, len(self.train_dataset))))

        def work(out: Path) -> None:
            raw: dict[str, list[float]] = {name: [] for name in scorers}

            def record(prompts: Sequence[Any], completions: Sequence[Any], history: Any = None, **kwargs: Any) -> list[float]:
                for name, scorer in scorers.items():
                    raw[name] += raw_rewards(scorer, prompts, completions, history)
                return [0.0] * len(prompts)

            self._judge([self.base], [record], prompts, 1, True)
            shares = gather_object([raw])
            if PartialState().is_main_process:
                # In order, so that the sums do not depend on how the prompts were shared out.
                found = np.sort([[reward for share in shares for reward in share[name]] for name in scorers]).T
                RewardScale.fit(found, "sigmoid").save(out)

        self._stage("scale", self._inputs, SCALE_FILE, work, derived=True)
        return on_first(lambda: RewardScale.load(self.path / SCALE_FILE, len(scorers)))

    def _stage(
        self, stage: str, inputs: dict[str, Any], output: str, work: Callable[[Path], None], derived: bool = False
    ) -> None:
        """[`RunFolder.stage`] for several processes: the main one keeps the folder, all work or none does."""
        together(lambda work: self._do(stage, inputs, output, work, derived), work, one_output=True)

    def _do(self, stage: str, inputs: dict[str, Any], output: str, work: Callable[[Path], None], derived: bool = False) -> None:
        """[`RunFolder.stage`], while no other build is at work in the folder."""
        with self._folder.locked():
            self._folder.stage(stage, inputs, output, work, derived)


class _Checked:
    """A reward function whose values are checked in training too: a value out of range would train a member in silence."""

    def __init__(self, reward: RewardFunction):
        self.__name__ = get_callable_name(reward)
        self.reward = reward

    def __call__(self, prompts: Sequence[Any], **kwargs: Any) -> list[float]:
        return checked_rewards(self.reward(prompts=prompts, **kwargs), len(prompts), self.__name__).tolist()


def member_name(weights: np.ndarray) -> str:
    """The folder of a member: its weights for people, and a digest of them to six decimals."""
    rounded = np.round(np.asarray(weights, dtype=np.float64), 6) + 0.0
    digest = hashlib.sha256(json.dumps(rounded.tolist()).encode()).hexdigest()[:8]
    return "-".join([*(f"{weight:.2f}" for weight in rounded), digest])
