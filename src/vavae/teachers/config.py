"""The settings of a teacher in a recipe."""

from dataclasses import dataclass

from vavae.config.image_size import Size, as_size


@dataclass(frozen=True)
class TeacherConfig:
    """A frozen foundation model to align with.

    Attributes:
        name: Short name (`dinov2-large`, …; an unknown one lists all), local folder or hub id.
        input_size: Size to which images are resized for the teacher: one number or [height, width]. null is the
            teacher's own size; for images that are not square it is about that area in their shape (SAM squeezes them
            into a square).
        normalization: `default` is the normalization that the teacher was trained with; `published` feeds it raw
            [-1, 1], as the published VA-VAE does, whose DINOv2 and MAE take square input only.
        cache_features: Run the teacher once over the training images and keep its features on disk. A tokenizer's
            images must be the same each time: center crop, no flips.
        features_folder: Folder of these features, so that several runs on the same images share them; null is the
            run folder.
        features_on_device: Keep these features in the GPU's memory; null does so if they fit into a quarter of the
            free memory.
    """

    name: str = "dinov2-large"
    input_size: Size | None = None
    normalization: str = "default"
    cache_features: bool = False
    features_folder: str | None = None
    features_on_device: bool | None = None

    def __post_init__(self) -> None:
        if self.input_size is not None:
            object.__setattr__(self, "input_size", as_size("teacher.input_size", self.input_size))
