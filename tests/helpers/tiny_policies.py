"""Tiny language models and adapters with random weights, for the tests of oracles."""

from pathlib import Path

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import GRPOConfig

from helpers.parts import make_tokenizer
from trl_pafo.palm import GRPOOracle

LORA = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")

PROMPTS = ["how do i sing", "what is red", "when can you walk", "is it the rain", "do you run", "a house and a tree", "soup"]


def make_policy(folder: Path, seed: int = 0) -> str:
    """A decoder over 53 words, saved with its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer("decoder")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 256}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = transformers.LlamaConfig(**sizes, **ends)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():  # fresh weights give every token nearly the same probability
        model.lm_head.weight.mul_(30)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_adapter(base: str, folder: Path, seed: int) -> str:
    """A LoRA adapter on `base` that changes what it says."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False, lora_alpha=8)
    model = get_peft_model(model, config)
    model.save_pretrained(folder)
    return str(folder)


def prompt_rows(number: int = len(PROMPTS), first: int = 0, conversational: bool = True) -> Dataset:
    """Rows of the column `prompt`."""
    texts = PROMPTS[first : first + number]
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": t}] for t in texts] if conversational else texts})


def _text(completion: object) -> str:
    return completion if isinstance(completion, str) else completion[0]["content"]


def brevity(completions, **kwargs):
    """Fewer words are better."""
    return [1 / (1 + len(_text(c).split())) for c in completions]


def animals(completions, **kwargs):
    """Share of the words that are cats and dogs."""
    return [sum(w in ("cat", "dog") for w in _text(c).split()) / max(1, len(_text(c).split())) for c in completions]


def training(folder, **changes):
    options = {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 4}
    options |= {"learning_rate": 0.02, "gradient_checkpointing": False, "use_cpu": True, "bf16": False, "save_strategy": "no"}
    options |= {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
    return GRPOConfig(str(folder), **{**options, **changes})


def make_oracle(base, folder, *, options=None, rewards=(brevity, animals), **changes):
    arguments = {"train_dataset": prompt_rows(4), "eval_dataset": prompt_rows(3, first=4), "peft_config": LORA, **changes}
    return GRPOOracle(base, list(rewards), output_dir=folder, args=training(folder, **(options or {})), **arguments)
