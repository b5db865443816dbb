"""image-classification: pictures as the model's own processor has them, every kind of model, features kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import frozen_runs as runs
import pytest
import torch
import transformers
from PIL import Image
from samples_vision import classified, drawn

from pefttool.api.errors import ModelError
from pefttool.api.facts import Facts
from pefttool.api.values import Row, Setting
from pefttool.config import recipe
from pefttool.config import registry as registries
from pefttool.data import corpus
from pefttool.data.rows import find_files, item_suffixes, read
from pefttool.models import facts
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing.models import model_folder
from pefttool.testing.vision_models import tiny_vision
from pefttool_lora.options import LoraOptions, resolve
from pefttool_vision.augmentation import augment
from pefttool_vision.classification import ImageClassification

pytestmark = pytest.mark.usefixtures("own_cache")
TASK = ImageClassification()
REGISTRY = registries.build()
SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
PATCHES: dict[str, Any] = {"image_size": 28, "patch_size": 7}
STAGES: dict[str, Any] = {"depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "embed_dim": 16}
KINDS: dict[str, Any] = {
    "vit": transformers.ViTConfig(**SIZES, **PATCHES),
    "deit": transformers.DeiTConfig(**SIZES, **PATCHES),
    "beit": transformers.BeitConfig(**SIZES, **PATCHES, out_indices=[1]),
    "dinov2": transformers.Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, **PATCHES),
    "swin": transformers.SwinConfig(image_size=28, patch_size=2, **STAGES),
    "convnext": transformers.ConvNextConfig(depths=[1, 1], hidden_sizes=[16, 32], num_stages=2, image_size=28),
}


def setting(**options: Any) -> Setting:
    return Setting(TASK.Options(**options), labels=("blue", "green", "red"))


def loaded(folder: Path, **options: Any) -> tuple[Any, Any, Setting]:
    chosen = setting(**options)
    read = load_model(Loading(folder, TASK, chosen, None, Facts(architecture=""), "cpu", "float32"))
    model, processor = read.model, read.processor
    return model, processor, chosen


def placed(rows: list[dict[str, Any]]) -> list[Row]:
    return [Row(values, "rows", i) for i, values in enumerate(rows, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_classified_with_and_trained(kind: str, tmp_path: Path) -> None:
    """Loss and gradients, at the pretrained size and at another, and LoRA's default finds all linear layers."""
    torch.manual_seed(0)
    folder = tiny_vision(tmp_path / "model")
    transformers.AutoModel.from_config(KINDS[kind]).save_pretrained(folder)
    rows = placed(classified(tmp_path))
    for options in ({}, {"size": 42}):
        model, processor, chosen = loaded(folder, **options)
        batch = TASK.collate([TASK.encode(row, processor, chosen) for row in rows], processor, chosen)
        assert batch["pixel_values"].shape == (3, 3, *(2 * (options.get("size", 28),)))
        loss = TASK.loss(model, batch, chosen)
        loss.sum.backward()
        assert float(loss.weight) == 3 and torch.isfinite(loss.sum)
        head = model.get_submodule(TASK.head_modules(model)[-1])
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.parameters())
        known = facts.inspect(model, TASK)
        targets = resolve(LoraOptions(), known)
        assert any("q" in name.rpartition(".")[2] for name in targets) or kind == "convnext"
        assert targets and not any(name.startswith("classifier") for name in targets)
        backbone, new = TASK.split(model)
        assert new is head and sum(p.numel() for p in backbone.parameters()) > 1000


def test_every_class_reaches_the_loss(tmp_path: Path) -> None:
    model, processor, chosen = loaded(model_folder("vision"))
    (image, *_) = classified(tmp_path)
    rows = placed([{**image, "label": label} for label in chosen.labels])
    losses = []
    for row in rows:
        batch = TASK.collate([TASK.encode(row, processor, chosen)], processor, chosen)
        losses.append(float(TASK.loss(model, batch, chosen).sum.detach()))
    assert sum(torch.tensor(losses).neg().exp()) == pytest.approx(1, abs=1e-5)  # they are -log of one distribution


def test_dinov2_reads_the_class_token_and_the_mean_of_the_patches(tmp_path: Path) -> None:
    model, processor, chosen = loaded(model_folder("vision"))
    batch = TASK.collate([TASK.encode(r, processor, chosen) for r in placed(classified(tmp_path))], processor, chosen)
    seen: list[Any] = []
    model.classifier.features.register_forward_hook(lambda module, _, output: seen.append(output))
    with torch.no_grad():
        model(batch["pixel_values"])
        hidden = model.dinov2(batch["pixel_values"]).last_hidden_state
    assert torch.equal(seen[0], torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], dim=1))
    plain = transformers.Dinov2ForImageClassification(model.config)
    assert set(plain.state_dict()) == set(model.state_dict())  # what is saved is transformers' own


def test_a_pretrained_head_for_other_classes_is_replaced(tmp_path: Path) -> None:
    folder = tiny_vision(tmp_path / "model")
    transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **PATCHES, num_labels=7)).save_pretrained(
        folder
    )
    model, _, _ = loaded(folder)
    assert model.classifier.out_features == 3


