"""Small PatchTST models, pretrained here: no package carries a pretrained transformer for series.

Each is trained on one part of its example's data (other speakers, other months, another fleet, other roads) and is
fine-tuned on another. A minute or so of one core each; the seed is fixed, so the same machine makes the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool.toolkit.quiet import quiet_loading
from pefttool_examples import appliances, movements, series

if TYPE_CHECKING:
    from torch import Tensor

#: Layer norms: the statistics of batch norms would be those of what was pretrained on.
SIZES = {
    "d_model": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "norm_type": "layernorm",
    "ff_dropout": 0.1,
    "head_dropout": 0.1,
    "do_mask_input": False,
}


def make_voices(folder: Path) -> None:
    """A classifier of five speakers, told apart in five orders of the channels besides their own."""
    import torch

    rows, labels = series.known_voices()
    channels, length, orders = 12, 32, 6
    values = standardised(padded(rows, length))
    speakers = torch.tensor(labels)
    config = {"num_input_channels": channels, "context_length": length, "patch_length": 8, "patch_stride": 8}
    with seeded():
        shuffles = torch.stack([torch.arange(channels), *(torch.randperm(channels) for _ in range(orders - 1))])
        model = classifier(len(set(labels)) * orders, scaling=None, **config)

        def batch() -> tuple[Tensor, Tensor]:
            rows, order = torch.randint(len(values), (48,)), torch.randint(orders, (48,))
            picked = torch.stack(
                [values[r][:, shuffles[o]] for r, o in zip(rows.tolist(), order.tolist(), strict=True)]
            )
            noise = 0.3 * (torch.randn(48, 1, channels) + torch.randn(48, length, channels))
            return picked + noise, speakers[rows] * orders + order

        train(model, classified(model, batch), steps=800)
    # What the head learnt is of no use for other speakers.
    save(model.model, folder)


def make_appliances(folder: Path) -> None:
    """A classifier of seven kinds of appliances, as they are, backwards, upside down, or both: 28 classes, whatever the
    moment they are switched on, their level and its drift.
    """
    import torch

    rows, kinds = appliances.known_appliances()
    length, orders = appliances.LENGTH, 4
    values = standardised(torch.tensor(rows).unsqueeze(-1))
    names = sorted(set(kinds))
    labels = torch.tensor([names.index(kind) for kind in kinds])
    # Between the share that a kind has of the recordings and the same for every kind.
    weights = labels.bincount().float().rsqrt()[labels]
    config = {"num_input_channels": 1, "context_length": length, "patch_length": 8, "patch_stride": 8}
    with seeded():
        model = classifier(len(names) * orders, scaling=None, **config)

        def batch() -> tuple[Tensor, Tensor]:
            rows, order = torch.multinomial(weights, 48, replacement=True), torch.randint(orders, (48,))
            moments = torch.arange(length) - torch.randint(-12, 13, (48, 1))
            moved = values[rows].gather(1, moments.clamp(0, length - 1).unsqueeze(-1))
            level = 0.8 + 0.4 * torch.rand(48, 1, 1)
            drift = 1 + 0.2 * torch.randn(48, 1, 1) * torch.linspace(-1, 1, length).unsqueeze(-1)
            noise = 0.05 * torch.randn(48, length, 1)
            turned = where(order % 2 == 1, lambda v: v.flip(1), moved * level * drift + noise)
            return where(order >= 2, lambda v: -v, turned), labels[rows] * orders + order

        train(model, classified(model, batch), steps=1600)
    # What the head learnt is of no use for other kinds.
    save(model.model, folder)


def make_movements(folder: Path) -> None:
    """A classifier of eight movements, as they are, backwards, mirrored, and turned by quarters: 128 classes, wherever
    they are, however slanted, and whether they begin fast or slowly. It reads x and y together, and tells them apart.
    """
    import torch

    rows, numbers = movements.known_movements()
    length, orders, quarters = movements.LENGTH, 4, 4
    values = standardised(torch.tensor(rows).transpose(1, 2))
    known = sorted(set(numbers))
    labels = torch.tensor([known.index(number) for number in numbers])
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turns = torch.stack([quarter.matrix_power(number) for number in range(quarters)])
    config = {"num_input_channels": 2, "context_length": length, "patch_length": 9, "patch_stride": 6}
    with seeded():
        model = classifier(
            len(known) * orders * quarters, scaling=None, channel_attention=True, share_embedding=False, **config
        )

        def batch() -> tuple[Tensor, Tensor]:
            rows, order = torch.randint(len(values), (48,)), torch.randint(orders, (48,))
            turn = torch.randint(quarters, (48,))
            moved = where(order % 2 == 1, lambda v: v.flip(1), at_another_pace(values[rows], 0.3))
            moved = where(order >= 2, lambda v: v * torch.tensor([-1.0, 1.0]), moved)
            middle = moved.mean(1, keepdim=True)
            slant = torch.eye(2) + 0.2 * torch.randn(48, 2, 2)
            moved = (moved - middle) @ turns[turn] @ slant + middle + 0.2 * torch.randn(48, 1, 2)
            return moved + 0.05 * torch.randn(48, length, 2), (labels[rows] * orders + order) * quarters + turn

        train(model, classified(model, batch), steps=1800)
    # What the head learnt is of no use for other movements.
    save(model.model, folder)


def at_another_pace(values: Tensor, deviation: float) -> Tensor:
    """`values`, `[B, L, C]`, the beginning of each faster or slower than its end: time to a power whose logarithm has
    this deviation. The first moment and the last stay as they are.
    """
    import torch

    rows, length, channels = values.shape
    powers = (deviation * torch.randn(rows, 1)).exp()
    places = torch.linspace(0, 1, length).pow(powers).unsqueeze(-1) * (length - 1)
    before = places.long().clamp(max=length - 2)
    share = places - before
    earlier, later = (values.gather(1, at.expand(-1, -1, channels)) for at in (before, before + 1))
    return torch.lerp(earlier, later, share)


def where(rows: Tensor, change: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """`values`, `[B, L, C]`, changed in the rows that are marked, `[B]`."""
    return change(values).where(rows.view(-1, 1, 1), values)


def make_power(folder: Path) -> None:
    """A forecaster of the last 8 hours of a day, from those of winter."""
    import torch

    days = torch.tensor(series.winter_days()).unsqueeze(-1)
    config = {"context_length": series.MORNING, "prediction_length": 24 - series.MORNING}
    with seeded():
        model = forecaster(patch_length=4, patch_stride=4, **config)
        train(model, forecast(model, lambda: days[torch.randint(len(days), (64,))]), steps=1000)
    save(model, folder)


def make_degradation(folder: Path) -> None:
    """A classifier of SYNTHETIC machines of one fleet: "fails" within 30 cycles, or "runs"."""
    import torch

    rows = list(series.machines(series.FLEET_A, 1500, seed=1))
    values = standardised(torch.tensor([row["series"] for row in rows]).transpose(1, 2))
    labels = torch.tensor([int(row["label"] == "runs") for row in rows])
    with seeded():
        model = classifier(
            2,
            num_input_channels=4,
            context_length=series.WINDOW,
            patch_length=8,
            patch_stride=8,
            scaling=None,
            id2label={0: "fails", 1: "runs"},
            label2id={"fails": 0, "runs": 1},
        )

        def batch() -> tuple[Tensor, Tensor]:
            rows = torch.randint(len(values), (48,))
            return values[rows], labels[rows]

        train(model, classified(model, batch), steps=600)
    save(model, folder)


def make_trajectories(folder: Path) -> None:
    """A forecaster of how SYNTHETIC vehicles on country roads move on."""
    import torch

    rows = list(series.vehicles(series.COUNTRY, 3000, seed=2))
    paths = torch.tensor([[past + ahead for past, ahead in zip(r["series"], r["future"], strict=True)] for r in rows])
    paths = paths.transpose(1, 2)
    with seeded():
        model = forecaster(
            num_input_channels=2,
            context_length=series.PAST,
            prediction_length=series.AHEAD,
            patch_length=8,
            patch_stride=4,
        )
        train(model, forecast(model, lambda: paths[torch.randint(len(paths), (64,))]), steps=1000)
    save(model, folder)


def classifier(classes: int, **config: Any) -> Any:
    from transformers import PatchTSTConfig, PatchTSTForClassification

    return PatchTSTForClassification(PatchTSTConfig(**{**SIZES, "num_targets": classes, **config}))


def forecaster(**config: Any) -> Any:
    """Its head reads every patch, not their mean."""
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    return PatchTSTForPrediction(PatchTSTConfig(**{**SIZES, "head_dropout": 0.0, "pooling_type": None, **config}))


def classified(model: Any, batch: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        values, labels = batch()
        found: Tensor = model(past_values=values, target_values=labels).loss
        return found

    return loss


def forecast(model: Any, batch: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Errors in units of each window's own deviation, as series-forecasting trains."""
    from torch.nn.functional import smooth_l1_loss

    length = model.config.context_length

    def loss() -> Tensor:
        values = batch()
        outputs = model(past_values=values[:, :length])
        scale = outputs.scale
        return smooth_l1_loss(outputs.prediction_outputs / scale, values[:, length:] / scale)

    return loss


def train(model: Any, loss: Callable[[], Tensor], steps: int, rate: float = 1e-3) -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def save(model: Any, folder: Path) -> None:
    with quiet_loading():
        model.save_pretrained(folder)


def padded(rows: list[list[list[float]]], length: int) -> Tensor:
    """`[N, length, C]`: the end of every series, its mean before a shorter one."""
    import torch

    found = []
    for row in rows:
        values = torch.tensor(row)[:, -length:]
        filler = values.mean(1, keepdim=True).expand(len(row), length - values.shape[1])
        found.append(torch.cat([filler, values], 1))
    return torch.stack(found).transpose(1, 2)


def standardised(values: Tensor) -> Tensor:
    """Every channel with mean 0 and deviation 1 over all rows."""
    return (values - values.mean((0, 1))) / values.std((0, 1))


@contextmanager
def seeded() -> Iterator[None]:
    """Within, torch draws from a fixed seed; afterwards it goes on as if nothing had been drawn."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
