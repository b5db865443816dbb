"""PatchTST as the series tasks load it: for the data's channels, its batch norms on their running statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pefttool import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

MODEL_TYPE = "patchtst"


def check_type(config: Any, task: str) -> None:
    """Raise ModelError for a model that does not read series as PatchTST does."""
    if config.model_type != MODEL_TYPE:
        raise ModelError(
            f"model: {task!r} needs a PatchTST (config.json: model_type {MODEL_TYPE!r}), and this is"
            f" {config.model_type!r}; give another --model, or another --task"
        )


def load(source: Any, name: str, channels: int, **overrides: Any) -> Any:
    """The model class `name` of transformers with these weights; each channel is read by itself, so that a model
    pretrained on other numbers of them will do. Raises ModelError where it will not.
    """
    import transformers

    config = source.config
    if channels != config.num_input_channels and not config.share_embedding:
        raise ModelError(
            f"model: it embeds each of its {config.num_input_channels} channels by weights of its own"
            f" (share_embedding=False), and the data have {channels}; give a model with share_embedding=True"
        )
    model = source.model(AutoClass(getattr(transformers, name)), num_input_channels=channels, **overrides)
    hold_norms(model)
    return model


class AutoClass:
    """One class of transformers, called like an AutoModel class: it has none for PatchTST's heads."""

    def __init__(self, model_class: Any) -> None:
        self.__name__ = model_class.__name__
        self.from_pretrained = model_class.from_pretrained
        self._from_config = model_class._from_config

    def from_config(self, config: Any, dtype: Any = None) -> Any:
        return self._from_config(config) if dtype is None else self._from_config(config, dtype=dtype)


def hold_norms(model: nn.Module) -> None:
    """Let batch norms (PatchTST's default) use their running statistics in training, too.

    Those of a batch would make rows depend on each other, and change what is frozen while an adapter trains.
    """
    from torch import nn

    from pefttool_series.norms import StillBatchNorm

    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.__class__ = StillBatchNorm
            module.eval()


def describe_classes(labels: tuple[str, ...]) -> Mapping[str, Any]:
    """The config's keys for these classes."""
    names = dict(enumerate(labels or ("0", "1")))
    return {"num_targets": len(names), "id2label": names, "label2id": {label: i for i, label in names.items()}}
