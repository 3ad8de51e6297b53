"""Every option of a training decides its result, changes it by rounding, or is free; one that nobody has thought about fails here."""

import dataclasses
import json

import pytest
import torch
from peft import LoraConfig
from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, RewardConfig

from trl_pafo import PAFOConfig
from trl_pafo.trainer.cache_keys import (
    FREE,
    ROUNDING,
    STUDENT_OPTIONS,
    canonical,
    deciding_options,
    rounding_options,
    student_inputs,
    training_inputs,
)

# Of TrainingArguments. A name that an older or newer version does not have does no harm.
TRAINING = set(
    """
    per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps
    optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules gradient_accumulation_steps
    average_tokens_across_devices max_grad_norm label_smoothing_factor bf16 fp16 bf16_full_eval fp16_full_eval tf32
    neftune_noise_alpha auto_find_batch_size eval_strategy eval_steps eval_delay load_best_model_at_end metric_for_best_model
    greater_is_better ignore_data_skip restore_callback_states_from_checkpoint seed data_seed accelerator_config
    parallelism_config dataloader_drop_last dataloader_in_order remove_unused_columns label_names train_sampling_strategy
    length_column_name ddp_broadcast_buffers fsdp fsdp_config deepspeed
    """.split()
)
REWARD = set(
    """
    model_init_kwargs trust_remote_code chat_template_path disable_dropout eos_token max_length center_rewards_coefficient
    pad_token
    """.split()
)
PAFO = {*STUDENT_OPTIONS, "num_history", "min_num_history", "history_max_tokens", "history_fields", "best_checkpoint"}
MODEL = set(
    """
    model_name_or_path model_revision dtype attn_implementation use_peft lora_r lora_alpha lora_dropout lora_target_modules
    lora_target_parameters lora_modules_to_save lora_task_type use_rslora use_dora load_in_8bit load_in_4bit
    bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage
    """.split()
)
GRPO = set(
    """
    model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout cast_lm_head_to_fp32 num_generations
    max_completion_length shuffle_dataset steps_per_generation temperature top_p top_k min_p generation_kwargs
    chat_template_kwargs repetition_penalty cache_implementation use_vllm vllm_mode vllm_model_impl
    vllm_structured_outputs_regex vllm_max_model_length vllm_tensor_parallel_size beta num_iterations epsilon delta
    epsilon_high sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg
    importance_sampling_level multi_objective_aggregation scale_rewards loss_type mask_truncated_completions sync_ref_model
    ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min
    entropy_coef_max entropy_coef_delta entropy_target max_tool_calling_iterations vllm_importance_sampling_correction
    vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
    vllm_importance_sampling_cap off_policy_mask_threshold use_bias_correction_kl use_transformers_continuous_batching
    transformers_continuous_batching_config use_transformers_paged
    """.split()
)
CPU = {"use_cpu": True, "bf16": False, "report_to": "none"}


@pytest.mark.parametrize(
    ("config", "decide"),
    [
        (TrainingArguments, TRAINING),
        (RewardConfig, TRAINING | REWARD),
        (PAFOConfig, TRAINING | REWARD | PAFO),
        (ModelConfig, MODEL),
        (GRPOConfig, TRAINING | GRPO),
    ],
)
def test_every_option_decides_or_is_free(config, decide):
    """A name that is missing here is new: does another value change losses, weights, or what a later stage reads?"""
    names = {field.name for field in dataclasses.fields(config) if not field.name.startswith("_")}
    assert names - decide - FREE - ROUNDING == set()
    assert not decide & (FREE | ROUNDING)
    assert not FREE & ROUNDING


def test_an_option_that_no_list_knows_decides():
    @dataclasses.dataclass
    class Newer(PAFOConfig):
        brand_new: float = 0.0

    known = deciding_options(PAFOConfig("out", **CPU))
    assert deciding_options(Newer("out", brand_new=0.5, **CPU)) == {**known, "brand_new": 0.5}
    assert deciding_options(Newer("out", **CPU)) == known  # and asks for nothing while it is off


