"""Recipes and options become dataclasses; mistakes are one line that names the key."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vavae.cli import run
from vavae.config import load_recipe, parse_command_line, to_yaml
from vavae.demo import run as demo
from vavae.errors import UserError
from vavae.frontier import run as frontier
from vavae.io.yaml_files import dump_yaml
from vavae.stages import encode, evaluate, train_dit, train_tokenizer
from vavae.stages.sample import Config


def arguments_of(recipe: Path, form: str) -> list[str]:
    return {"word": [str(recipe)], "option": ["--config", str(recipe)], "with =": [f"--config={recipe}"]}[form]


@pytest.mark.parametrize("form", ["word", "option", "with ="])
def test_wrong_recipe_files_are_named(form: str, tmp_path: Path) -> None:
    recipe = tmp_path / "list.yaml"
    recipe.write_text("- a\n")
    with pytest.raises(UserError, match=f"^{recipe}: must have keys with values, got"):
        parse_command_line(Config, arguments_of(recipe, form), "vavae sample")
    with pytest.raises(UserError, match=f"^{tmp_path}/none.yaml: no such file"):
        parse_command_line(Config, arguments_of(tmp_path / "none.yaml", form), "vavae sample")
    recipe.write_text("count: 3\n")
    assert parse_command_line(Config, [*arguments_of(recipe, form), "--seed=2"], "vavae sample") == Config(
        count=3, seed=2
    )


RECIPES = Path(__file__).parents[2] / "src/vavae/recipes" / "small"
MISTAKES: list[tuple[type, str, str]] = [
    (Config, "--size [32]", "size must be a whole number, or 2 values, each a whole number, or null, got [32]"),
    (
        Config,
        "--size [24,x]",
        "size must be a whole number, or 2 values, each a whole number, or null, got [24, 'x']",
    ),
    (
        train_tokenizer.Config,
        "--tokenizer.channel_multipliers a,b",
        "tokenizer.channel_multipliers must be a list, each item a whole number, got a",
    ),
    (Config, "--size 256 256", "unexpected argument '256': a recipe, or other words, must come before all options"),
    (Config, "--seed 1 word", "unexpected argument 'word': a recipe, or other words, must come before all options"),
    (Config, "--shade red", "unknown option --shade; see 'vavae x --help'"),
    (evaluate.Config, "--data.limit x", "data.limit must be a whole number or null, got x"),
    (
        train_tokenizer.Config,
        "--data.size [192]",
        "data.size must be a whole number, or 2 values, each a whole number, got [192]",
    ),
    (
        frontier.Config,
        '--sizes {"tiny":{"wdith":3}}',
        "sizes.tiny.wdith is not a key; known here: width, depth, heads, head_width, head_depth, head_heads, images",
    ),
    (demo.Config, "--size [24,40]", "size must be a whole number, got [24, 40]"),
    (
        frontier.Config,
        "--data.size 24,40",
        "data.size must be a square for 'vavae frontier', got 24x40",
    ),
    (train_dit.Config, "--flow.path bent", "flow.path must be one of linear, cosine, vp, got bent"),
    (train_tokenizer.Config, "--training.batch_size four", "training.batch_size must be a whole number, got four"),
    (train_tokenizer.Config, "--training x", "training must be a group of keys (images, batch_size, seed, …), got x"),
    (
        train_dit.Config,
        "--transformer.size.x 3",
        "unknown option --transformer.size.x; did you mean '--transformer.size'?",
    ),
    (train_dit.Config, "--alignment x", "alignment must be a group of keys (data, teachers, block, …), or null, got x"),
    (train_dit.Config, "--alignment.block x", "alignment.block must be a whole number or null, got x"),
    (
        train_dit.Config,
        "--alignment.weight -1",
        "alignment.weight must be above 0, got -1.0; alignment null aligns nothing",
    ),
    (train_dit.Config, "--alignment.weigth 1", "unknown option --alignment.weigth; did you mean '--alignment.weight'?"),
    (
        train_dit.Config,
        "--alignment.projector.kind x",
        "alignment.projector.kind must be one of mlp, linear, conv, got x",
    ),
    (train_tokenizer.Config, "--teacher.cache_features x", "teacher.cache_features must be true or false, got x"),
    (train_tokenizer.Config, "--data.imagez x", "unknown option --data.imagez; did you mean '--data.images'?"),
    (
        train_tokenizer.Config,
        f"--print_config {RECIPES}/tokenizer.yaml",
        f"unexpected argument '{RECIPES}/tokenizer.yaml': a recipe, or other words, must come before all options",
    ),
    (
        train_tokenizer.Config,
        f"{RECIPES}/transformer.yaml",
        f"{RECIPES}/transformer.yaml: 'vavae x' has no key latents, transformer, sampling; "
        "is it a recipe of another command?",
    ),
]


@pytest.mark.parametrize("config_class, options, message", MISTAKES, ids=[options for _, options, _ in MISTAKES])
def test_mistakes_in_options(config_class: type, options: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_command_line(config_class, options.split(), "vavae x")
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--data.size", "64"], 64),
        (["--data.size=[64, 64]"], 64),
        (["--data.size", "[192, 320]"], (192, 320)),
        (["--data.size=[192,320]"], (192, 320)),
        (["--data.size", "192,320"], (192, 320)),
    ],
)
def test_a_size_is_a_number_or_two(options: list[str], size: Any, tmp_path: Path) -> None:
    config = parse_command_line(encode.Config, options, "vavae x")
    assert config.data.size == size
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(config))
    assert ("  size: 64\n" if size == 64 else "  size:\n  - 192\n  - 320\n") in recipe.read_text()
    assert load_recipe(encode.Config, recipe) == config
    aligned = parse_command_line(train_tokenizer.Config, ["--teacher.input_size", "168,280"], "vavae x")
    assert aligned.teacher.input_size == (168, 280)


def test_misspelled_key_in_a_group(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {images: 100, bacth_size: 8}\n")
    message = f"^{recipe}: 'vavae x' has no key training.bacth_size; did you mean 'training.batch_size'"
    with pytest.raises(UserError, match=message):
        parse_command_line(train_tokenizer.Config, [str(recipe)], "vavae x")


BOMB = "{a: &a [1, 2], " + ", ".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED: dict[str, tuple[str, str]] = {
    "key of a group in a list": (
        "stages: [{from_images: 3, wieght: 4}]\n",
        "RECIPE: 'vavae train-tokenizer' has no key stages.wieght; did you mean 'stages.weight'?",
    ),
    "stage before the beginning": ("stages: [{from_images: -3}]\n", "stages.from_images must be at least 0, got -3"),
    "stage without its beginning": ("stages: [{weight: 3}]\n", "StageConfig needs the key from_images"),
    "key twice": ("training:\n  images: 5\n  images: 6\n", "RECIPE: line 3: the key 'images' occurs twice"),
    "group twice": ("data: {size: 64}\ndata: {limit: 5}\n", "RECIPE: line 2: the key 'data' occurs twice"),
    "key with dots": (
        "training.images: 5\ntraining: {images: 6}\n",
        "RECIPE: write 'training.images' as the key 'images' under 'training:'",
    ),
    "anchor inside itself": ("data: &a {size: *a}\n", "RECIPE: line 1: the alias *a has no anchor before it"),
    "deep": ("data: " + "{size: " * 9000, "RECIPE: line 1: nested more than 50 levels deep"),
    "5,000 digits": ("training: {images: " + "9" * 5000 + "}\n", "RECIPE: line 1: a number of 5000 characters"),
    "50 digits": (
        "training: {images: " + "9" * 50 + "}\n",
        "RECIPE: training.images must fit in 64 bits, got a whole number",
    ),
    "50 digits in a list": (
        "tokenizer: {channel_multipliers: [1, -" + "9" * 50 + "]}\n",
        "RECIPE: tokenizer.channel_multipliers must fit in 64 bits, got a whole number",
    ),
    "infinite": (
        "optimizer: {learning_rate: 1e999}\n",
        "RECIPE: optimizer.learning_rate must be a finite number, got inf",
    ),
    "bomb in a text": (
        f'training: {{images: "{BOMB}}}"}}\n',
        "RECIPE: training.images must be a whole number, got {a:",
    ),
    "nothing": ("training: {images: }\n", "RECIPE: training.images must be a whole number, got nothing"),
    "no group": (
        "training: os.path.join\n",
        "RECIPE: training must be a group of keys (images, batch_size, seed, …)",
    ),
    "word for a number in a group that may be null": (
        "representation: {noise: loud}\n",
        "RECIPE: representation.noise must be a number, got loud",
    ),
    "wrong number in a group that may be null": (
        "representation: {noise: -1}\n",
        "representation.noise must be at least 0, got -1.0",
    ),
    "list for a group": ("training: [1]\n", "RECIPE: training must be a group of keys (images, batch_size, seed, …)"),
    "number as a key": ("1: 2\n", "RECIPE: 'vavae train-tokenizer' has no key 1;"),
    "word as a key": ("yes: 2\n", "RECIPE: 'vavae train-tokenizer' has no key yes;"),
    "no for a text": ("output: no\n", "RECIPE: output must be text, got False; put text in quotes"),
    "minutes": ("training: {images: 1:30}\n", "RECIPE: training.images must be a whole number, got 1:30"),
    "two documents": ("data: {size: 64}\n---\ndata: {size: 32}\n", "RECIPE: line 2: a second document (---) begins"),
}


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert run([*arguments, "--print_config"]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert len(captured.err.splitlines()) == 1 and len(captured.err) < 400
    return captured.err


@pytest.mark.parametrize("kind", REFUSED)
def test_mistakes_in_recipes_are_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = REFUSED[kind]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    error = refusal(capsys, ["train-tokenizer", str(recipe)])
    assert error.startswith(f"vavae: {message.replace('RECIPE', str(recipe))}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data", "{a: &a [*a]}"],
            "data must be a group of keys (images, size, crop, …), got {a: &a [*a]} (the alias *a",
        ),
        (["--training", "{images: 5, images: 6}"], "(the key 'images' occurs twice)"),
        (["--training", "[" * 9000], "(nested more than 50 levels deep)"),
        (["--training.images", BOMB + "}"], "training.images must be a whole number, got {a: &a [1, 2], b:"),
        (["--tokenizer.channel_multipliers", f"['{BOMB}}}']"], "tokenizer.channel_multipliers must be a list"),
        (["--data.size", "-32"], "data.size must be at least 8 pixels, got -32"),
        (["--data.flip", BOMB + "}"], "data.flip must be true or false, got {a:"),
        (["--training.images", "9" * 5000], "training.images must be a whole number, got 999"),
        (["--training.images", "9" * 50], "training.images must fit in 64 bits"),
        (["--training.images", "0x" + "f" * 5000], "training.images must be a whole number, got 0xfff"),
        (["--data.size", "64," + "9" * 30], "data.size must fit in 64 bits"),
        (["--training.images", "1e400"], "training.images must be a whole number, got inf"),
        (["--training.images"], "training.images must be a whole number, got nothing"),
        (["--training.images="], "training.images must be a whole number, got nothing"),
        (["--output="], "output must not be empty"),
        (["--data.images", ""], "data.images must not be empty"),
        (["--train", "{}"], "unknown option --train; did you mean '--training'?"),
        (["--config="], "--config: expected the path of a recipe; got nothing"),
        ([""], "--config: expected the path of a recipe; got nothing"),
    ],
)
def test_unsafe_options_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, ["train-tokenizer", *options])


def test_anchors_and_merges_in_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {size: &side 64}\ntokenizer: {channel_multipliers: &few [1, 2], attention_levels: [1]}\n")
    config = load_recipe(train_tokenizer.Config, recipe)
    assert config.data.size == 64 and config.tokenizer.channel_multipliers == (1, 2)
    recipe.write_text("training: {<<: {images: 7, seed: 1}, seed: 2}\noptimizer: {learning_rate: 1e-4}\n")
    config = load_recipe(train_tokenizer.Config, recipe)
    assert (config.training.images, config.training.seed, config.optimizer.learning_rate) == (7, 2, 1e-4)


def test_options_override_recipes(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.yaml").write_text(f"count: {number}\nsteps: {number}0\n")
    recipes = [f"--config={tmp_path / '1.yaml'}", "--config", str(tmp_path / "2.yaml")]
    config = parse_command_line(Config, ["--steps", "5", *recipes, "--seed", "3"], "vavae sample")
    assert (config.count, config.steps, config.seed) == (2, 5, 3)


def test_options_override_keys_of_groups_that_may_be_null() -> None:
    given = ["small/tokenizer-rae", "--representation.noise", "0.3"]
    tokenizer = parse_command_line(train_tokenizer.Config, given, "vavae train-tokenizer").representation
    assert tokenizer is not None and (tokenizer.noise, tokenizer.width) == (0.3, 192)
    for alignment in (
        load_recipe(train_dit.Config, "small/transformer-repa", {"alignment.data.limit": 7}).alignment,
        parse_command_line(train_dit.Config, ["small/transformer-repa", "--alignment.data.limit=7"], "x").alignment,
    ):
        assert alignment is not None and (alignment.data.limit, alignment.data.holdout) == (7, 0.1)
        assert (alignment.stop_images, alignment.teachers[0].input_size) == (8192, 56)


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(alphabet="ab&*<:-,[]{}!?|>'\"#\n 01.e", max_size=30)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["count", "labels", "size", "solver", "seed", "x", "<<"]), inner, max_size=3
            )
        ),
        max_leaves=5,
    ).map(dump_yaml)
)
def test_any_recipe_is_read_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    recipe.write_text(text, encoding="utf-8")
    try:
        load_recipe(Config, recipe)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
