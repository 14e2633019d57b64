"""Teachers: frozen vision foundation models that turn images into grids of features.

teacher = load_teacher("dinov2-large")
features = teacher.features_at(images, (16, 16))     # images in [-1, 1] -> (B, 1024, 16, 16)
"""

from vavae.grids import resample_grid
from vavae.teachers.base import CLIP, HALF, IMAGENET, PUBLISHED, Backbone, Normalisation, Teacher, TeacherFeatures
from vavae.teachers.cache import FeatureCache
from vavae.teachers.registry import TEACHERS, TeacherSpec, load_teacher

__all__ = [
    "CLIP",
    "HALF",
    "IMAGENET",
    "PUBLISHED",
    "TEACHERS",
    "Backbone",
    "FeatureCache",
    "Normalisation",
    "Teacher",
    "TeacherFeatures",
    "TeacherSpec",
    "load_teacher",
    "resample_grid",
]
