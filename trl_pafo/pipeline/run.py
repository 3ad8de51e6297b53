"""A run: prepare, baselines, teachers, student, evaluate. Each stage leaves a folder that the next one starts from."""

import copy
import hashlib
import json
import math
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, DatasetDict
from transformers import set_seed
from trl import ModelConfig, get_peft_config

from trl_pafo.data.history import HistoryCutter, remembered, without_history
from trl_pafo.data.sources.registry import check_source, data_identity
from trl_pafo.errors import ConfigError, RunFolderError
from trl_pafo.evaluation.methods import TITLES, RunArguments
from trl_pafo.evaluation.teacher_gain import TeacherGain, judge_teachers, why_not, worth_distilling
from trl_pafo.hub.card import base_id
from trl_pafo.hub.trainer_mixin import check_strategy
from trl_pafo.hub.upload import create_repo
from trl_pafo.models.base_models import WHEEL_MODELS, fit_lengths, identity_of, load_tokenizer, longest_input
from trl_pafo.pipeline.evaluate import evaluate_run
from trl_pafo.pipeline.prepare import DATA_FORMAT, load_prepared, prepare
from trl_pafo.pipeline.publish import push_run, write_cards
from trl_pafo.pipeline.run_checks import check_run_data, check_run_options
from trl_pafo.pipeline.starting_points import (
    QUANTIZATION_OPTIONS,
    is_quantized,
    start_of,
    student_model,
    teacher_model,
    write_base,
)
from trl_pafo.report.page import refuse_foreign, write_report
from trl_pafo.storage.canonical import canonical, default_of
from trl_pafo.storage.filenames import folder_names
from trl_pafo.storage.run_folder import RunFolder, write_text
from trl_pafo.teachers.teacher import Teacher, as_teachers, check_inputs
from trl_pafo.trainer.cache_keys import FREE, student_inputs, training_inputs
from trl_pafo.trainer.checkpoints import keep_for, train_and_save, write_checkpoints_to
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.trainer import PAFORewardTrainer
from trl_pafo.versions import __version__

RUN_CONFIG = "run.yaml"
"""File in the folder of a run: its options, as `--config` takes them."""


def run_config(run: RunArguments, args: PAFOConfig, model: ModelConfig) -> str:
    """The YAML with which `trl-pafo run --config FILE --output_dir OTHER` makes the same run.

    It has each option that is not at its default, but for those that decide no result (where the output is, logging, checkpoints, Hub).
    """
    config: dict[str, Any] = {}
    for options in (run, args, model):
        for field in fields(options):
            value = canonical(getattr(options, field.name))
            if field.name not in FREE - {"teachers"} | {"overwrite"} and value != default_of(field):
                config[field.name] = value
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


