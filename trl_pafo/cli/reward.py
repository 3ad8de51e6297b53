"""`trl-pafo reward`: TRL's reward script with PAFORewardTrainer in the place of RewardTrainer."""

from typing import Any


def make_parser(prog: str | None = None) -> Any:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser

    from trl_pafo.config import PAFOConfig

    parser = TrlParser((ScriptArguments, PAFOConfig, ModelConfig, DatasetMixtureConfig), prog=prog)  # type: ignore[arg-type]
    parser.set_defaults_with_config(lora_task_type="SEQ_CLS")  # else an adapter loses its reward head
    return parser


def main(script_args: Any, training_args: Any, model_args: Any, dataset_args: Any) -> None:
    from datasets import load_dataset
    from trl import get_dataset, get_peft_config, get_quantization_config

    from trl_pafo.errors import ConfigError
    from trl_pafo.models import WHEEL_MODELS, load_tokenizer, locate_model
    from trl_pafo.trainer import PAFORewardTrainer

    name, wheel_kwargs, _ = locate_model(model_args.model_name_or_path)
    processing_class = load_tokenizer(model_args.model_name_or_path) if model_args.model_name_or_path in WHEEL_MODELS else None
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **wheel_kwargs,
        **(training_args.model_init_kwargs or {}),
    }
    if dataset_args.datasets:
        dataset = get_dataset(dataset_args)
    elif script_args.dataset_name:
        dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config, streaming=script_args.dataset_streaming)
    else:
        raise ConfigError("Give --dataset_name (a Hub id, or a folder of `trl-pafo prepare`) or a `datasets` mixture.")
    for split, used in (
        (script_args.dataset_train_split, True),
        (script_args.dataset_test_split, training_args.eval_strategy != "no"),
    ):
        if used and split not in dataset:
            raise ConfigError(f"The dataset has no split {split!r}; it has {', '.join(dataset)}.")
    trainer = PAFORewardTrainer(
        model=name,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        processing_class=processing_class,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}.")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    if hasattr(trainer, "end"):  # closes trackers and the process group; new in transformers 5.18
        trainer.end()
