"""Teachers: frozen vision foundation models that map images to grids of features.

teacher = load_teacher("dinov2-large")
features = teacher.features_at(images, (16, 16))     # images in [-1, 1] -> (B, 1024, 16, 16)
"""

from vavae.grids import resample_grid
from vavae.teachers.base import IMAGENET, Backbone, Normalization, Teacher, TeacherFeatures
from vavae.teachers.cache import FeatureCache
from vavae.teachers.latent import LatentEncoder
from vavae.teachers.registry import TEACHERS, load_teacher

__all__ = [
    "IMAGENET",
    "TEACHERS",
    "Backbone",
    "FeatureCache",
    "LatentEncoder",
    "Normalization",
    "Teacher",
    "TeacherFeatures",
    "load_teacher",
    "resample_grid",
]
