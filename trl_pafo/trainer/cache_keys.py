"""Which options decide a result: all but those that are named here as free, also options that a new version brings."""

from typing import Any

from trl import ModelConfig

from trl_pafo.storage.canonical import canonical, values_of
from trl_pafo.trainer.config import PAFOConfig

STUDENT_OPTIONS = ("alpha", "distillation_loss", "distillation_temperature", "conditioning", "tau")
"""Options of PAFO that only the student depends on: changing them must not ask for new teachers."""

DRAWING_OPTIONS = ("conditioning", "tau")
"""Those of them that say whose histories are drawn: they decide nothing where each pair keeps its own."""

FREE = frozenset(
    {
        # Where the output is, and when checkpoints are written: a training that goes on from one gives the same weights.
        *("output_dir", "resume_from_checkpoint", "teacher_margin_cache_dir", "enable_jit_checkpoint"),
        *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
        # What is told to people, trackers and the Hub. A curve of the report has the points that the training logged.
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_level", "log_level_replica"),
        *("log_on_each_node", "disable_tqdm", "report_to", "run_name", "project", "skip_memory_metrics"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen"),
        *("log_completions", "log_multimodal", "log_unique_prompts", "num_completions_to_print", "log_completions_hub_repo"),
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        # How an evaluation during a training goes. What such an evaluation decides (the best checkpoint) is not free.
        *("eval_on_start", "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "num_generations_eval"),
        *("prediction_loss_only", "include_for_metrics", "batch_eval_metrics"),
        # How rows are fetched, in the same order, and when memory is given back.
        *("dataset_num_proc", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "torch_empty_cache_steps"),
        # Which process this is, and how processes and servers find each other. `generation_batch_size` follows from the number of
        # processes and options that decide; a build of a portfolio may go on with another number.
        *("local_rank", "ddp_backend", "ddp_timeout", "generation_batch_size", "vllm_server_base_url", "vllm_server_host"),
        *("vllm_server_port", "vllm_server_timeout", "vllm_group_port", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"),
        # What nothing reads, or what a script reads that these are not.
        *("do_train", "do_eval", "do_predict", "debug"),
        # The version of the library that an adapter was made with.
        "peft_version",
        # Inputs of their own: teachers are known by their weights, members of a portfolio by the weights of their rewards.
        *("teachers", "reward_weights"),
    }
)
"""Options that change neither losses nor weights, nor the files that a later stage reads."""

ROUNDING = frozenset(
    {
        # What is kept in memory and what is computed again.
        *(
            "gradient_checkpointing",
            "gradient_checkpointing_kwargs",
            "activation_checkpointing",
            "activation_checkpointing_kwargs",
        ),
        *("activation_offloading", "use_cache", "ds3_gather_for_generation"),
        # Which kernels add the same numbers up, in which order and on which machine. A finished run may be looked at elsewhere.
        *("use_cpu", "full_determinism", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("use_liger_kernel", "liger_kernel_config", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph"),
        # How much padding there is, and what is scored together without a step being taken on it.
        *("prefix_sharing", "padding_free", "pad_to_multiple_of", "per_device_eval_batch_size", "teacher_batch_size"),
    }
)
"""Options that say how a step is computed, not what: results differ by rounding alone. A finished training is kept where they
change; one that was stopped goes on only where they are the same, so that it ends with the weights that it would have had."""


def deciding_options(options: Any) -> dict[str, Any]:
    """The options that decide a training, by name: every field of the configuration that is neither free nor of rounding.

    The values are JSON, and the same in every process; files that options name are there by their digests. An option that is off,
    as by default (`None`, `False`, 0, empty), is left out: a version that brings a new one asks for nothing anew, a version that
    changes a default does.
    """
    return values_of(options, lambda name: name not in FREE and name not in ROUNDING)


def rounding_options(options: Any) -> dict[str, Any]:
    """The options that change results by rounding alone, as [`deciding_options`] gives the others."""
    return values_of(options, lambda name: name in ROUNDING)


def training_inputs(args: PAFOConfig, model: ModelConfig) -> dict[str, Any]:
    """Inputs of a stage that trains without teachers, by name. A batch counts with its pairs on all processes, however many these are."""
    inputs = deciding_options(args) | {"per_device_train_batch_size": args.pairs_at_once} | deciding_options(model)
    return {name: value for name, value in inputs.items() if name not in STUDENT_OPTIONS}


def student_inputs(args: PAFOConfig) -> dict[str, Any]:
    """What a student depends on beside [`training_inputs`], by name."""
    return {name: canonical(getattr(args, name)) for name in STUDENT_OPTIONS}