def test_a_backbone_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = tiny_vision(tmp_path / "model")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, "patch_size": 14}))
    with pytest.raises(ModelError, match="another shape than its config"):
        loaded(folder)


def write_pictures(folder: Path, count: int = 18) -> Path:
    colours = ("red", "green", "blue")
    for i in range(count):
        (folder / colours[i % 3]).mkdir(parents=True, exist_ok=True)
        drawn(folder / colours[i % 3] / f"{i}.png", colours[i % 3], boxes=[[i % 5, i % 7, 12 + i, 14]])
    return folder


def test_a_folder_of_pictures_is_a_row_for_each_and_its_folders_name_the_class(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p" / "train", 6)
    write_pictures(tmp_path / "p" / "test", 3)
    files = find_files(tmp_path / "p", item_suffixes(REGISTRY))
    assert (len(files.train), len(files.eval)) == (6, 3)
    rows = read(files.train, REGISTRY).rows
    assert {row.values["label"] for row in rows} == {"red", "green", "blue"}
    assert TASK.recognise(list(rows[0].values), [row.values for row in rows]) is not None


def test_a_picture_beside_the_folders_of_classes_is_left_out_and_told(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p")
    drawn(folder / "loose.png", "red")
    document = {
        "model": "none",
        "adapter": {"name": "head"},
        "task": {"name": "image-classification"},
        "data": {"train": str(folder)},
    }
    found = corpus.load(recipe.resolve(document, REGISTRY), REGISTRY)
    assert found.labels == ("blue", "green", "red") and len(found.train) + len(found.eval) == 18
    told = f"data {folder / 'loose.png'}: left out, lying beside the folders of classes and in none of them"
    assert told in found.notices


def test_features_are_kept_and_the_second_epoch_runs_no_backbone(tmp_path: Path) -> None:
    """Every picture passes the backbone once for training, once for evaluation; and what is learnt is the same."""
    pictures, folder = write_pictures(tmp_path / "pictures"), tiny_vision(tmp_path / "model")
    common: dict[str, Any] = {"task": "image-classification", "train__epochs": 3}
    kept = runs.fine_tune(REGISTRY, tmp_path / "kept", folder, pictures, **common)
    again = runs.fine_tune(REGISTRY, tmp_path / "again", folder, pictures, **common)
    plain = runs.fine_tune(REGISTRY, tmp_path / "plain", folder, pictures, data__cache=False, **common)
    assert "features" in kept.progressed() and "features" not in again.progressed()
    assert again.forwards["Dinov2Layer"] < kept.forwards["Dinov2Layer"] < plain.forwards["Dinov2Layer"]
    assert torch.allclose(torch.tensor(kept.losses), torch.tensor(plain.losses), rtol=1e-4)
    assert kept.losses == again.losses and kept.losses[-1] < kept.losses[0]
    # The frontier is what the classifier sees, not all patches: two numbers for each of the hidden ones.
    made = [p for p in (tmp_path / "cache" / "made").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in made) < 18 * 2 * 64 * 4 + 60_000


def test_a_picture_that_changed_has_other_features(tmp_path: Path) -> None:
    pictures, folder = write_pictures(tmp_path / "pictures"), tiny_vision(tmp_path / "model")
    runs.fine_tune(REGISTRY, tmp_path / "a", folder, pictures, task="image-classification")
    drawn(next((pictures / "red").glob("*.png")), "yellow")
    seen = runs.fine_tune(REGISTRY, tmp_path / "b", folder, pictures, task="image-classification")
    assert "features" in seen.progressed()


@pytest.mark.parametrize("adapter", ["lora", "full", "prefix"])
def test_other_adapters_learn_colours(tmp_path: Path, adapter: str) -> None:
    seen = runs.fine_tune(
        REGISTRY,
        tmp_path / "run",
        tiny_vision(tmp_path / "model"),
        write_pictures(tmp_path / "pictures", 24),
        task="image-classification",
        adapter=adapter,
        train__epochs=4,
    )
    assert seen.after["loss"] < seen.before["loss"]


def test_augmentation_draws_from_seed_epoch_and_picture_and_only_in_training(tmp_path: Path) -> None:
    picture = Image.radial_gradient("L").convert("RGB").crop((0, 0, 200, 120))
    both = ("flip", "crop")
    made = {(s, e, n): augment(picture, both, s, e, n).tobytes() for s in (0, 1) for e in (0, 1) for n in "ab"}
    assert len(set(made.values())) == len(made)
    assert made[0, 1, "b"] == augment(picture, both, 0, 1, "b").tobytes()
    _, processor, chosen = loaded(model_folder("vision"), augment=("flip",))
    image = str(tmp_path / "a.png")
    picture.save(image)
    example = TASK.encode(Row({"image": image, "label": "red"}), processor, chosen)
    plain = TASK.collate([example], processor, chosen)["pixel_values"]

    def in_epoch(epoch: int) -> torch.Tensor:
        from dataclasses import replace

        return TASK.collate([example], processor, replace(chosen, epoch=epoch))["pixel_values"]

    found = [in_epoch(epoch) for epoch in range(12)]
    assert all(torch.equal(f, plain) or torch.allclose(f, plain.flip(-1), atol=1e-6) for f in found)
    assert {torch.equal(f, plain) for f in found} == {True, False}


def test_augmented_runs_keep_no_features_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training picture is drawn once for each epoch; held-out ones, and the base's answers, never."""
    from pefttool_vision import classification

    drawn_for: list[tuple[int, str]] = []

    def recording(picture: Image.Image, kinds: Any, seed: int, epoch: int, name: str) -> Image.Image:
        drawn_for.append((epoch, name))
        return augment(picture, kinds, seed, epoch, name)

    monkeypatch.setattr(classification, "augment", recording)
    seen = runs.fine_tune(
        REGISTRY,
        tmp_path / "run",
        tiny_vision(tmp_path / "model"),
        write_pictures(tmp_path / "pictures"),
        task="image-classification",
        task__augment=["flip", "crop"],
    )
    rows = len({name for _, name in drawn_for})
    assert sorted(epoch for epoch, _ in drawn_for) == [0] * rows + [1] * rows and len(set(drawn_for)) == 2 * rows
    assert any("changes its rows in every epoch" in text for text in seen.notices())
    assert "features" not in seen.progressed()


def test_bad_rows_say_what_was_found(tmp_path: Path) -> None:
    good = drawn(tmp_path / "good.png", "red")
    jpeg = tmp_path / "cut.jpg"
    Image.radial_gradient("L").save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:1500])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    options = TASK.Options()

    def said(**values: Any) -> str:
        return TASK.check_row(values, options) or ""

    assert said(image=good, label="red") == ""
    assert "found no picture at" in said(image=str(tmp_path / "gone.png"), label="red")
    for name, words in {"cut.jpg": "truncated", "text.png": "cannot identify", "empty.png": "empty"}.items():
        assert words in said(image=str(tmp_path / name), label="red") and name in said(
            image=str(tmp_path / name), label="red"
        )
    assert "expected 8 bits a channel" in said(image=str(tmp_path / "deep.png"), label="red")
    assert "column 'label': found None" in said(image=good, label=None)
    assert "-o task.image_column=COLUMN" in said(picture_file=good, label="red")
    assert "and that is no file" in said(image=str(tmp_path), label="red")


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    drawn(tmp_path / "a.png", "red")
    row = TASK.locate(Row({"image": "a.png", "label": "x"}, str(tmp_path / "rows.jsonl"), 3), TASK.Options())
    assert row.values["image"] == str(tmp_path / "a.png") and TASK.check_row(row.values, TASK.Options()) is None
    assert TASK.files(row.values, TASK.Options()) == (str(tmp_path / "a.png"),)


