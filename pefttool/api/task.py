"""What plugins implement. Torch appears only in annotations: importing this is cheap.

Shapes in docstrings: B rows in a batch, T tokens, V vocabulary, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pefttool.api.facts import Facts
from pefttool.api.options import Options
from pefttool.api.pretrained import Pretrained
from pefttool.api.values import Arranged, Loaded, Loss, Problem, Row, Setting

if TYPE_CHECKING:
    from torch import Tensor, nn

Direction = Literal["max", "min"]


class Task(ABC):
    """What a row means: encoding, loss, predictions, metrics. One object serves all runs: keep no state in it.

    A run calls these methods in the order in which they stand here, which is that of the first calls. Those in brackets
    are called where a run has a reason to.

    plan: recognise, [recognise_model], defaults, load, head_modules, unused, left_alone, check, [filler]
    rows: locate, check_row, settle, files, reads, arrange, stratum, classes, labels, remarks, key, fit, [check_given]
    encode: encoding_options, encode, check_encoded, [untrained], collate, prepare, noted, preview
    train: [check_packing], [split], loss, [varies], decode, metrics, judge
    use: predict, stops, [check_input]

    `plan` comes before any weight is loaded: `load` builds an abstract model there, and once more a real one between
    `rows` and `encode`. A forecast of the memory makes rows with `filler`, and collates and trains on them. `settle`
    may change the options: then `check_row` judges every row again. `loss`, `decode` and `metrics` belong to a step and
    an evaluation; `judge` names the metric that decides between evaluations. `predict` makes the sample answers of a
    run, and all answers of `predict` and `eval`, whose rows `check_input` judges.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Options]] = Options
    #: The metric that decides which checkpoint is best, and its direction.
    primary: ClassVar[tuple[str, Direction]] = ("loss", "min")
    #: The model generates (its predictions need `generate`, its loss counts tokens).
    generative: ClassVar[bool] = False
    #: A text that is to be answered is a user's message, where the model has a chat template.
    converses: ClassVar[bool] = False
    #: `collate` and `loss` can lay rows one behind another in one sequence, and `check_packing` says for which models.
    packs: ClassVar[bool] = False
    #: `loss` and `predict` use nothing that has a position but `input_ids`, their mask, `logits_to_keep` and `logits`
    #: of `[B, T, V]`, and `generate`: the core then keeps them right behind an adapter that adds positions.
    allows_added_positions: ClassVar[bool] = False
    #: `encode` and `collate` depend on their arguments and on what `files` names alone: on no other file, and on no
    #: chance. Then encoded rows, and what a frozen model makes of them, are kept for the next run.
    repeatable: ClassVar[bool] = False
    #: Rows alone do not say that this task is meant (they are another's, too): it has to be asked for by name.
    by_name_only: ClassVar[bool] = False
    #: A row can be shortened to `train.sequence_length`. False: it has the size that it has (a picture, a recording).
    truncates: ClassVar[bool] = True
    #: Metrics are of what `predict` answers (it generates), not of what `decode` makes of the loss's forward pass.
    judged_by_answers: ClassVar[bool] = False
    #: Defaults for `generation.*` keys that suit this task, e.g. `{"max_new_tokens": 400}`.
    generation: ClassVar[Mapping[str, Any]] = {}
    #: What the adapters' own defaults for rates are multiplied by on this task, e.g. `{"head_learning_rate": 10.0}`.
    rates: ClassVar[Mapping[str, float]] = {}
    #: peft's TaskType for this task, written into adapter_config.json so that plain peft loads it.
    peft_task_type: ClassVar[str | None] = None
    #: A recipe fragment that runs without any data of the user's, e.g. `{"model": ..., "data": {"train": ...}}`.
    example: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def recognise(self, columns: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
        """Why rows like `sample` look like this task's, in a few words, or None. Two matches are an error."""

    def recognise_model(self, config: Any) -> str | None:
        """Why a model of this transformers config is meant for this task, for planning without data; or None."""
        return None

    def defaults(self) -> Mapping[str, Any]:
        """Defaults for `train.*` keys that suit this task; the adapter's come on top."""
        return {}

    @abstractmethod
    def load(self, source: Pretrained, setting: Setting) -> Loaded:
        """Build the model and its processor through `source.model(AutoClass, ...)` and `source.processor(AutoClass)`.

        `source` decides whether the weights are real, quantised, or abstract (simulation).
        """

    def head_modules(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the modules that are new with this task and have to be trained from scratch."""
        return ()

    def unused(self, model: nn.Module) -> tuple[str, ...]:
        """Names of modules and parameters of the pretrained model that this task never calls: nothing there trains.

        By default what stands for hidden patches of a picture, which only pretraining hides.
        """
        return tuple(name for name, _ in model.named_parameters() if name.endswith(".mask_token"))

    def left_alone(self, model: nn.Module) -> tuple[str, ...]:
        """Names of modules that adapters should leave as they are unless they are asked to change them, too."""
        return ()

    def check(self, options: Any, facts: Facts) -> list[Problem]:
        """Everything that would go wrong with this task on this model; called before weights are loaded."""
        return []

    def filler(self, length: int, setting: Setting) -> Mapping[str, Any]:
        """An encoded row of `length` tokens, all of them trained: what a simulation is run with.

        Default: the task cannot be simulated without data.
        """
        raise NotImplementedError

    def locate(self, row: Row, options: Any) -> Row:
        """The row, with absolute paths of the files that it names: as written they are relative to `row.file`."""
        return row

    @abstractmethod
    def check_row(self, values: Mapping[str, Any], options: Any) -> str | None:
        """What is wrong with this row ("column 'text': found 3, expected a string"), or None."""

    def settle(self, rows: Sequence[Row], options: Any) -> Any:
        """The options with what the training rows decide (what stands on `auto`); saved with the adapter.

        Raises DataError where the rows do not say. Rows are then checked once more, with what is returned.
        """
        return options

    def files(self, values: Mapping[str, Any], options: Any) -> tuple[str, ...]:
        """Absolute paths of the files that a row names, and `encode` or `collate` reads."""
        return ()

    def reads(self, values: Mapping[str, Any], options: Any) -> Iterable[str] | None:
        """What of this row the task makes use of: columns, and fields of what lies inside them as `messages[].role`.

        Whatever else the row has is told to the user once, as not used. A column that is named alone is used with all
        that is in it. It is asked once for all rows with the same columns and fields. None: the task does not say.
        """
        return None

    def arrange(
        self, train: Sequence[Row], held_out: Sequence[Row] | None, fraction: float, options: Any
    ) -> Arranged | None:
        """Rows to train on and to judge by, made of the rows that the files hold; None: those, split at random.

        For tasks whose rows come several to a record (the windows of a long series), or that a random split would tell
        the answers (what comes later). `held_out` is None where nobody set any apart: `fraction` is to be.
        """
        return None

    def stratum(self, values: Mapping[str, Any], options: Any) -> str | None:
        """The class of a row, for a stratified split; None: split at random."""
        return None

    def classes(self, values: Mapping[str, Any], options: Any) -> Sequence[str]:
        """The classes of a row as a user knows them, each once: `data check` counts them. Default: its stratum."""
        found = self.stratum(values, options)
        return [] if found is None else [found]

    def labels(self, rows: Sequence[Row], options: Any) -> tuple[str, ...]:
        """The class names, in the order of the model's outputs; () where the task has none."""
        return ()

    def remarks(self, rows: Sequence[Row], options: Any) -> Sequence[str]:
        """What the user should know of the training rows, a line each; a Caution where it is likely not meant."""
        return ()

    def key(self, values: Mapping[str, Any], options: Any) -> str:
        """What makes a row the same as another (its input): for finding duplicates across the split."""
        return repr(sorted(values.items(), key=lambda item: item[0]))

    def fit(self, rows: Sequence[Row], options: Any) -> Mapping[str, Any]:
        """What else the training rows decide (columns, means), as plain JSON values: `Setting.fitted`."""
        return {}

    def check_given(self, rows: Sequence[Row], options: Any, fitted: Mapping[str, Any]) -> str | None:
        """What rows of another file (held out, or to predict) lack of the training rows that `fitted` is of, or None.

        For what no row shows by itself: one without a value is good, and a column that no row has is misspelt.
        """
        return None

    def encoding_options(self, options: Any, processor: Any) -> Any:
        """The options as far as encoded rows depend on them, and so those that are kept for the next run."""
        return options

    @abstractmethod
    def encode(self, row: Row, processor: Any, setting: Setting) -> dict[str, Any]:
        """One row as plain lists, ready for `collate`, with what the core counts:

        `weight` (units of the loss: must be what `loss` reports for it), `length` (tokens), `trained` (trained
        tokens, or 1 for a label), `truncated` (bool). Raises DataError, with its place, for a row that cannot be
        encoded, or has a class that is not among `setting.labels` (`class_names.number` does).
        """

    def check_encoded(self, example: Mapping[str, Any], processor: Any) -> str | None:
        """What is wrong with an encoded row (a double BOS, a missing EOS), or None."""
        return None

    def untrained(self, example: Mapping[str, Any], processor: Any, setting: Setting) -> str:
        """Why there is nothing to train in this encoded row (its `weight` is 0), and what would change that."""
        return f"it is empty, or train.sequence_length={setting.sequence_length} cuts it off"

    @abstractmethod
    def collate(self, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting) -> dict[str, Tensor]:
        """Encoded rows to one batch of tensors on the CPU; what is not a tensor stays on the host."""

    def prepare(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Mapping[str, Tensor]:
        """What the base itself makes of a batch's rows (DPO's reference log-probabilities): name -> `[B]` numbers.

        Asked of the plain base in evaluation mode, once for every row; `collate` finds the numbers in the examples.
        """
        return {}

    def noted(
        self, train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], setting: Setting
    ) -> Sequence[str]:
        """What the user should know of the encoded rows before anything trains: lines as those of `remarks`.

        Such as that the held-out rows will not be judged fairly in this setting, and what to change.
        """
        return ()

    def preview(self, example: Mapping[str, Any], processor: Any) -> str:
        """An encoded row as a person can check it: rendered text, with the trained tokens marked."""
        return ""

    def check_packing(
        self, model: nn.Module, examples: Sequence[Mapping[str, Any]], processor: Any, setting: Setting
    ) -> str | None:
        """Make `model` keep packed rows apart, and find out that it does: why it cannot, or None.

        Asked of tasks with `packs`, in evaluation mode, of the base and again of the adapted model.
        """
        return f"task {self.name!r} has no check_packing"

    def split(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """(backbone, head): what computes features, and what computes outputs from them."""
        raise NotImplementedError(f"task {self.name!r} does not separate a backbone from a head")

    @abstractmethod
    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], setting: Setting) -> Loss:
        """Forward pass and summed loss: the one place for packing, chunked cross-entropy, accumulation and ranks."""

    def varies(self, options: Any) -> bool:
        """Whether `collate` makes something else of a row in every epoch (augmentation): nothing is then kept of it."""
        return False

    def decode(self, outputs: Any, setting: Setting) -> list[dict[str, Any]]:
        """Predictions from `Loss.outputs`, one JSON object a row: evaluation then needs one forward pass only."""
        return []

    def metrics(
        self, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Row], loss: float, setting: Setting
    ) -> dict[str, float]:
        """Held-out metrics; `predictions` is what `decode` gave, row by row (empty if it gives none)."""
        return {"loss": loss}

    def judge(self, setting: Setting) -> tuple[str, Direction]:
        """`primary`, where these options decide on it."""
        return self.primary

    @abstractmethod
    def predict(self, model: nn.Module, rows: Sequence[Row], processor: Any, setting: Setting) -> list[dict[str, Any]]:
        """One JSON object a row, in the rows' order. Rows need not carry labels. Generation lives here."""

    def stops(self, processor: Any) -> Sequence[int]:
        """The tokens at which an answer ends, in ascending order; none: those that the model's settings name."""
        return ()

    def check_input(self, values: Mapping[str, Any], options: Any) -> str | None:
        """Like `check_row`, for rows to predict: they need no label or answer."""
        return None
