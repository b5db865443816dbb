"""object-detection: the dense head and transformers' own detectors, boxes in pixels, average precision as COCO's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import detector_models
import frozen_runs as runs
import pytest
import torch
import transformers
from PIL import Image
from samples_vision import coco_file, detected, drawn

from pefttool.api.errors import DataError, ModelError
from pefttool.api.facts import Facts
from pefttool.api.values import DataProblem, Row, Setting
from pefttool.config import registry as registries
from pefttool.models import facts
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing import check_task
from pefttool.testing.models import model_folder
from pefttool.testing.vision_models import tiny_vision
from pefttool_vision import detectors
from pefttool_vision.coco import Coco
from pefttool_vision.coco_metrics import average_precision
from pefttool_vision.dense import DenseDetector, dense_loss
from pefttool_vision.detection import ObjectDetection
from pefttool_vision.objects import Thing

pytestmark = pytest.mark.usefixtures("own_cache")
TASK = ObjectDetection()
REGISTRY = registries.build()


def setting(**options: Any) -> Setting:
    return Setting(TASK.Options(**options), labels=("blue", "red"))


def loaded(folder: Path, **options: Any) -> tuple[Any, Any, Setting]:
    read = load_model(Loading(folder, TASK, setting(**options), None, Facts(architecture=""), "cpu", "float32"))
    return read.model, read.processor, setting(**options)


def test_the_head_is_the_models_own_where_it_has_one() -> None:
    assert isinstance(loaded(model_folder("vision"))[0], DenseDetector)
    own = loaded(model_folder("detector"))[0]
    assert isinstance(own, transformers.YolosForObjectDetection)
    assert TASK.head_modules(own) == ("class_labels_classifier", "bbox_predictor")
    assert own.class_labels_classifier.layers[-1].out_features == 3  # two classes and nothing, not the pretrained ones
    with pytest.raises(ModelError, match="AutoModelForObjectDetection"):
        loaded(model_folder("vision"), head="model")


def test_a_backbone_without_a_grid_of_patches_is_refused(tmp_path: Path) -> None:
    folder = tiny_vision(tmp_path)
    config = transformers.SwinConfig(image_size=28, patch_size=2, depths=[1, 1], num_heads=[2, 4], embed_dim=16)
    transformers.SwinModel(config).save_pretrained(folder)
    with pytest.raises(ModelError, match="needs a backbone with one grid of patches"):
        loaded(folder)


@pytest.mark.parametrize("kind", ["detector", *detector_models.KINDS])
def test_detectors_keep_the_contract_of_tasks(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pefttool.testing import models

    for name, make in detector_models.KINDS.items():
        monkeypatch.setitem(models.MAKERS, name, make)
    check_task(TASK, detected(tmp_path), kind=kind)
    models.model_folder.cache_clear()


@pytest.mark.parametrize("changes", [{}, {"auxiliary_loss": True}])
def test_a_pictures_loss_is_the_models_own(changes: dict[str, Any], tmp_path: Path) -> None:
    """One picture at a time is what transformers computes; a batch is their sum, whatever else is in it."""
    model, processor, chosen = loaded(detector_models.detr(tmp_path / "model", **changes), size=[32, 48])
    rows = [row for row in detected(tmp_path) if row["objects"]["bbox"]]
    batch = TASK.collate([TASK.encode(Row(row), processor, chosen) for row in rows], processor, chosen)
    losses, outputs = detectors.losses(model, batch["pixel_values"], batch["boxes"], batch["classes"])
    assert outputs.logits.shape[:2] == (2, 5)
    for i, loss in enumerate(losses):
        real = batch["classes"][i] >= 0
        labels = [{"class_labels": batch["classes"][i][real], "boxes": batch["boxes"][i][real]}]
        assert torch.allclose(model(batch["pixel_values"][i : i + 1], labels=labels).loss, loss, rtol=1e-5)


def test_every_box_and_every_class_reaches_the_dense_loss(tmp_path: Path) -> None:
    model, processor, chosen = loaded(model_folder("vision"), size=56)
    row = Row(detected(tmp_path)[2])
    batch = TASK.collate([TASK.encode(row, processor, chosen)], processor, chosen)

    def loss(boxes: torch.Tensor, classes: torch.Tensor) -> float:
        with torch.no_grad():
            return float(dense_loss(model(batch["pixel_values"]), TASK._grid(model), boxes, classes)[0])

    whole = loss(batch["boxes"], batch["classes"])
    for i in range(3):
        without = batch["classes"].clone()
        without[0, i] = -1
        assert loss(batch["boxes"], without) != whole
        moved = batch["boxes"].clone()
        moved[0, i, 2:] *= 0.7
        assert loss(moved, batch["classes"]) != whole
    other = 1 - batch["classes"]
    assert loss(batch["boxes"], other) != whole


def test_boxes_come_back_in_pixels_of_the_file(tmp_path: Path) -> None:
    """A model that is sure of one box: its prediction is that box, however large the picture is on disk."""
    chosen = setting(nms_iou=0.5)
    scores = torch.zeros(1, 4, 2)
    scores[0, 0, 1], scores[0, 1, 1], scores[0, 2, 0] = 0.9, 0.8, 0.7
    box = torch.tensor([0.25, 0.5, 0.75, 1.2])  # leaves the picture at the bottom
    boxes = torch.stack([box, box * 0.99, box, box])[None]
    (found,) = TASK.decode((scores, boxes, torch.tensor([[400, 300]]), True), chosen)
    assert [(o["label"], round(o["score"], 2)) for o in found["objects"]] == [("red", 0.9), ("blue", 0.7)]
    assert found["objects"][0]["bbox"] == pytest.approx([100, 150, 200, 150])
    (kept,) = TASK.decode((scores, boxes, torch.tensor([[400, 300]]), False), chosen)
    assert [o["label"] for o in kept["objects"]] == ["red", "red", "blue"]  # a set needs no suppression


def test_pictures_are_stretched_and_boxes_with_them(tmp_path: Path) -> None:
    _, processor, chosen = loaded(model_folder("vision"), size=[56, 28])
    image = drawn(tmp_path / "a.png", "red", (100, 40), [[50, 0, 50, 40]])
    example = TASK.encode(
        Row({"image": image, "objects": {"bbox": [[50, 0, 50, 40]], "category": ["red"]}}), processor, chosen
    )
    batch = TASK.collate([example], processor, chosen)
    pixels = batch["pixel_values"][0]
    assert pixels.shape == (3, 56, 28)
    assert bool((pixels[0, :, 16:] > pixels[0, :, :12].mean()).all())  # red fills the right half, as its box does
    assert batch["boxes"][0, 0].tolist() == [0.75, 0.5, 0.5, 1.0]
    assert example["size"] == [100, 40] and example["length"] == 8 * 4 + 1


def thing(x: float, y: float, w: float, h: float, name: str, crowd: bool = False) -> Thing:
    return Thing((x, y, w, h), name, crowd)


def found(*boxes: tuple[list[float], str, float]) -> list[dict[str, Any]]:
    return [{"bbox": box, "label": name, "score": score} for box, name, score in boxes]


def test_average_precision_is_what_it_is_known_to_be() -> None:
    truth = [[thing(0, 0, 10, 10, "a"), thing(50, 50, 10, 10, "b")], [thing(0, 0, 20, 20, "a")]]
    perfect = [found(([0, 0, 10, 10], "a", 0.9), ([50, 50, 10, 10], "b", 0.8)), found(([0, 0, 20, 20], "a", 0.7))]
    precise = average_precision(truth, perfect, ["a", "b"], 100)
    assert list(precise) == ["map", "map_50", "map_75", "map_50 a", "map_50 b"]
    assert all(value == pytest.approx(1) for value in precise.values())
    # IoU 0.6 (10 x 6 of 10 x 10): right at 0.50, 0.55 and 0.60 of the ten thresholds.
    loose = [found(([0, 0, 10, 6], "a", 0.9)), []]
    judged = average_precision([truth[0][:1], []], loose, ["a"], 100)
    assert judged["map"] == pytest.approx(0.3)
    assert judged["map_50"] == pytest.approx(1) and judged["map_75"] == 0.0
    # The wrong class finds nothing; a class is averaged by itself.
    swapped = [found(([0, 0, 10, 10], "b", 0.9)), found(([0, 0, 20, 20], "a", 0.7))]
    judged = average_precision(truth, swapped, ["a", "b"], 100)
    assert judged["map_50 b"] == 0.0 and judged["map_50 a"] == pytest.approx(51 / 101, abs=1e-6)
    assert judged["map_50"] == pytest.approx((51 / 101) / 2, abs=1e-6)


def test_a_second_box_on_the_same_thing_is_wrong_and_a_crowd_is_neither() -> None:
    twice = [found(([0, 0, 10, 10], "a", 0.9), ([0, 0, 10, 10], "a", 0.95), ([80, 80, 5, 5], "a", 0.99))]
    judged = average_precision([[thing(0, 0, 10, 10, "a")]], twice, ["a"], 100)
    assert judged["map_50"] == pytest.approx(0.5)  # the best box is nothing, the next is the thing
    crowded = [[thing(0, 0, 10, 10, "a"), thing(78, 78, 12, 12, "a", crowd=True)]]
    assert average_precision(crowded, twice, ["a"], 100)["map_50"] == pytest.approx(1)


def test_nothing_found_is_no_precision() -> None:
    judged = average_precision([[thing(0, 0, 1, 1, "a")]], [[]], ["a", "b"], 100)
    assert [judged.pop(name) for name in ("map", "map_50", "map_75", "map_50 a")] == [0.0] * 4
    assert math.isnan(judged["map_50 b"])


@pytest.mark.parametrize("things", [[], [thing(0, 0, 9, 9, "a", crowd=True)]])
@pytest.mark.parametrize("boxes", [[], [([0, 0, 1, 1], "a", 0.5)]])
def test_where_there_is_nothing_to_find_precision_is_no_number(things: list[Thing], boxes: list[Any]) -> None:
    judged = average_precision([things], [found(*boxes)], ["a"], 100)
    assert len(judged) == 4 and all(map(math.isnan, judged.values()))


def test_a_class_without_a_box_has_no_precision_and_is_in_no_mean() -> None:
    judged = average_precision([[thing(0, 0, 9, 9, "a")]], [found(([0, 0, 9, 9], "a", 0.5))], ["a", "b"], 100)
    assert judged["map"] == pytest.approx(1) and math.isnan(judged["map_50 b"])


def test_crowds_are_not_trained_on(tmp_path: Path) -> None:
    _, processor, chosen = loaded(model_folder("vision"))
    image = drawn(tmp_path / "a.png", "red")
    objects = {"bbox": [[1, 1, 5, 5], [0, 0, 20, 20]], "category": ["red", "blue"], "iscrowd": [0, 1]}
    example = TASK.encode(Row({"image": image, "objects": objects}), processor, chosen)
    assert example["classes"] == [1] and len(example["boxes"]) == 1
    unknown = {**objects, "category": ["red", "zzz"]}  # metrics count what is not trained on, too
    with pytest.raises(DataError, match=r"class 'zzz' is not among the training rows' \(blue, red\)"):
        TASK.encode(Row({"image": image, "objects": unknown}), processor, chosen)


def test_rows_are_judged_with_their_pictures(tmp_path: Path) -> None:
    image = drawn(tmp_path / "a.png", "red", (30, 20))
    options = TASK.Options()

    def said(box: list[float]) -> str:
        return TASK.check_row({"image": image, "objects": {"bbox": [box], "category": ["red"]}}, options) or ""

    assert said([0, 0, 30, 20]) == ""
    assert "expected a box inside the picture of 30 x 20 pixels" in said([0, 0, 31, 40])
    assert "found no picture" in str(TASK.check_row({"image": "/gone.png", "objects": []}, options))
    with pytest.raises(DataError, match="no box at all"):
        TASK.labels([Row({"image": image, "objects": []})], options)


def write_squares(folder: Path, count: int = 24) -> Path:
    """Pictures with one red or blue square each, as a COCO file and its pictures."""
    import json

    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        box = [4 + 5 * (i % 6), 3 + 7 * (i // 6 % 4), 16 + i % 3, 16]
        name = f"{i}.png"
        drawn(folder / "images" / name, ("blue", "red")[i % 2], (56, 56), [box])
        images.append({"id": i, "file_name": name, "width": 56, "height": 56})
        annotations.append({"id": i, "image_id": i, "category_id": i % 2, "bbox": box, "area": 1, "iscrowd": 0})
    categories = [{"id": 0, "name": "blue"}, {"id": 1, "name": "red"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "squares.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(("adapter", "epochs"), [("head", 30), ("lora", 10)])
def test_squares_are_found(adapter: str, epochs: int, tmp_path: Path) -> None:
    """From random features of a tiny model: a square's place and size can be learnt, and features are kept."""
    seen = runs.fine_tune(
        REGISTRY,
        tmp_path / "run",
        tiny_vision(tmp_path / "model"),
        write_squares(tmp_path / "data"),
        task="object-detection",
        task__size=56,
        adapter=adapter,
        train__epochs=epochs,
        train__evaluate_every=1000,
        train__head_learning_rate=3e-3,
    )
    assert seen.before["map_50"] < 0.1 < 0.3 < seen.after["map_50"]
    assert ("features" in seen.progressed()) is (adapter == "head")
    if adapter == "head":
        assert seen.forwards["Dinov2Layer"] <= 2 * 24  # two layers, and fewer calls than one for each picture


