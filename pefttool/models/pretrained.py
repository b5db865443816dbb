"""A pretrained model on disk, loaded for real or as an abstract model of the same shape."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.api.errors import ModelError, one_line
from pefttool.api.pretrained import Pretrained
from pefttool.files import model_folder
from pefttool.models import head_rows
from pefttool.toolkit.quiet import quiet_loading

if TYPE_CHECKING:
    from torch import nn


class WrongKind(ModelError):
    """transformers has no class for a task on a model of this kind; a plan adds what the model is good for."""


class LocalPretrained(Pretrained):
    """A model folder. `arguments` go to `from_pretrained` (dtype, quantization_config).

    A folder that is stored in fewer bits is read as `quantization_config` says, instead of as its own config says.

    With `abstract` the model is built on the meta device from its config: no weights are read, nothing is quantised.
    A pretrained head's rows follow the names of their classes (head_rows.py); `notices` say where they moved.
    Python code in the folder runs only if it is `trusted` (see remote_code.py).
    """

    def __init__(
        self,
        path: Path,
        arguments: Mapping[str, Any] | None = None,
        abstract: bool = False,
        trusted: bool = False,
        for_rows: bool = True,
    ) -> None:
        from transformers import AutoConfig

        self.path = path
        self.arguments = dict(arguments or {})
        self.abstract, self.trusted, self.for_rows = abstract, trusted, for_rows
        self.missing: tuple[str, ...] = ()
        self.misfits: tuple[str, ...] = ()
        self.notices: tuple[str, ...] = ()
        try:
            self.config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trusted)
        except Exception as error:  # a stranger's file: transformers raises what its values happen to lead to
            raise ModelError(
                f"model {path}: config.json cannot be used: {one_line(error)}; is this a transformers model? Get its"
                " folder again, or give another"
            ) from error

    def model(self, auto_class: Any, **overrides: Any) -> nn.Module:
        self._require_class(auto_class)
        try:
            if self.abstract:
                return self._abstract(auto_class, overrides)
            with quiet_loading():
                config, arguments = self._config(overrides), dict(self.arguments)
                if getattr(config, "quantization_config", None) is not None and "quantization_config" in arguments:
                    config.quantization_config = arguments.pop("quantization_config").to_dict()
                loaded: nn.Module
                loaded, report = auto_class.from_pretrained(
                    self.path,
                    config=config,
                    local_files_only=True,
                    trust_remote_code=self.trusted,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # a pretrained head for other classes: `misfits` says which
                    **arguments,
                )
        except Exception as error:  # what a config says, and what files hold, may lead anywhere
            raise ModelError(
                f"model {self.path} cannot be loaded as {auto_class.__name__}: {one_line(error)}; mend its config.json,"
                " or get its folder again"
            ) from error
        self.misfits = tuple(sorted(str(misfit[0]) for misfit in report.get("mismatched_keys", ())))
        self.missing = tuple(sorted({*report.get("missing_keys", ()), *self.misfits}))
        told = head_rows.settle(
            loaded,
            self.config,
            overrides,
            head_rows.Stored(self.misfits, self.missing, lambda name: model_folder.tensor(self.path, name)),
            lambda described: self._abstract(auto_class, described),
        )
        self.notices = () if told is None else (told,)
        return loaded

    def _config(self, overrides: Mapping[str, Any]) -> Any:
        return type(self.config).from_dict({**self.config.to_dict(), **overrides})

    def _abstract(self, auto_class: Any, overrides: Mapping[str, Any]) -> nn.Module:
        import torch

        # Said to what may look for code: left open, transformers would ask at the terminal.
        trust = {"trust_remote_code": self.trusted} if hasattr(auto_class, "_model_mapping") else {}
        with torch.device("meta"), quiet_loading():
            built: nn.Module = auto_class.from_config(
                self._config(overrides), dtype=self.arguments.get("dtype"), **trust
            )
        _set_generation(built, self.path)
        return built

    def _require_class(self, auto_class: Any) -> None:
        """Raise WrongKind where neither transformers nor the model's own code, if it may run, has such a class."""
        classes = getattr(auto_class, "_model_mapping", None)
        own = getattr(self.config, "auto_map", None) or {}
        if classes is None or type(self.config) in classes or (self.trusted and auto_class.__name__ in own):
            return
        raise WrongKind(
            f"model {self.path}: transformers has no {auto_class.__name__} of a {self.config.model_type!r} model: give"
            " another"
        )

    def processor(self, auto_class: Any) -> Any:
        try:
            made = auto_class.from_pretrained(self.path, local_files_only=True, trust_remote_code=self.trusted)
            if hasattr(made, "all_special_tokens") and len(made) <= len(made.all_special_tokens):
                raise ValueError("it has no vocabulary")  # transformers makes an empty one where there are no files
            _quiet_about_length(made)
            return made
        except Exception as error:
            if self.abstract:
                return None  # a config alone can be planned for
            raise ModelError(
                f"model {self.path} has no usable {auto_class.__name__}: {one_line(error)}; add its tokenizer files"
            ) from error


def _set_generation(model: Any, path: Path) -> None:
    """How the folder says that its model generates: `from_pretrained` reads it, `from_config` does not."""
    from transformers import GenerationConfig

    if hasattr(model, "generation_config") and model.can_generate() and (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)


def _quiet_about_length(processor: Any) -> None:
    """transformers warns once of a text that is longer than the model reads. Tasks cut texts themselves, and count."""
    tokenizer = getattr(processor, "tokenizer", processor)
    warned = getattr(tokenizer, "deprecation_warnings", None)
    if isinstance(warned, dict):
        warned["sequence-length-is-longer-than-the-specified-maximum"] = True
