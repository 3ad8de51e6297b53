"""The one-class swap: TRL's reward script with `RewardTrainer` -> `PAFORewardTrainer`.

    trl-pafo prepare --source styles --model_name_or_path minilm --num_history 1 --output_dir data
    python examples/reward_pafo.py --dataset_name data --model_name_or_path MODEL --output_dir fair-reward-model \
        --teachers '{"majority": "PATH", "minority": "PATH"}'

Without `--teachers` it is plain RewardTrainer, so the same script trains the teachers (`--group majority --num_history 0`).
It runs unchanged under `accelerate launch`.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from trl_pafo import PAFOConfig, PAFORewardTrainer


@dataclass
class ScriptArguments:
    dataset_name: str = field(metadata={"help": "A folder of `trl-pafo prepare`, or a Hub id."})
    group: str | None = field(default=None, metadata={"help": "Train on the pairs of this group alone: its teacher."})


def main() -> None:
    parser = TrlParser((ScriptArguments, PAFOConfig, ModelConfig))
    parser.set_defaults_with_config(lora_task_type="SEQ_CLS")  # with --use_peft: else the adapter loses its reward head
    script, args, model = parser.parse_args_and_config()
    of_model = {name: getattr(model, name) for name in ("attn_implementation", "dtype")} | {"revision": model.model_revision}
    args.model_init_kwargs = of_model | (args.model_init_kwargs or {})
    dataset = load_dataset(script.dataset_name)
    if script.group is not None:
        dataset = dataset.filter(lambda row: row["group"] == script.group)
    trainer = PAFORewardTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"] if args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