def test_predictions_from_a_detector_are_boxes_of_its_classes(tmp_path: Path) -> None:
    model, processor, chosen = loaded(model_folder("detector"), score_threshold=0.0)
    (row,) = detected(tmp_path)[:1]
    with torch.no_grad():
        (answer,) = TASK.predict(model, [Row({"image": row["image"]})], processor, chosen)
    assert 1 <= len(answer["objects"]) <= 10
    assert {o["label"] for o in answer["objects"]} <= {"blue", "red"}
    assert all(0 <= o["bbox"][0] <= 30 and o["bbox"][0] + o["bbox"][2] <= 30.001 for o in answer["objects"])


def test_linear_layers_of_the_head_are_no_targets() -> None:
    for kind in ("vision", "detector"):
        model = loaded(model_folder(kind))[0]
        names = facts.inspect(model, TASK).linear_modules
        assert names and not any(name.startswith(("head", "class_labels", "bbox")) for name in names)
        assert any("q_proj" in name or "query" in name for name in names)


def coco(path: Path, **changes: Any) -> list[Any]:
    import json

    coco_file(path)
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(document))
    return list(Coco().read(path, None))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"image_id": 9}, "annotation id 77: found image_id 9"),
        ({"category_id": 3}, "annotation id 77 of image id 0 (a b.png): found category_id 3"),
        ({"bbox": [1, 2, 3]}, "annotation id 77 of image id 0 (a b.png): bbox: found [1, 2, 3]"),
        ({"bbox": [1, 2, 0, 3]}, "expected a width and a height above 0"),
        (
            {"bbox": [20, 2, 9.5, 4]},
            "annotation id 77 of image id 0 (a b.png): bbox: found [20, 2, 9.5, 4], expected a",
        ),
        ({"id": None, "bbox": [20, 2, 10, 4]}, "annotation number 1 of image id 0 (a b.png): bbox: found [20, 2, 10"),
        ({"bbox": None}, "annotation id 77 of image id 0 (a b.png): bbox: found None"),
        ({"id": None, "bbox": None}, "annotation number 1 of image id 0 (a b.png): bbox"),
    ],
)
def test_what_is_wrong_with_an_annotation_names_it(annotation: dict[str, Any], words: str, tmp_path: Path) -> None:
    whole = {"id": 77, "image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4], **annotation}
    records = coco(tmp_path / "a.json", annotations=[whole])
    (problem,) = [record for record in records if isinstance(record, DataProblem)]
    assert words in problem.message and str(tmp_path / "a.json") in str(problem)
    assert len([record for record in records if isinstance(record, Row)]) == (2 if "image_id" in annotation else 1)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([{"id": 0, "file_name": "gone.png"}], "image id 0: found no file 'gone.png'"),
        ([{"id": 0, "file_name": "c.png"}, {"id": 0, "file_name": "c.png"}], "image id 0 is image number 1, too"),
        ([{"file_name": "c.png"}], "expected an object with 'id' and 'file_name'"),
        ([{"id": 0}], "image id 0: found file_name None"),
        (
            [{"id": 0, "file_name": "c.png", "width": 14, "height": 28}],
            "image id 0 (c.png): found a picture of 28 x 28 pixels, expected 14 x 28 as its entry in 'images' says",
        ),
    ],
)
def test_what_is_wrong_with_an_image_names_it(images: list[Any], words: str, tmp_path: Path) -> None:
    records = coco(tmp_path / "a.json", images=images, annotations=[])
    assert [words in r.message for r in records if isinstance(r, DataProblem)] == [True]