class Run:
    """
    All stages of PAFO in one output folder, each skipped when its output is there and its inputs are unchanged.

    Args:
        run ([`RunArguments`]):
            Data, methods, teachers.
        args ([`PAFOConfig`]):
            Training and PAFO; `output_dir` is the folder of the run, `teachers` are used instead of training some.
        model ([`~trl.ModelConfig`]):
            The model that everything starts from.
    """

    def __init__(self, run: RunArguments, args: PAFOConfig, model: ModelConfig):
        if model.model_name_or_path is None:
            raise ConfigError(f"Give --model_name_or_path: a Hub id, a folder, or one of {', '.join(WHEEL_MODELS)}.")
        check_source(run)
        check_run_options(run, args)
        self.run, self.args, self.model = run, args, student_model(model, run.teacher_kind)
        self.teacher_model = teacher_model(self.model, run.teacher_kind)
        if args.world_size > 1:
            raise ConfigError(
                "`run` works in one process. On several, prepare the data with `trl-pafo prepare` and launch each training with "
                "`accelerate launch -m trl_pafo.cli reward`."
            )
        fit_lengths(args, model.model_name_or_path, model.model_revision)
        if args.push_to_hub:  # hours of training must not end at a missing token
            check_strategy(args.hub_strategy)
            name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
            args.hub_model_id = create_repo(name, token=args.hub_token, private=args.hub_private_repo)
        self.folder = RunFolder(str(args.output_dir), run.overwrite)
        refuse_foreign(self.folder / "report.html")
        self.tokenizer = load_tokenizer(model.model_name_or_path, args.trust_remote_code, model.model_revision)
        self.base = model.model_name_or_path
        self._base_identity = identity_of(self.base, model.model_revision)
        self._shared = str(self.folder / "models/personalized_bt")

    def __call__(self) -> dict[str, Any]:
        """Do all stages that are not done, write `report.html`; return the results."""
        with self.folder.locked():
            results = self._do_stages()
            write_report([self.folder.path])
            write_cards(self.folder.path)
        if self.args.push_to_hub:
            args = self.args
            # A base that was quantized here is the one of the Hub to whoever loads the adapter.
            whole = is_quantized(self.model) and self.run.num_hidden_layers is None
            base = base_id(self.model.model_name_or_path) if whole else None
            name = str(args.hub_model_id)
            push_run(self.folder.path, name, token=args.hub_token, revision=args.hub_revision, base_model=base)
        return results

    def _do_stages(self) -> dict[str, Any]:
        self._prepare()
        data = load_prepared(self.folder / "data")
        self.groups = sorted(data["train"].unique("group"))
        given = as_teachers(self.args.teachers)  # type: ignore[arg-type]
        longest = longest_input(str(self.model.model_name_or_path), self.model.model_revision)
        check_run_data(data, self.run, self.args, self.tokenizer, longest, given)
        own = remembered(self._remember_history(copy.deepcopy(self.tokenizer)))
        for teacher in given.values():
            check_inputs(teacher, own)
        self._materialize()
        with self.folder.only_checking():  # a result that is in the way is told before the first training, not between two
            self._models(data, given)
        write_text(self.folder / RUN_CONFIG, run_config(self.run, self.args, self.model))
        models, gains = self._models(data, given)
        inputs: dict[str, Any] = {
            "models": {m: self._digests.get(m, str(v)) for m, v in models.items()},
            "data": self._digests["data"],
            "teachers": [asdict(gain) for gain in gains],
            **{name: getattr(self.run, name) for name in ("methods", "reference", "num_resamples")},
            "seed": self.args.seed,
            **self._inputs_of_scoring(),
        }
        self.folder.stage(
            "evaluate",
            inputs,
            "results",
            lambda out: evaluate_run(out, models, data["test"], data["train"], self.run, self.args, self.folder.seconds(), gains),
            derived=True,
        )
        return json.loads((self.folder / "results/results.json").read_text(encoding="utf-8"))

    def _models(self, data: DatasetDict, given: dict[str, Teacher]) -> tuple[dict[str, Any], list[TeacherGain]]:
        """The model of each method, and what each teacher gains; trained unless they are there."""
        models: dict[str, Any] = {}
        gains: list[TeacherGain] = []
        for method in ("bradley_terry", "personalized_bt"):
            if method in self.run.methods:
                models[method] = self._baseline(method, data["train"])
        if self.run.needs_teachers:
            teachers = {group: str(t.source) for group, t in given.items()} or self._teachers(data["train"])
            if "group_routed" in self.run.methods:
                models["group_routed"] = teachers
                self._digests["group_routed"] = str(sorted(self._identities(teachers).items()))
            students = [method for method in ("pafo", "pafo_own_group") if method in self.run.methods]
            gains = self._judge_teachers(teachers, data) if students else []
            for method in students:
                models[method] = self._student(method, data["train"], teachers, gains)
        return {method: models[method] for method in self.run.methods if method in models}, gains

    _digests: dict[str, str]

    def _prepare(self) -> None:
        self._digests = {}
        options = ("num_history", "history_max_tokens", "history_fields")
        inputs = {**self.run.data_inputs(), **{name: getattr(self.args, name) for name in options}}
        inputs |= {"tokenizer": self.model.model_name_or_path, **self._revision(), "identity": self._base_identity}
        # What the package itself brings: how rows are made, and how a history is rendered.
        template = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16]
        inputs |= {"format": DATA_FORMAT, "chat_template": template, "data_files": data_identity(self.run)}
        self._digests["data"] = self.folder.stage(
            "prepare", inputs, "data", lambda out: prepare(self.run, self.args, self.tokenizer, out)
        )

    def _revision(self) -> dict[str, Any]:
        """The version of the model, which decides what its tokenizer and its weights are."""
        return {} if self.model.model_revision == "main" else {"revision": self.model.model_revision}

    def _materialize(self) -> None:
        layers = self.run.num_hidden_layers
        if self.base not in WHEEL_MODELS and layers is None and not is_quantized(self.model):
            return
        inputs = {"model": self.base, "num_hidden_layers": layers, "seed": self.args.seed}
        if is_quantized(self.model):
            inputs |= {name: getattr(self.model, name) for name in QUANTIZATION_OPTIONS}
        inputs |= self._revision() | {"identity": self._base_identity}
        self._digests["base"] = self.folder.stage(
            "model", inputs, "base_model", lambda out: write_base(self.model, out, layers, self.args.seed)
        )
        self.base = str(self.folder / "base_model")

    def _inputs(self, model: ModelConfig | None = None, **more: Any) -> dict[str, Any]:
        inputs = training_inputs(self.args, model or self.model)
        base = self._digests.get("base") or self._base_identity
        return {**inputs, "data": self._digests["data"], "base": base, **more}

    def _training_args(self, out: Path, **changes: Any) -> PAFOConfig:
        args = copy.deepcopy(self.args)
        write_checkpoints_to(args, out)
        args.teachers = None
        args.push_to_hub = False  # what is pushed is the student alone, when all is done
        for name, value in changes.items():
            setattr(args, name, value)
        if isinstance(args.model_init_kwargs, dict) or args.model_init_kwargs is None:
            wanted = {"dtype": self.model.dtype, "attn_implementation": self.model.attn_implementation}
            known = self._revision() | {name: value for name, value in wanted.items() if value is not None}
            args.model_init_kwargs = {**known, **(args.model_init_kwargs or {})} or None
        return args

    def _reward_trainer(
        self, out: Path, rows: Dataset, start: str | None = None, model: ModelConfig | None = None, **changes: Any
    ) -> PAFORewardTrainer:
        """Without teachers, and on rows without groups, it is TRL's own trainer, but for what makes it faster."""
        args = self._training_args(out, num_history=None, history_max_tokens=None, **changes)  # the rows are rendered already
        source, peft_config = start_of(start, self.base, model or self.model)
        if not isinstance(source, str):  # loaded already
            args.model_init_kwargs = None
        keep = [name for name in ("prompt", "chosen", "rejected", "chat_template_kwargs") if name in rows.column_names]
        return PAFORewardTrainer(
            model=source,
            args=args,
            train_dataset=rows.select_columns(keep),
            processing_class=copy.deepcopy(self.tokenizer),
            peft_config=peft_config,
        )

    def _remember_history(self, tokenizer: Any) -> Any:
        """The tokenizer, which remembers the options of the history: rows that come rendered do not say them."""
        args = self.args
        HistoryCutter(tokenizer, args.num_history, args.history_max_tokens, args.history_fields).remember()
        return tokenizer

    def _baseline(self, method: str, train: Dataset) -> str:
        output = f"models/{method}"

        def work(out: Path) -> None:
            personalized = method == "personalized_bt"
            trainer = self._reward_trainer(out, train if personalized else without_history(train))
            if personalized:
                self._remember_history(trainer.processing_class)
            train_and_save(trainer, out, TITLES[method])

        inputs = self._inputs(method=method)
        self._digests[method] = self.folder.stage(method, inputs, output, work, keep_for=keep_for(self.args))
        return str(self.folder / output)

    def _teachers(self, train: Dataset) -> dict[str, str]:
        folders = {}
        for group, name in folder_names(self.groups).items():
            output = f"teachers/{name}"
            start = self._shared if self.run.teacher_start == "warm" else None
            inputs = self._inputs(
                self.teacher_model, group=group, start=self.run.teacher_start, min_steps=self.run.teacher_min_steps
            )
            if start and self.teacher_model.use_peft != self.model.use_peft:  # else the inputs of the start are the teacher's own
                inputs["start_from"] = self._digests["personalized_bt"]

            def work(out: Path, group: str = group, start: str | None = start) -> None:
                rows = train.filter(lambda row: row["group"] == group)
                set_seed(self.args.seed)
                trainer = self._reward_trainer(out, rows, start, self.teacher_model)
                self._remember_history(trainer.processing_class)
                if self.run.teacher_min_steps and self.args.max_steps <= 0:
                    steps = math.ceil(self._steps_per_epoch(trainer, len(rows)) * self.args.num_train_epochs)
                    trainer.args.max_steps = max(steps, self.run.teacher_min_steps)
                train_and_save(trainer, out, f"Teacher of {group}")

            stage = f"teacher:{group}"
            self._digests[stage] = self.folder.stage(stage, inputs, output, work, keep_for=keep_for(self.args))
            folders[group] = str(self.folder / output)
        return folders

    def _identities(self, teachers: dict[str, str]) -> dict[str, str]:
        """What decides each teacher's answers: how it was trained here, or the weights that were given."""
        for group, path in teachers.items():
            name = f"teacher:{group}"
            if name not in self._digests:
                self._digests[name] = str(Teacher(group, path).identity())
        return {group: self._digests[f"teacher:{group}"] for group in teachers}

    def _scoring(self) -> dict[str, Any]:
        return {"batch_size": self.args.per_device_eval_batch_size, "bf16": bool(self.args.bf16)}

    def _inputs_of_scoring(self) -> dict[str, Any]:
        """What decides rewards to the last digit, and which files hold them: scoring again costs little."""
        return {**self._scoring(), "use_cpu": self.args.use_cpu, "version": __version__}

    def _judge_teachers(self, teachers: dict[str, str], data: DatasetDict) -> list[TeacherGain]:
        """What each teacher gains over the shared model on held-out pairs; nothing where teachers are not to be judged."""
        if not self.run.judges_teachers:
            return []
        held_out = data["validation"] if "validation" in data else data["test"].select([])
        scoring = self._scoring()
        minimum = self.run.teacher_min_gain

        def work(out: Path) -> None:
            gains = judge_teachers(teachers, self._shared, held_out, minimum, **scoring)
            write_text(out, json.dumps([asdict(gain) for gain in gains], indent=2) + "\n")

        inputs = {
            "teachers": self._identities(teachers),
            "shared": self._digests["personalized_bt"],
            "data": self._digests["data"],
            "teacher_min_gain": minimum,
            **self._inputs_of_scoring(),
        }
        self.folder.stage("judge_teachers", inputs, "teacher_gains.json", work, derived=True)
        if self.folder.only_checks:
            return []
        rows = json.loads((self.folder / "teacher_gains.json").read_text(encoding="utf-8"))
        gains = [TeacherGain(**row) for row in rows]
        for gain in gains:
            print(f"    {gain}", flush=True)
        return gains

    def _steps_per_epoch(self, trainer: PAFORewardTrainer, num_rows: int) -> float:
        if self.args.max_tokens_per_batch is not None:  # as many pairs as fit
            return len(trainer.get_train_dataloader()) / self.args.gradient_accumulation_steps
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return num_rows / batch

    def _student(self, method: str, train: Dataset, teachers: dict[str, str], gains: list[TeacherGain]) -> str:
        output = f"models/{method}"
        changes = {"counterfactual_share": 0.0} if method == "pafo_own_group" else {}
        identities = self._identities(teachers)

        def copy_shared(out: Path) -> None:
            print(f"    {why_not(gains)}", flush=True)
            shutil.copytree(self._shared, out)

        def distilled(out: Path) -> None:
            trainer = PAFORewardTrainer(
                model=self.base,
                args=self._training_args(
                    out,
                    num_history=None,  # the rows are rendered already
                    history_max_tokens=None,
                    teacher_margin_cache_dir=str(self.folder / "teacher_margins"),
                    **changes,
                ),
                train_dataset=train,
                processing_class=copy.deepcopy(self.tokenizer),
                teachers=teachers,
                peft_config=get_peft_config(self.model),
            )
            for agreement in trainer.teacher_agreement:
                print(f"    {agreement}", flush=True)
            self._remember_history(trainer.processing_class)
            train_and_save(trainer, out, TITLES[method])

        inputs = self._inputs(method=method, teachers=identities, **student_inputs(self.args) | changes)
        kept = inputs | {"instead": f"the shared model {self._digests.get('personalized_bt')}"}
        if self.folder.only_checks and self.run.judges_teachers:  # which of the two it will be, the teachers must tell
            try:
                self.folder.check(method, kept)
            except RunFolderError:
                self.folder.check(method, inputs)
            return str(self.folder / output)
        if not gains or worth_distilling(gain.better for gain in gains):
            self._digests[method] = self.folder.stage(method, inputs, output, distilled, keep_for=keep_for(self.args))
        else:
            self._digests[method] = self.folder.stage(method, kept, output, copy_shared)
        return str(self.folder / output)
