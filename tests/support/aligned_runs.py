"""A transformer's training with alignment of hidden states; its latents are features of its teacher."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_runs import TRAINING
from tiny_teacher import tiny_teacher

from vavae.data import LatentSettings, LatentWriter, flip_horizontally, load_images
from vavae.data.images import ImagesConfig
from vavae.models import Tokenizer
from vavae.stages import hidden_alignment, train_dit
from vavae.stages.hidden_alignment import HiddenAlignmentConfig, ProjectorConfig
from vavae.teachers import Teacher
from vavae.teachers.config import TeacherConfig
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics
from vavae.training.optimizer import OptimizerConfig

IMAGES = ImagesConfig("demo", size=16, limit=30, workers=2)
GRID = (8, 8)  # of the latents; patches of 2 make 4 x 4 tokens


def the_teacher() -> Teacher:
    return tiny_teacher(3, (32, 32))


def use_the_teacher(set_attribute: Callable[[object, str, object], None] = setattr) -> None:
    """Let the stage load `the_teacher` for any; `monkeypatch.setattr` undoes it after a test."""
    set_attribute(hidden_alignment, "load_teacher", lambda *_, **__: the_teacher())


def write_image_latents(folder: Path, **settings: Any) -> Path:
    """Write the teacher's features of embedded images, and of the mirrored ones, as latents, with a tokenizer."""
    source, teacher = IMAGES.open("train"), the_teacher()
    known = {"image_size": 16, "source": source.fingerprint(), "class_names": source.class_names}
    writer = LatentWriter(folder / "latents", len(source), LatentSettings(**{**known, **settings}), len(source))
    images = load_images(source, range(len(source)), 16)
    latents, flipped = (teacher.features_at(each, GRID) for each in (images, flip_horizontally(images)))
    for shard in writer.missing():
        writer.write(shard, [(latents, flipped, torch.from_numpy(source.labels))])
    writer.finish()
    torch.manual_seed(0)
    model = AutoencoderKL(AutoencoderConfig(6, 32, (1, 2), 1, ()))
    statistics = LatentStatistics(torch.zeros(6), torch.ones(6), len(source))
    Tokenizer(model, statistics, {}).save_pretrained(folder / "tokenizer")
    return folder


def aligned_recipe(
    folder: Path, data: Path, alignment: HiddenAlignmentConfig | None = None, kept: bool = True, **training: Any
) -> train_dit.Config:
    """Return a recipe with flips, whose alignment falls to 0 in two thirds of the run."""
    usual = HiddenAlignmentConfig(
        IMAGES,
        (TeacherConfig("any", cache_features=kept),),
        projector=ProjectorConfig(hidden=24),
        schedule="linear",
        stop_images=32,
    )
    return train_dit.Config(
        output=str(folder),
        latents=str(data / "latents"),
        tokenizer=str(data / "tokenizer"),
        transformer=train_dit.TransformerConfig("S/2", width=32, depth=2, heads=2),
        alignment=usual if alignment is None else alignment,
        optimizer=OptimizerConfig(learning_rate=1e-3, gradient_clip=1.0),
        training=replace(TRAINING, **{"images": 48, "checkpoint_images": 16, **training}),
    )


def several_teachers_recipe(folder: Path, data: Path, **training: Any) -> train_dit.Config:
    """Return a recipe with two teachers that work in every step until the alignment ends."""
    teachers = TeacherConfig("one"), TeacherConfig("other")
    alignment = HiddenAlignmentConfig(IMAGES, teachers, projector=ProjectorConfig(hidden=24), stop_images=24)
    return aligned_recipe(folder, data, alignment, images=32, log_images=8, **training)