def test_a_size_that_is_not_known_is_not_held_against_a_picture(tmp_path: Path) -> None:
    images = [{"id": 0, "file_name": "c.png", "width": 0, "height": None}, {"id": 1, "file_name": "a b.png"}]
    assert all(isinstance(r, Row) for r in coco(tmp_path / "a.json", images=images, annotations=[]))


def test_all_that_is_wrong_with_a_picture_is_told_of_one_bad_row(tmp_path: Path) -> None:
    bad = {"image_id": 0, "category_id": 7, "bbox": [20, 2, 10, 4]}
    boxes = [{**bad, "id": 1}, {**bad, "id": 2, "category_id": 3}, {**bad, "id": 2, "bbox": [1, 2, 3, 4]}]
    (problem, row) = coco(tmp_path / "a.json", annotations=boxes)
    assert isinstance(row, Row) and isinstance(problem, DataProblem)
    told = problem.message.split("; ")
    assert [part.partition(" of ")[0] for part in told] == [f"annotation id {i}" for i in (2, 2, 1)]
    assert "it is annotation number 3, and number 2 has this id, too" in told[1]
    many = coco(tmp_path / "a.json", annotations=[{**bad, "id": i} for i in range(9)])[0]
    assert many.message.count("annotation id") == 5 and many.message.endswith("; and 4 more")