def test_metrics_are_what_they_are_known_to_be() -> None:
    two = Setting(TASK.Options(), labels=("no", "yes"))
    rows = [Row({"image": "x", "label": v}) for v in ("yes", "yes", "no", "no")]
    logits = torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, -3.0], [0.0, 1.0]])
    metrics = TASK.metrics(TASK.decode(logits, two), rows, 0.3, two)
    assert metrics["accuracy"] == 0.5 and metrics["f1_macro"] == pytest.approx(0.5)
    assert metrics["auroc"] == 0.75  # of the four pairs, yes is above no in three
    one = Setting(TASK.Options(top_k=1), labels=("no", "yes"))
    assert TASK.metrics(TASK.decode(logits, one), rows, 0.3, one)["auroc"] == pytest.approx(0.75)


def test_predictions_list_the_best_classes() -> None:
    (best,) = TASK.decode(torch.tensor([[1.0, 3.0, 2.0]]), setting(top_k=2))
    assert list(best["scores"]) == ["green", "red"] and best["label"] == "green"
    assert best["score"] == pytest.approx(0.6652, abs=1e-4)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from pefttool_vision import pictures

    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    (problem,) = TASK.check(TASK.Options(), Facts(architecture=""))
    assert "pillow" in str(problem) and 'pip install "pefttool[vision]"' in str(problem)


def test_a_plan_needs_no_pictures(tmp_path: Path) -> None:
    from pefttool.forecast import forecast
    from pefttool.setup import plan

    document = {
        "model": str(tiny_vision(tmp_path / "model")),
        "adapter": {"name": "lora"},
        "task": {"name": "image-classification", "size": 56},
        "data": {"train": str(write_pictures(tmp_path / "pictures"))},
        "device": "cpu",
    }
    made = forecast.make(plan.make(recipe.resolve(document, REGISTRY), REGISTRY))
    assert made.total_bytes > 0


def test_many_files_are_found_in_the_time_that_few_take_each(tmp_path: Path) -> None:
    """Ten times as many may take some thirty times as long, on a busy machine; not a hundred times."""
    import time

    def seconds(count: int) -> float:
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            (folder / f"{i}.png").touch()
        began = time.process_time()
        assert len(find_files(folder, (".png",)).train) == count
        return time.process_time() - began

    assert seconds(4000) < 30 * seconds(400)
