"""A run: prepare, baselines, teachers, student, evaluate. Each stage leaves a folder that the next one starts from."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import DatasetDict
from trl import ModelConfig

from trl_pafo.baselines.table import TRAINERS, USER_MODELS
from trl_pafo.data.overlap import PromptFolds
from trl_pafo.data.sources.registry import check_source, data_identity
from trl_pafo.errors import ConfigError, RunFolderError
from trl_pafo.evaluation.methods import OF_TEACHERS, STUDENTS, TITLES, RunArguments
from trl_pafo.evaluation.reference_path import CHOSEN, Point
from trl_pafo.models.base_models import WHEEL_MODELS, fit_lengths, identity_of, load_tokenizer, longest_input
from trl_pafo.models.card import base_id
from trl_pafo.models.ranks import after_first, check_same_folder, on_first, processes, same_model, together
from trl_pafo.models.safe_loading import check_model_folder
from trl_pafo.models.upload import create_repo
from trl_pafo.pipeline.controls import baseline, distilled_ensemble
from trl_pafo.pipeline.evaluate import evaluate_run
from trl_pafo.pipeline.judged import chosen_point, front_of, path_of, read_front, read_path, say_front
from trl_pafo.pipeline.maxmin import maxmin
from trl_pafo.pipeline.prepare import DATA_FORMAT, LENGTHS, load_prepared, prepare
from trl_pafo.pipeline.publish import push_run, write_cards
from trl_pafo.pipeline.run_checks import check_group_names, check_run_data, check_run_options
from trl_pafo.pipeline.run_options import RunConfig, optimizer_steps, run_config
from trl_pafo.pipeline.schedule import in_turn, longest_first, rounds
from trl_pafo.pipeline.stage import Stage
from trl_pafo.pipeline.starting_points import is_quantized, student_model, teacher_model
from trl_pafo.pipeline.trainings import LOGGED, Trainings
from trl_pafo.pipeline.user_models import FOLDER, user_models
from trl_pafo.pipeline.workers import Workers
from trl_pafo.report.page import refuse_foreign, write_report
from trl_pafo.report.record import RUN_CONFIG
from trl_pafo.storage.filenames import folder_names
from trl_pafo.storage.files import write_text
from trl_pafo.storage.run_folder import RunFolder, digest_of
from trl_pafo.trainer.checkpoints import keep_for
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.hub_mixin import check_strategy
from trl_pafo.trainer.teacher import as_teachers, check_teacher

_BY_WHICH = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")


class Plan(NamedTuple):
    """The stages of a run after the data, each after those that it needs, and its evaluation, given the digests of the methods."""

    stages: list[Stage]
    evaluation: Callable[[dict[str, str]], Stage]


class Run(Trainings):
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
        processes()
        if Path(model.model_name_or_path).is_dir():
            check_model_folder(model.model_name_or_path)
        self.tokenizer = load_tokenizer(model.model_name_or_path, args.trust_remote_code, model.model_revision)
        self._given_teachers = as_teachers(args.teachers)  # type: ignore[arg-type]
        for teacher in self._given_teachers.values():
            check_teacher(teacher, self.tokenizer, alone=args.conditioning != "own" or run.predicts_front)
        if isinstance(args, RunConfig):
            args = args.with_number_format()
        self.run, self.args, self.model = run, args, student_model(model, run.teacher_kind)
        self.teacher_model = teacher_model(self.model, run.teacher_kind)
        if args.world_size > 1 and (run.trainings_at_once or 1) > 1:
            raise ConfigError(
                f"`trainings_at_once={run.trainings_at_once}` gives each training a process of its own, and the launcher started "
                f"{args.world_size} for each. Leave it out, or start the run without a launcher."
            )
        fit_lengths(args, model.model_name_or_path, model.model_revision)
        if args.push_to_hub and not run.only:  # hours of training must not end at a missing token
            check_strategy(args.hub_strategy)
            name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
            args.hub_model_id = on_first(lambda: create_repo(name, token=args.hub_token, private=args.hub_private_repo))
        self.rule = args.best_checkpoint or CHOSEN["personalized_bt"]
        """By which the point of the path is chosen that is the reference."""
        self._given_args, self._given_model = args, model
        if args.best_checkpoint:  # a run chooses among finished models; its trainings evaluate nothing
            self.args = copy.deepcopy(args)
            for name in ("best_checkpoint", "eval_strategy", "eval_steps", *_BY_WHICH):
                setattr(self.args, name, PAFOConfig.__dataclass_fields__[name].default)
        self.folder = on_first(lambda: RunFolder(str(args.output_dir), run.overwrite))
        check_same_folder(self.folder.path)
        on_first(lambda: refuse_foreign(self.folder / "report.html"))
        base = str(model.model_name_or_path)
        self._base_identity = same_model(base, identity_of(base, model.model_revision))
        self._teacher_identities = {
            group: same_model(teacher.source, teacher.identity()) for group, teacher in self._given_teachers.items()
        }

    def __call__(self) -> dict[str, Any]:
        """Do all stages that are not done, write `report.html`; return the results."""
        with ExitStack() as lock:
            on_first(lambda: lock.enter_context(self.folder.locked()))
            results = self._do_stages()
            on_first(self._describe)
        if self.args.push_to_hub:
            on_first(self._push)
        return results

    def _describe(self) -> None:
        write_report(self.folder.path)
        write_cards(self.folder.path)

    def _push(self) -> None:
        args = self.args
        # A base that was quantized here is the one of the Hub to whoever loads the adapter.
        whole = is_quantized(self.model) and self.run.num_hidden_layers is None
        base = base_id(self.model.model_name_or_path) if whole else None
        name = str(args.hub_model_id)
        push_run(self.folder.path, name, token=args.hub_token, revision=args.hub_revision, base_model=base)

    def do_only(self, names: Sequence[str]) -> None:
        """Do single stages, in this order, while other processes may do others. `prepare`, with the base, comes before all.

        Raises:
            ConfigError: If there is no such stage, or one that it needs is not done.
            RunFolderError: If a run is running in the folder, or another process does one of the stages.
        """
        prepares = "prepare" in names
        with ExitStack() as lock:
            on_first(lambda: lock.enter_context(self.folder.locked() if prepares else self.folder.beside_others()))
            stages = self.plan(prepares).stages
            for name in names:
                if name != "prepare":
                    self.do(self.ready(name, stages))
        if prepares:
            trainings = chain.from_iterable(longest_first(r.trainings) for r in rounds(stages))
            print(f"Prepared. Trainings for --only: {' '.join(stage.name for stage in trainings)}", flush=True)

    def ready(self, name: str, stages: Sequence[Stage]) -> Stage:
        """The stage of this name, if all that it needs is done; where nothing is to be distilled, what is done in its place.

        Raises:
            ConfigError: If there is no such stage, or one that it needs is not done.
        """
        by_name = {stage.name: stage for stage in stages}
        if name not in by_name:
            raise ConfigError(f"--only {name}: this run has no such stage. Choose of: prepare, {', '.join(by_name)}.")
        needed = [by_name[need] for need in by_name[name].needs]
        missing = on_first(lambda: [s.name for s in needed if not self.folder.check(s.name, s.inputs, s.derived)])
        if missing:
            raise ConfigError(f"--only {name}: it needs stages that are not done in {self.folder.path}: {', '.join(missing)}.")
        return self._decided(by_name[name])

    def _do_stages(self) -> dict[str, Any]:
        stages, evaluation = self.plan()
        done: dict[str, str] = {}
        at_once = (self.run.trainings_at_once or 1) > 1
        for cheap, trainings in rounds(stages) if at_once else in_turn(stages):
            for stage in cheap:
                self.do(stage)
                if stage.name == "reference_path":
                    print(f"    {read_path(self.folder)['sentence']}", flush=True)
                if stage.name == "front":
                    say_front(self.folder)
            decided = [self._decided(stage) for stage in trainings]
            self._do_all(decided)
            done |= {stage.name: stage.digest for stage in (*cheap, *decided)}
        self.do(evaluation(done))
        return on_first(lambda: json.loads((self.folder / "results/results.json").read_text(encoding="utf-8")))

    def _do_all(self, stages: list[Stage]) -> None:
        """Trainings, which wait for nothing but each other: in this process, or side by side in others."""
        at_once = min(self.run.trainings_at_once or 1, len(stages))
        if at_once > 1:  # as many threads for each, however many are left
            left = [stage for stage in stages if stage.trains and not self.folder.check(stage.name, stage.inputs)]
            stages = [stage for stage in stages if stage not in left]
        for stage in stages:
            self.do(stage)
        if at_once > 1 and left:
            threads = max(1, torch.get_num_threads() // at_once)
            with Workers(self.folder, at_once, threads, (self.run, self._given_args, self._given_model)) as workers:
                workers.do(longest_first(left))

    def _decided(self, stage: Stage) -> Stage:
        """A stage, or what is done in its place where nothing is to be distilled."""
        return stage if stage.instead is None or on_first(lambda: read_front(self.folder)["worth"]) else stage.instead

    def plan(self, prepares: bool = True) -> Plan:
        """All stages of the run, from its data, which are prepared with the base, or, with `prepares=False`, must be."""
        run, args = self.run, self.args
        prepared = self._prepare()
        self._do_or_require(prepared, prepares)
        data = self._load()
        train = data["train"]
        given = self._given_teachers
        self._check(data)

        base = self._base()
        self.base = str(self.folder / base.output) if base else str(self.model.model_name_or_path)
        self._made_from = {"data": prepared.digest, "base": base.digest if base else self._base_identity}
        of_users = [method for method in USER_MODELS if method in run.methods]
        plain = None
        if "bradley_terry" in run.methods or of_users:
            plain = self._of_all("bradley_terry", TITLES["bradley_terry"], train, with_history=False, columns=LOGGED)
        multiples = sorted(run.reference_steps) if "personalized_bt" in run.methods else []
        points = {point: self._point(point, train) for point in (Point(m, math.ceil(m * self._steps)) for m in multiples)}
        path = path_of(self, points, data) if points else None
        chosen = [chosen_point(self, method, path) for method in CHOSEN if path and method in run.methods]
        start = next((stage.digest for point, stage in points.items() if point.multiple == 1), None)
        shared = digest_of({"rule": self.rule, "points": {p.multiple: s.digest for p, s in points.items()}})
        trained = {}
        if run.needs_teachers and not given:
            folders = folder_names(sorted(train.unique("group")))
            folds = PromptFolds(train, run.teacher_folds, args.seed) if run.teacher_folds > 1 else None
            trained = {group: self._teachers_of(group, name, train, start, folds) for group, name in folders.items()}
        of_groups = list(chain(*trained.values()))
        teachers = {group: [str(teacher.source)] for group, teacher in given.items()}
        teachers |= {group: [str(self.folder / stage.output) for stage in stages] for group, stages in trained.items()}
        identities = self._teacher_identities | {group: " ".join(stage.digest for stage in trained[group]) for group in trained}
        needs = tuple(stage.name for stage in of_groups)
        held_out = data.get("validation")
        students = [self._student(m, train, teachers, identities, shared, needs, held_out) for m in STUDENTS if m in run.methods]
        front = front_of(self, teachers, identities, data, path, of_groups) if path and run.predicts_front else None
        baselines = [baseline(self, method, train) for method in TRAINERS if method in run.methods]
        several = maxmin(self, train.select(self._kept)) if "maxmin" in run.methods else None
        ensemble = distilled_ensemble(self, train.select(self._kept)) if "distilled_ensemble" in run.methods else []
        vectors = user_models(self, data, plain) if plain and of_users else []
        in_order = (
            plain,
            *points.values(),
            path,
            *chosen,
            *baselines,
            several,
            *of_groups,
            front,
            *students,
            *ensemble,
            *vectors,
        )
        stages = [stage for stage in in_order if stage is not None]

        # What is in the way is told before the first training, not between two.
        on_first(lambda: self._check_folder(*([base] if base else []), *stages))
        if prepares:
            on_first(lambda: write_text(self.folder / RUN_CONFIG, run_config(run, self._given_args, self.model)))
        if base:
            self._do_or_require(base, prepares)
        models: dict[str, Any] = {m: teachers if m in OF_TEACHERS else str(self.folder / f"models/{m}") for m in run.methods}
        models |= {m: str(self.folder / FOLDER / m) for m in of_users}
        at = {point.multiple: str(self.folder / point.output) for point in points}
        return Plan(stages, partial(self._evaluation, models, str(sorted(identities.items())), data, front, at))

    def _load(self) -> DatasetDict:
        """The prepared pairs."""
        return after_first(lambda: load_prepared(self.folder / "data"))

    def _do_or_require(self, stage: Stage, does: bool) -> None:
        if does:
            self.do(stage)
        elif not on_first(lambda: self.folder.check(stage.name, stage.inputs)):
            raise ConfigError(f"{self.folder.path} is not prepared: do the same with --only prepare first.")

    def _check(self, data: DatasetDict) -> None:
        with np.load(self.folder / "data" / LENGTHS, allow_pickle=False) as lengths:
            self._kept = np.flatnonzero(lengths["train"] <= (self.args.max_length or np.inf))
            self._steps = optimizer_steps(len(self._kept), self.args)
            longest = longest_input(str(self.model.model_name_or_path), self.model.model_revision)
            check_run_data(data, lengths, self.run, self.args, self.tokenizer, longest, self._given_teachers)

    def _check_folder(self, *stages: Stage) -> None:
        """Raise [`RunFolderError`] if another result is where a stage writes, whichever of the two a student will be."""
        for stage in stages:
            if stage.instead is not None:
                with suppress(RunFolderError):
                    self.folder.check(stage.instead.name, stage.instead.inputs)
                    continue
            self.folder.check(stage.name, stage.inputs, stage.derived)

    def do(self, stage: Stage) -> None:
        """Do a stage, unless it is done: all processes together, or the first alone."""
        kept = keep_for(self.args) if stage.trains else None

        def lead(work: Callable[[Path], None]) -> None:
            self.folder.stage(stage.name, stage.inputs, stage.output, work, derived=stage.derived, keep_for=kept)

        if stage.trains or stage.scores:
            together(lead, stage.work, one_output=stage.trains)
        else:
            on_first(lambda: lead(stage.work))

    def _prepare(self) -> Stage:
        options = ("num_history", "history_max_tokens", "history_fields")
        inputs = {**self.run.data_inputs(), **{name: getattr(self.args, name) for name in options}}
        inputs |= {"tokenizer": self.model.model_name_or_path, **self._revision(), "identity": self._base_identity}
        # What the package itself brings: how rows are made, and how a history is rendered.
        template = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16]
        inputs |= {"format": DATA_FORMAT, "chat_template": template, "data_files": on_first(lambda: data_identity(self.run))}
        if features := self.run.infer_groups:
            inputs["features"] = on_first(lambda: identity_of(features))
        check = partial(check_group_names, self.run, self._given_teachers)
        work = partial(prepare, self.run, self.args, self.tokenizer, with_lengths=True, check=check)
        return Stage("prepare", "data", inputs, work)

    def _evaluation(
        self,
        models: dict[str, Any],
        of_teachers: str,
        data: DatasetDict,
        front: Stage | None,
        points: dict[float, str],
        done: dict[str, str],
    ) -> Stage:
        inputs = {
            "models": {method: of_teachers if method in OF_TEACHERS else done[method] for method in self.run.methods},
            "data": self._made_from["data"],
            "front": None if front is None else front.digest,
            **{name: getattr(self.run, name) for name in ("methods", "reference", "num_resamples")},
            "seed": self.args.seed,
            **self._inputs_of_scoring(),
        }

        def work(out: Path) -> None:
            found = (read_path(self.folder) if points else {}, read_front(self.folder) if front else None)
            evaluate_run(out, models, data, self.run, self.args, self.folder.seconds(), *found, points, **self._scoring())

        return Stage("evaluate", "results", inputs, work, derived=True, scores=True)