def test_two_categories_of_one_name_are_refused_where_both_have_boxes(tmp_path: Path) -> None:
    twins = [{"id": 7, "name": "cat"}, {"id": 8, "name": "cat"}]
    assert len([r for r in coco(tmp_path / "a.json", categories=twins) if isinstance(r, Row)]) == 2
    boxes = [{"id": i, "image_id": 0, "category_id": 7 + i, "bbox": [1, 2, 3, 4]} for i in range(2)]
    with pytest.raises(DataError, match="category ids 7 and 8 are both called 'cat'"):
        coco(tmp_path / "a.json", categories=twins, annotations=boxes)


@pytest.mark.parametrize("changes", [{"categories": None}, {"images": {}}, {"categories": [{"id": 1}]}])
def test_a_file_of_another_layout_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        coco(tmp_path / "a.json", **changes)


def test_only_coco_claims_coco_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    coco_file(path)
    chosen, _ = __import__("pefttool.data.rows", fromlist=["choose_format"]).choose_format(path, REGISTRY)
    assert chosen.name == "coco"
    for text in ('{"text": "a", "label": "b"}', '[{"images": []}]', '{"images": [], "question": "what?"}'):
        path.write_text(text)
        assert Coco().sniff(path) is None, text


def test_the_dense_head_does_not_depend_on_the_other_rows() -> None:
    model, _, _ = loaded(model_folder("vision"))
    pixels = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        whole, alone = model(pixels), model(pixels[1:2])
    assert torch.allclose(whole.logits[1], alone.logits[0], atol=1e-5)
    assert torch.allclose(whole.boxes[1], alone.boxes[0], atol=1e-5)


