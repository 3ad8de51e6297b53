"""`trl-pafo reward`: TRL's reward script with PAFORewardTrainer in the place of RewardTrainer."""

from typing import Any


def make_parser(prog: str | None = None, short: bool = False) -> Any:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from trl_pafo.cli.training import training_parser

    return training_parser((ScriptArguments,), (ModelConfig, DatasetMixtureConfig), prog, short)


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    from contextlib import nullcontext
    from pathlib import Path

    from trl import get_dataset, get_peft_config, get_quantization_config

    from trl_pafo.cli.training import check_splits, load_named
    from trl_pafo.errors import ConfigError
    from trl_pafo.models.base_models import WHEEL_MODELS, load_tokenizer, locate_model
    from trl_pafo.storage.files import alone, check_place
    from trl_pafo.trainer.checkpoints import checkpoint_to_resume, save_complete
    from trl_pafo.trainer.trainer import PAFORewardTrainer

    if not model_args.model_name_or_path:
        raise ConfigError(f"Give --model_name_or_path: a Hub id, a folder, or one of {', '.join(WHEEL_MODELS)}.")
    out = Path(training_args.output_dir)
    if out.is_file():
        raise ConfigError(f"--output_dir {out} is a file. Choose another one.")
    check_place(out)
    given = {"the model": model_args.model_name_or_path, "the dataset": script_args.dataset_name}
    given |= {f"the teacher of {group!r}": source for group, source in (training_args.teachers or {}).items()}
    for name, source in given.items():
        if source and out.is_dir() and Path(source).is_dir() and out.samefile(source):
            raise ConfigError(
                f"--output_dir {out} is the folder of {name}, whose files would be overwritten. Choose another one."
            )
    training_args.resume_from_checkpoint = checkpoint_to_resume(training_args.resume_from_checkpoint, out)
    name, model_kwargs, _ = locate_model(model_args.model_name_or_path, model_args.model_revision)
    processing_class = load_tokenizer(model_args.model_name_or_path) if model_args.model_name_or_path in WHEEL_MODELS else None
    training_args.model_init_kwargs = {
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **model_kwargs,
        **(training_args.model_init_kwargs or {}),
    }
    if dataset_args.datasets and script_args.dataset_name:
        raise ConfigError(f"`datasets` and --dataset_name {script_args.dataset_name} are both given. Give the one to train on.")
    if dataset_args.datasets:
        dataset = get_dataset(dataset_args)
    elif script_args.dataset_name:
        dataset = load_named(script_args)
    else:
        raise ConfigError("Give --dataset_name (a Hub id, or a folder of `trl-pafo prepare`) or a `datasets` mixture.")
    tested = [script_args.dataset_test_split] if training_args.eval_strategy != "no" else []
    check_splits(dataset, script_args.dataset_train_split, *tested)
    busy = f"Another training is running in {out}. Wait until it ends, or choose another --output_dir."
    out.mkdir(parents=True, exist_ok=True)
    # The processes of one training share the lock of the first.
    with alone(out, busy) if training_args.process_index == 0 else nullcontext():
        trainer = PAFORewardTrainer(
            model=name,
            args=training_args,
            train_dataset=dataset[script_args.dataset_train_split],
            eval_dataset=dataset[tested[0]] if tested else None,
            processing_class=processing_class,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
        trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        save_complete(trainer, out)
        trainer.create_model_card(dataset_name=script_args.dataset_name)
        trainer.accelerator.print(f"Model saved to {out}.")
        if training_args.push_to_hub:
            trainer.push_to_hub(dataset_name=script_args.dataset_name)
        if hasattr(trainer, "end"):  # closes trackers and the process group; new in transformers 5.18
            trainer.end()
