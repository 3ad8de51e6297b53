"""What methods that describe a user by a vector have in common: how they are fitted to features, asked and stored."""

import json
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import logsigmoid
from tqdm.auto import tqdm

from trl_pafo.baselines.features import FeaturePairs
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.models.safe_loading import reason
from trl_pafo.storage.files import new_folder, write_text

_CONFIG, _WEIGHTS = "user_model.json", "user_model.safetensors"
_ROWS_AT_ONCE = 256


class UserModel(torch.nn.Module):
    """
    Rewards of responses for a user who is known by past pairs alone, from features of a frozen model.

    [`~UserModel.fit`] makes one, [`~UserModel.score`] asks it. Features are standardized by those of the training pairs. A subclass
    says what is learned: its parameters, `loss` and `rewards`.

    Args:
        num_features (`int`):
            Size of the vector of a response.
        options:
            Those of the subclass, which are stored with the weights.
    """

    num_steps: ClassVar[int] = 1000
    """Optimizer steps of a fit, unless told otherwise. LoRe's own; those of the others are ours."""
    learning_rate: ClassVar[float]
    """Of Adam, constant."""
    batch_size: ClassVar[int | None] = 64
    """Pairs a step, drawn by epochs; `None` for all."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, num_features: int, **options: Any):
        super().__init__()
        self.config: dict[str, Any] = {"num_features": num_features, **options}
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    def loss(self, pairs: FeaturePairs, rows: torch.Tensor, progress: float) -> torch.Tensor:
        """The loss of some of the pairs; `progress` is the share of the steps that are done."""
        raise NotImplementedError

    def rewards(self, pairs: FeaturePairs, rows: torch.Tensor) -> torch.Tensor:
        """Rewards of shape `(num_rows, 2)` of both responses of some of the pairs, for their users."""
        raise NotImplementedError

    def begin(self, pairs: FeaturePairs) -> None:
        """Called before the first step, for parameters that only the fit has."""

    def end(self, pairs: FeaturePairs) -> None:
        """Called after the last step."""

    @classmethod
    def fit(
        cls, pairs: FeaturePairs, *, num_steps: int | None = None, seed: int = 0, desc: str | None = None, **options: Any
    ) -> Self:
        """Fit to training pairs. No pair is held out: the weights are those after the last step.

        Args:
            pairs ([`FeaturePairs`]):
                Training pairs with past pairs of their users.
            num_steps (`int`, *optional*):
                Optimizer steps; by default the class's own `num_steps`.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the initial weights and of all that is drawn.
            desc (`str`, *optional*):
                Title of the progress bar; no bar without it.
            options:
                Those of the class.

        Raises:
            ConfigError: If `num_steps` is below 1.
            DataError: If there are no pairs, or none has a past pair.
        """
        steps = cls.num_steps if num_steps is None else num_steps
        if steps < 1:
            raise ConfigError(f"`num_steps` must be at least 1, got {steps}.")
        if not any(pairs.past):
            raise DataError(
                f"{cls.__name__} describes a user by past pairs, and no training pair has any. Attach histories "
                "(trl_pafo.data.attaching.attach_history, or num_history of a run), or leave it out."
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of the CPU alone: those of accelerators are not put back
            model = cls(pairs.pairs.shape[-1], **options)
            model.mean = pairs.pairs.mean(dim=(0, 1))
            model.scale = pairs.pairs.std(dim=(0, 1)).clamp_min(1e-6)
            pairs = pairs.standardized(model.mean, model.scale)
            model.begin(pairs)
            optimizer = torch.optim.Adam(model.parameters(), lr=cls.learning_rate, fused=True)
            waiting: list[torch.Tensor] = []
            for step in tqdm(range(steps), desc=desc, unit="step", disable=desc is None):
                waiting = waiting or list(torch.randperm(len(pairs.pairs)).split(cls.batch_size or len(pairs.pairs)))[::-1]
                optimizer.zero_grad()
                model.loss(pairs, waiting.pop(), step / steps).backward()
                optimizer.step()
            model.end(pairs)
        return model.eval()

    def score(self, pairs: FeaturePairs) -> np.ndarray:
        """Raw rewards of the chosen and the rejected responses, of shape `(num_pairs, 2)`, each independent of the other pairs.

        Raises:
            DataError: If the features are of another size than those of the fit.
        """
        num_features = pairs.pairs.shape[-1]
        if num_features != self.config["num_features"]:
            raise DataError(
                f"The pairs have {num_features} features, and {type(self).__name__} was fitted to {self.config['num_features']}. "
                "Take those of the same model."
            )
        pairs = pairs.standardized(self.mean, self.scale)
        with torch.no_grad():
            parts = [self.rewards(pairs, rows) for rows in torch.arange(len(pairs.pairs)).split(_ROWS_AT_ONCE)]
        return torch.cat(parts).numpy()

    def save(self, folder: str | Path) -> None:
        """Write a new folder with the weights (safetensors) and the options (JSON).

        Raises:
            RunFolderError: If it exists.
        """
        with new_folder(Path(folder), "folder") as out:
            out.mkdir()
            save_file({name: weight.contiguous() for name, weight in self.state_dict().items()}, out / _WEIGHTS)
            write_text(out / _CONFIG, json.dumps({"class": type(self).__name__, **self.config}) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what [`~UserModel.save`] wrote.

        Raises:
            ConfigError: If the folder holds none of this class.
        """
        try:
            config = json.loads((Path(folder) / _CONFIG).read_text(encoding="utf-8"))
            if config.pop("class") != cls.__name__:
                raise ConfigError(f"{folder} holds another class than {cls.__name__}. Load it with that one.")
            model = cls(**config)
            model.load_state_dict(load_file(Path(folder) / _WEIGHTS))
        except ConfigError:
            raise
        except Exception as error:  # a file may be missing, cut off, or of another fit
            raise ConfigError(f"{folder} holds no fitted {cls.__name__} ({reason(error)}). Fit it again, and save it.") from error
        return model.eval()


def bradley_terry(rewards: torch.Tensor) -> torch.Tensor:
    """`-log sigmoid(r_chosen - r_rejected)` of rewards of shape `(..., 2)`."""
    return -logsigmoid(rewards[..., 0] - rewards[..., 1])


def masked_mean(values: torch.Tensor, is_there: torch.Tensor) -> torch.Tensor:
    """The mean over the second dimension of what is there, 0 where nothing is; shapes `(num_rows, longest, ...)`, `(num_rows, longest)`."""
    weight = is_there.to(values.dtype) / is_there.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.einsum("bk...,bk->b...", values, weight)


def drawn(is_there: torch.Tensor, least: int, most: int) -> torch.Tensor:
    """Which past pairs are shown, of those that there are: how many is drawn from `least` to `most`, then which; as many as there are
    where they are fewer. Shapes `(num_rows, longest)`."""
    available = is_there.sum(dim=1)
    low, high = available.clamp(max=least), available.clamp(max=most)
    number = low + (torch.rand(len(is_there)) * (high - low + 1)).long()
    rank = torch.rand(is_there.shape).masked_fill(~is_there, 2.0).argsort(dim=1).argsort(dim=1)
    return is_there & (rank < number[:, None])