def test_what_decides_is_an_input_of_every_training_also_what_another_version_leaves_out():
    plain = training_inputs(PAFOConfig("a", **CPU), ModelConfig())
    assert training_inputs(PAFOConfig("a", **CPU, tf32=False), ModelConfig()) != plain  # None is neither
    assert training_inputs(PAFOConfig("a", **CPU), ModelConfig(lora_target_modules=["a", "b"])) != plain


def test_what_is_free_is_none():
    one = PAFOConfig("a", **CPU)
    other = PAFOConfig(
        "b",
        **(CPU | {"report_to": ["wandb"]}),
        logging_steps=3,
        save_steps=7,
        hub_token="secret",
        dataset_num_proc=2,
        run_name="other",
        teachers={"a": "b"},
    )
    assert deciding_options(one) == deciding_options(other)
    assert rounding_options(one) == rounding_options(other)
    assert "secret" not in json.dumps(deciding_options(other))
    config = LoraConfig(r=2)
    before = deciding_options(config)
    config.peft_version = "0.0"
    assert deciding_options(config) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("gradient_checkpointing", False), ("per_device_eval_batch_size", 3), ("prefix_sharing", "off"), ("padding_free", "off")],
)
def test_what_changes_the_last_digits_alone_asks_for_no_other_training(name, value):
    one, other = PAFOConfig("a", **CPU), PAFOConfig("a", **CPU, **{name: value})
    assert deciding_options(one) == deciding_options(other)
    assert rounding_options(one) != rounding_options(other)


def test_options_of_the_student_ask_for_no_other_teachers():
    other = {"alpha": 0.5, "distillation_loss": "mse", "distillation_temperature": 2.0, "conditioning": "own", "tau": 0.25}
    assert set(other) == set(STUDENT_OPTIONS)
    one, model = PAFOConfig("a", **CPU), ModelConfig()
    for name, value in other.items():
        changed = PAFOConfig("a", **CPU, **{name: value})
        assert training_inputs(one, model) == training_inputs(changed, model), name
        assert student_inputs(one) != student_inputs(changed), name


def test_equal_values_are_one():
    one = PAFOConfig(
        "a", **CPU, num_train_epochs=3, lr_scheduler_type="linear", model_init_kwargs={"dtype": torch.bfloat16, "b": 1}
    )
    other = PAFOConfig("b", **CPU, num_train_epochs=3.0, model_init_kwargs={"b": 1.0, "dtype": "bfloat16"})
    assert deciding_options(one) == deciding_options(other)
    assert json.loads(json.dumps(deciding_options(one))) == deciding_options(one)
    modules = [ModelConfig(lora_target_modules=names) for names in (["q", "v"], ["v", "q"])]
    assert deciding_options(modules[0]) == deciding_options(modules[1])


class Own:
    """An option of another library."""

    def __init__(self):
        self.rate = 2.0


def test_a_value_is_the_same_in_every_process():
    """A set has no order, and an object is printed with its address."""
    names = [f"m{i}" for i in range(9)]  # a set of them is in order once in 9! processes
    options = deciding_options(LoraConfig(target_modules=names))
    assert options["target_modules"] == names
    assert " at 0x" not in json.dumps(options)
    values = canonical({"b": {*names}, "a": Own(), "c": Own, "d": len})
    own = f"{__name__}.Own"
    assert values == {"a": {"class": own, "rate": 2}, "b": names, "c": own, "d": "builtins.len"}


def test_a_file_that_an_option_names_is_known_by_what_it_holds(tmp_path):
    path = tmp_path / "template.jinja"

    def options(text: str):
        path.write_text(text)
        return deciding_options(PAFOConfig("a", **CPU, chat_template_path=str(path)))

    assert options("one") == options("one")
    assert options("one") != options("two")
