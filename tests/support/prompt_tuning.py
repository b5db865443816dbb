"""Prompt tuning as somebody else's package would bring it: peft's own, with virtual tokens before the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from pefttool import Adapter, Options
from pefttool.api.facts import Facts
from pefttool.api.values import Attached


class PromptTuningOptions(Options):
    num_virtual_tokens: int = Field(5, ge=1, description="trained tokens before the text")


class PromptTuning(Adapter):
    name = "prompt-tuning"
    Options = PromptTuningOptions

    def defaults(self, task: Any) -> dict[str, float]:
        return {"learning_rate": 1e-2}

    def added_positions(self, options: PromptTuningOptions, facts: Facts) -> int:
        return options.num_virtual_tokens

    def attach(self, model: Any, options: PromptTuningOptions, facts: Facts) -> Attached:
        import peft

        from pefttool.toolkit import attachment

        attachment.claim(model, self.name)
        config = peft.PromptTuningConfig(
            task_type=facts.peft_task_type, num_virtual_tokens=options.num_virtual_tokens, inference_mode=False
        )
        adapted = peft.get_peft_model(model, config)
        trained = frozenset(n for n, p in adapted.named_parameters() if p.requires_grad)
        return Attached(adapted, trained, identity_at_init=False)

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(self, model: Any, folder: Path) -> Any:
        import peft

        loaded = peft.PeftModel.from_pretrained(model, str(folder))
        return loaded.requires_grad_(False)

    def disabled(self, model: Any) -> Any:
        return model.disable_adapter()


class CutsTheExtra(PromptTuning):
    """Says nothing of its positions, and takes away the logits that nobody asked for: trains on the wrong ones."""

    def added_positions(self, options: PromptTuningOptions, facts: Facts) -> int:
        return 0

    def attach(self, model: Any, options: PromptTuningOptions, facts: Facts) -> Attached:
        attached = super().attach(model, options, facts)
        attached.model.register_forward_hook(self._cut, with_kwargs=True)
        return attached

    def _cut(self, model: Any, placed: Any, named: Any, output: Any) -> Any:
        output.logits = output.logits[:, -named["input_ids"].shape[1] :]
        return output


class SaysNothing(PromptTuning):
    """Leaves the extra logits where they are."""

    def added_positions(self, options: PromptTuningOptions, facts: Facts) -> int:
        return 0


def install(folder: Path, patch: Any) -> None:
    """A distribution `acme-prompt-tuning` in `folder`, as pip would put it there, with this module as its plugin."""
    module = "acme_prompt_tuning"
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-prompt-tuning\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pefttool]\nprompt-tuning = {module}\n")
    hook = "\n\n@hookimpl\ndef register_adapters():\n    return [PromptTuning()]\n"
    own = Path(__file__).read_text(encoding="utf-8").replace("import Adapter", "import hookimpl, Adapter", 1)
    (folder / f"{module}.py").write_text(f"{own}\n\npefttool_api_version = 2{hook}", encoding="utf-8")
    patch.syspath_prepend(folder)
