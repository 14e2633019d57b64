"""The settings of sampling: one list, and what each does in a generator's call, its folder and its words."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluate_models import make_generator

from vavae.errors import UserError
from vavae.models import Generator, SamplingConfig
from vavae.models.sampling import SamplingOptions, SamplingSettings
from vavae.tokenizer import LatentStatistics

SETTINGS = [field.name for field in fields(SamplingConfig)]


def test_every_setting_is_a_keyword_and_an_option() -> None:
    assert list(SamplingSettings.__annotations__) == SETTINGS
    assert {field.name for field in fields(SamplingOptions)} | {"guidance_scale"} == set(SETTINGS)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make_generator(auxiliary_block=1)


CHANGES = [
    {"guidance_kind": "zero_star", "zero_init_steps": 0},
    {"guidance_kind": "zero_star"},
    {"guidance_kind": "internal"},
    {"end": 0.8},
    {"shift": 0.5},
]


def test_settings_reach_the_sampler(generator: Generator) -> None:
    plain = generator.latents([1], steps=5)
    drawn = [plain, *(generator.latents([1], steps=5, **change) for change in CHANGES)]
    same = [(i, j) for i in range(len(drawn)) for j in range(i) if torch.equal(drawn[i], drawn[j])]
    assert not same


@pytest.mark.parametrize("change", CHANGES)
def test_folder_keeps_the_settings(generator: Generator, change: dict[str, Any], tmp_path: Path) -> None:
    changed = generator.with_sampling(generator.sampling.changed(steps=5, **change))
    changed.save_pretrained(tmp_path)
    found = Generator.from_pretrained(tmp_path)
    assert torch.equal(found.latents([1]), generator.latents([1], steps=5, **change))
    assert found.config.auxiliary_block == 1


def test_shift_by_dimension_is_stored_as_a_number(generator: Generator, tmp_path: Path) -> None:
    by_rule = generator.with_sampling(SamplingConfig(shift="dimension"))
    with pytest.raises(UserError, match="shift must be a number for latents of"):  # these are too small for the rule
        by_rule.save_pretrained(tmp_path / "generator")
    assert not (tmp_path / "generator").exists()


def test_parts_that_cannot_be_stored_are_refused() -> None:
    made = make_generator()
    for wrong, message in (
        ({"class_names": ["a"]}, "class_names must be 10 names, got 1"),
        ({"path": "round"}, "path must be one of linear, cosine, vp, got round"),
        ({"prediction": "x"}, "prediction must be one of .*, got x"),
    ):
        with pytest.raises(UserError, match=message):
            Generator(made.transformer, made.tokenizer, **wrong)  # type: ignore[arg-type]


def test_a_step_must_move() -> None:
    zero_star: dict[str, Any] = {"steps": 5, "guidance_scale": 2.0, "guidance_kind": "zero_star"}
    assert SamplingConfig(**zero_star, zero_init_steps=3).solver_steps == 4
    assert SamplingConfig(**zero_star, zero_init_steps=4, solver="euler_maruyama").solver_steps == 5
    assert SamplingConfig(**{**zero_star, "guidance_scale": 1.0}, zero_init_steps=4).guidance is None
    with pytest.raises(UserError, match="zero_init_steps must be at most 3 with 5 steps, got 4"):
        SamplingConfig(**zero_star, zero_init_steps=4)


def test_wrong_kinds_are_refused(generator: Generator) -> None:
    with pytest.raises(UserError, match="guidance_kind must be one of cfg, zero_star, internal, path_drop, got 'auto'"):
        generator([1], guidance_kind="auto")  # type: ignore[call-overload]
    with pytest.raises(UserError, match="zero_init_steps must be a whole number from 0 on, got -1"):
        generator([1], zero_init_steps=-1)
    for channels in (2.5, "2", True, -1):
        with pytest.raises(UserError, match=r"guidance_channels must be a whole number from 0 \(all\) on, got"):
            generator([1], guidance_channels=channels)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="weak_model must be a Generator, got 'demo'"):
        generator([1], weak_model="demo", steps=3)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="guidance_scale must not be 1 with weak_model"):
        generator([1], weak_model=generator, steps=3, guidance_scale=1.0)
    with pytest.raises(UserError, match=r"size must be a number or \[height, width\], got 32\.0"):
        generator([1], size=32.0)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="guidance_kind must not be internal for a transformer without an auxiliary"):
        make_generator().latents([1], guidance_kind="internal")
    with pytest.raises(UserError, match="guidance_kind must be cfg or zero_star with a weak_model, got internal"):
        generator.latents([1], guidance_kind="internal", weak_model=make_generator(2))


def test_internal_and_auto_guidance_need_no_missing_label(generator: Generator) -> None:
    labeled = make_generator(auxiliary_block=1)
    labeled.transformer.config = replace(labeled.transformer.config, label_dropout=0.0)
    with pytest.raises(UserError, match="trained without label_dropout"):
        labeled.latents([1])
    labeled.latents([1], guidance_kind="internal")
    labeled.latents([1], weak_model=generator)


def other_statistics(weak: Generator) -> None:
    weak.tokenizer.statistics = LatentStatistics(torch.ones(4), torch.ones(4))


def other_classes(weak: Generator) -> None:
    weak.class_names = tuple("abcdefghij")


def other_path(weak: Generator) -> None:
    weak.path = "cosine"


@pytest.mark.parametrize(
    ("differ", "words"),
    [
        (other_statistics, "weak_model must have the generator's latent statistics"),
        (other_classes, "weak_model must have the generator's class names"),
        (other_path, "weak_model must have the generator's path linear, got cosine"),
    ],
)
def test_weak_model_must_fit(differ: Any, words: str) -> None:
    own, weak = make_generator(), make_generator(2)
    own.class_names = tuple("0123456789") if differ is other_classes else ()
    differ(weak)
    with pytest.raises(UserError, match=words):
        own.with_weak_model(weak)


@pytest.mark.parametrize(
    ("sampling", "weak", "words"),
    [
        (SamplingConfig(), None, "no guidance"),
        (SamplingConfig(guidance_scale=2), None, "guidance 2 from time 0.125 to 1"),
        (
            SamplingConfig(guidance_scale=2, guidance_channels=3, guidance_kind="zero_star"),
            None,
            "CFG-Zero* guidance 2 on 3 channels from time 0.125 to 1",
        ),
        (SamplingConfig(guidance_scale=2), "small", "autoguidance 2 against the weak model small from time 0.125 to 1"),
    ],
)
def test_guidance_in_words(sampling: SamplingConfig, weak: str | None, words: str) -> None:
    assert sampling.guidance_in_words(weak) == words
