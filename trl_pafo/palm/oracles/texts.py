"""Texts into rewards: responses under several reward models, and reward models that are trained within seconds."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit

from trl_pafo.data.history import HistoryCutter
from trl_pafo.data.sources.typed_users import AnsweredPrompt
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.models.base_models import materialize_model
from trl_pafo.models.safe_loading import load_saved_tokenizer
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.palm.oracles.candidates import RewardScale
from trl_pafo.storage.filenames import folder_names
from trl_pafo.storage.files import new_folder, refuse_existing


def score_candidates(
    prompts: Sequence[AnsweredPrompt], reward_models: Mapping[str, str | Path], *, batch_size: int = 32, device: str = "cpu"
) -> np.ndarray:
    """Raw rewards of all responses to all prompts under several saved reward models; no history is shown.

    Args:
        prompts (`Sequence[AnsweredPrompt]`):
            Prompts with the same response types; the candidates are in the order of the first prompt's types.
        reward_models (`Mapping[str, str | Path]`):
            Name -> folder or Hub id of a reward model or adapter, in the order of the rewards.
        batch_size (`int`, *optional*, defaults to `32`):
            Responses in a forward pass.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where the models stand, one at a time.

    Returns:
        `np.ndarray` of shape `(num_prompts, num_candidates, num_rewards)`, float64: for [`RewardScale`].

    Raises:
        DataError: If there are no prompts, a response is missing, or a text is longer than a model can read.
        TeacherError: If a model is not found or answers NaN.
    """
    if not prompts or not reward_models:
        raise DataError("Give at least one prompt and one reward model.")
    types = list(prompts[0].responses)
    if any(set(p.responses) != set(types) for p in prompts):
        raise DataError(f"Every prompt needs one response of each type: {', '.join(types)}.")
    rows = [{"prompt": p.prompt, "response": p.responses[t]} for p in prompts for t in types]
    columns = []
    for source in reward_models.values():
        scored = RewardScorer.from_pretrained(source, device=device).score(rows, batch_size=batch_size)
        columns.append([row["response"] for row in scored])
    return np.array(columns).T.reshape(len(prompts), len(types), len(columns))


class ScaledReward:
    """
    A saved reward model as a reward function of TRL's trainers, in [0, 1].

    Its scale is fitted on raw rewards of shape `(..., 1)` of typical responses; `"sigmoid"` keeps a slope where a policy goes
    beyond them.
    """

    def __init__(self, name: str, scorer: RewardScorer, scale: RewardScale):
        self.__name__ = name
        self.scorer, self.scale = scorer, scale

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], history: Sequence[Any] | None = None, **kwargs: Any
    ) -> list[float]:
        """Rewards of the completions, texts or messages; under the `history` of each row, where the dataset has that column."""
        return self.scale(np.array(raw_rewards(self.scorer, prompts, completions, history))[:, None])[:, 0].tolist()


def raw_rewards(
    scorer: RewardScorer, prompts: Sequence[Any], completions: Sequence[Any], history: Sequence[Any] | None = None
) -> list[float]:
    """What a reward function of TRL's trainers is asked for, as a saved reward model gives it."""
    rows: list[dict[str, Any]] = [{"prompt": p, "response": c} for p, c in zip(prompts, completions, strict=True)]
    if history is not None:
        rows = [{**row, "history": past} for row, past in zip(rows, history, strict=True)]
    # A batch in which nobody has a past says nothing of the others.
    return [row["response"] for row in scorer.score(rows, allow_no_history=history is not None)]


def fit_reward_models(
    prompts: Sequence[AnsweredPrompt],
    output_dir: str | Path,
    *,
    types: Sequence[str] | None = None,
    model: str = "minilm",
    num_hidden_layers: int | None = None,
    l2: float = 1e-3,
) -> dict[str, str]:
    """Train a reward model for each response type within seconds: the backbone is frozen, only the head is learnt. (Not from the paper.)

    Reward model t prefers the response of type t to each other response to the same prompt, as a user who holds type t does
    in the corpora of typed users. With a frozen backbone the features are computed once and the Bradley-Terry loss is
    convex in the head, mean softplus(-h.(f_t - f_other)) + l2/2 |h|^2 on standardized features, so the optimum is found.
    For a reward model that is as good as the backbone allows, train with `trl-pafo reward`; every folder of it fits here.

    Args:
        prompts (`Sequence[AnsweredPrompt]`):
            Training prompts with one response a type.
        output_dir (`str` or `Path`):
            A folder a type is written into it, as plain checkpoints.
        types (`Sequence[str]`, *optional*):
            Types that get a reward model; all by default.
        model (`str`, *optional*, defaults to `"minilm"`):
            What the reward models start from: `"minilm"`, `"smollm2"`, a folder or a Hub id.
        num_hidden_layers (`int`, *optional*):
            Keep only the first layers.
        l2 (`float`, *optional*, defaults to `1e-3`):
            Weight of the penalty.

    Returns:
        `dict[str, str]`: Type -> folder, for [`score_candidates`].

    Raises:
        RunFolderError: If a folder is there already.
        ConfigError: If a type is unknown, or the model has no linear head.
    """
    known = list(prompts[0].responses)
    unknown = sorted(set(types or []) - set(known))
    if unknown:
        raise ConfigError(f"`types` must be types of the prompts ({', '.join(known)}), got {', '.join(unknown)}.")
    folders = {t: Path(output_dir) / name for t, name in folder_names(types or known).items()}
    for folder in folders.values():
        refuse_existing(folder, "`output_dir`")
    with tempfile.TemporaryDirectory() as backbone:
        materialize_model(model, backbone, num_hidden_layers, seed=0)
        tokenizer = load_saved_tokenizer(backbone)
        HistoryCutter(tokenizer, 0).remember()
        tokenizer.save_pretrained(backbone)
        scorer = RewardScorer(backbone, device="cpu")
        reward_model = scorer.model
        name = next((n for n in ("score", "classifier") if isinstance(getattr(reward_model, n, None), torch.nn.Linear)), None)
        if name is None:
            raise ConfigError(f"{type(reward_model).__name__} has no linear reward head, so {model!r} cannot be fitted frozen.")
        head = getattr(reward_model, name)
        rows = [{"prompt": p.prompt, "response": p.responses[t]} for p in prompts for t in known]
        found = [row["response"] for row in scorer.features(scorer.tokenize(rows))]
    features = np.array(found, dtype=np.float64).reshape(len(prompts), len(known), -1)
    spread = features.std(axis=(0, 1)) + 1e-8
    for kind, folder in folders.items():
        column = known.index(kind)
        others = [c for c in range(len(known)) if c != column]
        differences = ((features[:, [column]] - features[:, others]) / spread).reshape(-1, features.shape[-1])
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(_fit_head(differences, l2) / spread))
            if head.bias is not None:
                head.bias.zero_()
        with new_folder(folder, "`output_dir`") as partial:
            reward_model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return {kind: str(folder) for kind, folder in folders.items()}


def _fit_head(differences: np.ndarray, l2: float) -> np.ndarray:
    """The Bradley-Terry head on feature differences chosen - rejected, `(num_pairs, hidden_size)`."""

    def loss(head: np.ndarray) -> tuple[float, np.ndarray]:
        margins = differences @ head
        gradient = -(expit(-margins) @ differences) / len(margins) + l2 * head
        return float(np.logaddexp(0.0, -margins).mean() + l2 / 2 * head @ head), gradient

    return minimize(loss, np.zeros(differences.shape[1]), jac=True, method="L-BFGS-B").x
