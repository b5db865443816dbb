"""Vision tasks (image-classification, object-detection) and the formats that pictures come in."""

from collections.abc import Sequence

from pefttool import DataFormat, Task, hookimpl

pefttool_api_version = 2


@hookimpl
def register_tasks() -> Sequence[Task]:
    from pefttool_vision.classification import ImageClassification
    from pefttool_vision.detection import ObjectDetection

    return [ImageClassification(), ObjectDetection()]


@hookimpl
def register_formats() -> Sequence[DataFormat]:
    from pefttool_vision.coco import Coco
    from pefttool_vision.formats import Images

    return [Coco(), Images()]