def test_transparency_and_palettes_are_read(tmp_path: Path) -> None:
    from pefttool_vision import pictures

    for mode in ("P", "LA", "RGBA", "CMYK", "1", "L"):
        path = tmp_path / f"{mode}.tif" if mode == "CMYK" else tmp_path / f"{mode}.png"
        Image.new("RGB", (9, 7), "red").convert(mode).save(path)
        assert pictures.complaint(str(path)) is None
        assert pictures.open_rgb(str(path)).mode == "RGB" and pictures.size(str(path)) == (9, 7)
    assert replace(setting(), epoch=1).epoch == 1


@pytest.mark.parametrize(("kind", "adapter"), [("vision", "head"), ("vision", "lora"), ("detector", "lora")])
def test_a_step_can_be_simulated_without_numbers(kind: str, adapter: str, tmp_path: Path) -> None:
    from pefttool.config import recipe
    from pefttool.forecast import forecast
    from pefttool.setup import plan

    document = {
        "model": str(model_folder(kind)),
        "adapter": {"name": adapter},
        "task": {"name": "object-detection", "size": 56},
        "data": {"train": str(write_squares(tmp_path / "data", 4))},
        "device": "cpu",
    }
    assert forecast.make(plan.make(recipe.resolve(document, REGISTRY), REGISTRY)).total_bytes > 0
