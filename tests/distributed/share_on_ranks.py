"""What each process does in test_share_on_ranks.py: train and evaluate with shared rows and without.

Arguments: folder of the model, output folder, "full" or "lora".
"""

import json
import os
import sys
from pathlib import Path

from launcher import leave

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers

from helpers.parts import make_pairs
from train_on_ranks import lora, options, wrapper_of

from trl_pafo import PAFORewardTrainer
from trl_pafo.prefix_sharing.forward import PairHead

NUM_STEPS = 6


def main(model: str, out: Path, kind: str, sharing: str) -> dict:
    args = options(out / sharing, int(os.environ["WORLD_SIZE"]), prefix_sharing=sharing, max_steps=NUM_STEPS)
    rows = make_pairs()
    trainer = PAFORewardTrainer(
        model,
        args,
        train_dataset=rows.add_column("teacher_margin", [0.5 * (i % 5 - 1) for i in range(len(rows))]),
        peft_config=lora() if kind == "lora" else None,
    )
    batches: list[int] = []
    forward = PairHead.__call__

    def counting(self, module, inputs, output):
        batches.append(len(output))
        return forward(self, module, inputs, output)

    PairHead.__call__ = counting  # type: ignore[method-assign]
    try:
        trainer.train()
    finally:
        PairHead.__call__ = forward  # type: ignore[method-assign]
    output = trainer.predict(make_pairs(num_users=3, num_minority=1, pairs_per_user=3, seed=5))
    return {
        "share": trainer.prefix_sharing.share,
        "rows": sorted(set(batches)),
        "logs": [
            {k: log[k] for k in ("loss", "num_tokens", "margin", "grad_norm")} for log in trainer.state.log_history[:NUM_STEPS]
        ],
        "rewards": output.predictions.tolist(),
        "wrapper": wrapper_of(trainer),
    }


if __name__ == "__main__":
    out = Path(sys.argv[2])
    found = {sharing: main(sys.argv[1], out, sys.argv[3], sharing) for sharing in ("on", "off")}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    leave()
