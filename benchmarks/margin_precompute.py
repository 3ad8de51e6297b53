"""Speed of teacher margins: ours against a precompute as TRL's DPOTrainer does it, on the same pairs and the same teacher.

    OMP_NUM_THREADS=2 python benchmarks/margin_precompute.py --source dsp --data_path DSP_FILE

DPO-style is what `DPOTrainer._precompute_ref_logps` does, for a reward model: a data loader over the dataset in its order, the
trainer's collator (chosen and rejected padded together), a forward pass without gradients, results gathered by batch. Ours
(`trl_pafo.models.batches.score_pairs`) sorts by length and computes what both responses begin with once. Both in turn in one process.
"""

import argparse
import time
from statistics import median

import datasets
import numpy as np
import torch
import transformers
from measuring import common_parser
from reward_training import make_rows, make_trainer
from torch.utils.data import DataLoader
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_pafo.models import load_reward_model, materialize_model, score_pairs
from trl_pafo.models.loading import pad_id_of
from trl_pafo.prefix_sharing import choose_sharing


def dpo_style(model, rows, pad: int, options: argparse.Namespace, device: torch.device) -> np.ndarray:
    collator = DataCollatorForPreference(pad_token_id=pad)
    keep = rows.select_columns(["chosen_ids", "rejected_ids"])
    margins = []
    for batch in DataLoader(keep, batch_size=options.batch, collate_fn=collator):
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            batch = {key: value.to(device) for key, value in batch.items()}
            chosen, rejected = model(**batch, use_cache=False).logits.squeeze(-1).chunk(2)
        margins.append((chosen - rejected).float().cpu())
    return torch.cat(margins).numpy()


def main() -> None:
    parser = common_parser(__doc__)
    parser.set_defaults(batch=16)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.checkpointing = False
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        base = str(Path(folder) / "base")
        materialize_model(options.model, Path(base), options.layers, options.seed)
        trainer = make_trainer("all off", base, make_rows(options), options, folder)
        rows, tokenizer, device = trainer.train_dataset, trainer.processing_class, trainer.accelerator.device
        model = load_reward_model(base).to(device)
    pad = pad_id_of(model.config, tokenizer)
    share = choose_sharing("auto", model, rows, options.batch)
    print(f"{len(rows)} pairs; prefixes: {share.reason}")

    def ours() -> np.ndarray:
        chosen, rejected = rows["chosen_ids"][:], rows["rejected_ids"][:]
        rewards = score_pairs(
            model,
            chosen,
            rejected,
            pad,
            share_prefix=share.share,
            batch_size=2 * options.batch,
            device=device,
            autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=options.bf16),
        )
        return rewards[0] - rewards[1]

    sides = {"DPO-style": lambda: dpo_style(model, rows, pad, options, device), "ours": ours}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    margins = {}
    for turn in range(options.rounds + 1):
        for side in list(sides)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            margins[side] = sides[side]()
            if turn:
                seconds[side].append(time.perf_counter() - start)
    for side, times in seconds.items():
        print(f"{side}: {len(rows) / median(times):.1f} pairs/s")
    ratios = [theirs / own for theirs, own in zip(*seconds.values(), strict=True)]
    print(f"ratio {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]; ", end="")
    print(f"greatest difference of a margin {np.abs(margins['ours'] - margins['DPO-style']).max():.2e}")


if __name__ == "__main__":
    main()
