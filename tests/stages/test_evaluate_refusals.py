"""Before any work `vavae evaluate` tells of damaged statistics, metrics that cannot be had, files in no folder."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from evaluate_models import colour_network, make_generator, make_tokenizer, use_colours

from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.evaluation import images as evaluate_images
from vavae.evaluation.generation import read_statistics
from vavae.evaluation.images import npz_images
from vavae.metrics import FeatureNetwork
from vavae.stages import evaluate

Arrays = dict[str, np.ndarray]


def statistics(numbers: int = 12, spatial: bool = True) -> Arrays:
    """Statistics in ADM's form, of the stand-in network."""
    arrays = {"mu": np.full(numbers, 0.5), "sigma": np.eye(numbers) / 9}
    return arrays | ({"mu_s": np.full(6, 0.5), "sigma_s": np.eye(6) / 9} if spatial else {})


def _no_logits(name: str, device: object = "cpu") -> FeatureNetwork:
    """As `colour_network`; of an Inception no logits, of a teacher no spatial features either."""
    plain = colour_network(name)
    parts = ("pool", "spatial") if name.startswith("inception") else ("pool",)
    return FeatureNetwork(name, plain.fingerprint, plain.device, plain.compute, plain.compute_parts, parts)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "generator"
    make_generator().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are stand-ins, and whoever draws or stores anything fails."""

    def work(*_: object) -> None:
        raise AssertionError("work began")

    for module, name in ((evaluate, "load_feature_network"), (evaluate.of_tokenizer, "perceptual_networks")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    use_colours()
    monkeypatch.setattr(evaluate_images, "draw", work)
    monkeypatch.setattr(evaluate_images.SourceBlocks, "open", work)
    monkeypatch.setattr(evaluate_images.ArrayBlocks, "open", work)


def refused(generator: str, folder: Path, **changes: object) -> str:
    """What is told, in one line."""
    plain = {
        "what": "generator", "model": [generator], "data": ImagesConfig("demo", 32, limit=30), "network": "inception",
        "count": 30, "steps": 3, "features": str(folder / "features"), "device": "cpu",
    }  # fmt: skip
    with pytest.raises(UserError) as error:
        evaluate.run(evaluate.Config(**(plain | changes)))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def _with(**changes: object) -> Arrays:
    return {name: np.array(value) for name, value in (statistics() | changes).items()}


DAMAGED = {
    "mean not finite": (_with(mu=[np.nan] * 12), "mu holds numbers that are not finite"),
    "covariance not finite": (_with(sigma=np.full((12, 12), np.inf)), "sigma holds numbers that are not finite"),
    "spatial mean not finite": (_with(mu_s=[np.nan] * 6), "mu_s holds numbers that are not finite"),
    "text": (_with(mu=["a"] * 12), "mu must be real numbers"),
    "complex": (_with(sigma=np.eye(12) * 1j), "sigma must be real numbers"),
    "other network": (statistics(192), "mu has 192 numbers, the features of inception 12"),
    "other spatial features": (_with(mu_s=[0.0] * 7, sigma_s=np.eye(7)), "mu_s has 7 numbers"),
    "other shapes": (_with(sigma=np.eye(11)), "mu has shape (12,), sigma (11, 11)"),
    "two counts": (_with(count=[5, 6]), "count is not one number"),
    "no count": (_with(count=0), "count is not one number"),
    "count in words": (_with(count="many"), "count is not one number"),
    "objects": (_with(mu=np.array([None] * 12, dtype=object)), "not a file of reference statistics"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_statistics_are_named(fault, generator, tmp_path):
    arrays, told = DAMAGED[fault]
    file = tmp_path / "reference.npz"
    np.savez(file, **arrays)
    message = refused(generator, tmp_path, reference=str(file))
    assert str(file) in message and told in message


def _survives(file: Path, read: Callable[[], object]) -> bool:
    try:
        read()
    except UserError as error:
        assert str(file) in str(error) and "\n" not in str(error)
        return False
    return True


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_byte_is_a_mistake_of_the_file(save, tmp_path):
    """Whichever byte it is: none gives another error, and none gives other numbers."""
    network, file, buffer = colour_network("inception"), tmp_path / "reference.npz", io.BytesIO()
    save(buffer, **statistics(spatial=False))
    whole = buffer.getvalue()
    file.write_bytes(whole)
    expected = read_statistics(file, [network])["inception"].fingerprint
    seen = set()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        found: list[str] = []

        def read(found: list[str] = found) -> None:
            assert npz_images(file) is None
            found += [known.fingerprint for known in read_statistics(file, [network]).values()]

        seen.add(_survives(file, read))
        assert set(found) <= {expected}
    assert seen == {True, False}  # some bytes say nothing, such as dates


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_byte_among_images_is_no_stack_trace(save, tmp_path):
    file, buffer = tmp_path / "samples.npz", io.BytesIO()
    save(buffer, arr_0=np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3))
    whole = buffer.getvalue()
    seen = set()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        seen.add(_survives(file, lambda: npz_images(file)))
    assert seen == {True, False}


LACKING = {
    "logits": ({"metrics": ["frechet", "inception_score"]}, "inception_score needs logits, which inception cannot"),
    "spatial features": ({"metrics": ["sfid"], "network": "teacher:a"}, "sfid needs spatial features, which teacher:a"),
    "spatial statistics": ({"metrics": ["sfid"], "reference": "pool"}, "sfid needs mu_s and sigma_s, which"),
    "images, KID": ({"metrics": ["kid"], "reference": "both"}, "kid needs the features of real images"),
    "images, precision": (
        {"metrics": ["precision_recall"], "reference": "both"},
        "precision_recall needs the features",
    ),
    "samples": ({"metrics": ["kid"], "count": 3}, "kid needs at least 4 samples and 4 reference images, not 3"),
    "reference": ({"metrics": ["kid"], "data": ImagesConfig("demo", 32, limit=2)}, "reference images, not 2"),
    "one reference image": ({"data": ImagesConfig("demo", 32, limit=1)}, "must have at least 2 images, got 1"),
    "Fréchet distance": (
        {"metrics": ["kid"], "real_split": "train"},
        "real_split needs frechet: FDr is a ratio of Fréchet",
    ),
    "generated images": (
        {"what": "tokenizer", "metrics": ["kid"]},
        "metrics must be empty for a tokenizer, got kid, a metric of generated images",
    ),
    "enlarged": ({"what": "tokenizer", "data": ImagesConfig()}, "data.size must be 32 for data.images demo, got 256"),
    "channels": ({"guidance_channels": 99}, "guidance_channels must be at most"),
    "samples of a tokenizer": (
        {"what": "tokenizer", "model": ["demo"], "network": None},
        "count must be left out for tokenizer: it is an option of generator",
    ),
    "guidance": ({"guidance_scales": [-1.0]}, "guidance_scale: -1.0"),
}


@pytest.mark.parametrize("lack", LACKING)
def test_a_metric_that_cannot_be_had_is_refused(lack, generator, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_feature_network", _no_logits)
    changes, told = LACKING[lack]
    for name in ("both", "pool"):
        np.savez(tmp_path / name, **statistics(spatial=name == "both"))
    if "reference" in changes:
        changes = changes | {"reference": str(tmp_path / f"{changes['reference']}.npz")}
    assert told in refused(generator, tmp_path, **changes)


def test_what_some_network_can_say_is_not_refused(generator, tmp_path, monkeypatch):
    """Logits and spatial features of one network are enough, and no metric by name takes what there is."""
    monkeypatch.undo()
    monkeypatch.setattr(evaluate, "load_feature_network", lambda name, device: _no_logits(name))
    config = evaluate.Config(
        "generator", [generator], ImagesConfig("demo", 32, limit=30), network="inception,teacher:a", count=30, steps=3,
        metrics=["sfid", "kid"], features=str(tmp_path / "features"), device="cpu",
    )  # fmt: skip
    found = {(r.name, r.protocol.feature_network) for r in evaluate.run(config)}
    assert found == {("sFID", "inception"), ("KID", "inception"), ("KID", "teacher:a")}
    config = evaluate.Config(
        "generator", [generator], ImagesConfig("demo", 32, limit=3), network="teacher:a", count=3, steps=3,
        features=str(tmp_path / "features"), device="cpu",
    )  # fmt: skip
    assert [r.name for r in evaluate.run(config)] == ["Fréchet distance"]


UNWRITABLE = {
    "a file above": (
        {"output": "afile/x.json"},
        "output: FOLDER/afile/x.json cannot be made (FOLDER/afile is not a folder)",
    ),
    "a file far above": ({"output": "afile/a/b/x.json"}, "output: FOLDER/afile/a/b/x.json cannot be made"),
    "a folder": ({"output": "afolder"}, "output must be a file, got FOLDER/afolder,"),
    "the plot": ({"output": "x.png"}, "output must be a .json file, got FOLDER/x.png"),
    "statistics": ({"save_reference": "afile/x.npz"}, "save_reference: FOLDER/afile/x.npz cannot be made"),
    "features": ({"features": "afile"}, "features must be a folder, got FOLDER/afile,"),
    "features below": ({"features": "afile/features"}, "features: FOLDER/afile/features cannot be made"),
}


@pytest.mark.parametrize("place", UNWRITABLE)
@pytest.mark.parametrize("what", ["generator", "tokenizer"])
def test_files_that_cannot_be_written_are_told_before_the_work(what, place, generator, tmp_path):
    (tmp_path / "afile").write_text("here")
    (tmp_path / "afolder").mkdir()
    changes, told = UNWRITABLE[place]
    options = {name: str(tmp_path / value) for name, value in changes.items()}
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    model = generator if what == "generator" else str(tmp_path / "tokenizer")
    before = sorted(tmp_path.rglob("*"))
    assert told.replace("FOLDER", str(tmp_path)) in refused(generator, tmp_path, what=what, model=[model], **options)
    assert sorted(tmp_path.rglob("*")) == before
