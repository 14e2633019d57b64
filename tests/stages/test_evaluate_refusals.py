"""`vavae evaluate` reports before any work: damaged statistics, metrics that cannot be measured, unwritable files."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from evaluate_models import color_network, make_generator, make_tokenizer, use_colors

from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.evaluation import images as evaluate_images
from vavae.evaluation.generation import read_statistics
from vavae.evaluation.images import npz_images
from vavae.metrics import FeatureNetwork
from vavae.stages import evaluate

Arrays = dict[str, np.ndarray]


def statistics(numbers: int = 12, spatial: bool = True) -> Arrays:
    """Return statistics of the stand-in network in ADM's form."""
    arrays = {"mu": np.full(numbers, 0.5), "sigma": np.eye(numbers) / 9}
    return arrays | ({"mu_s": np.full(6, 0.5), "sigma_s": np.eye(6) / 9} if spatial else {})


def _no_logits(name: str, device: object = "cpu") -> FeatureNetwork:
    """As `color_network`; of an Inception no logits, of a teacher no spatial features either."""
    plain = color_network(name)
    parts = ("pool", "spatial") if name.startswith("inception") else ("pool",)
    return FeatureNetwork(name, plain.fingerprint, plain.device, plain.compute, parts)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "generator"
    make_generator().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace networks by stand-ins; drawing and storing fail."""

    def work(*_: object) -> None:
        raise AssertionError("work began")

    use_colors(monkeypatch.setattr)
    monkeypatch.setattr(evaluate_images, "draw", work)
    monkeypatch.setattr(evaluate_images, "pixel_block", work)


def refused(generator: str, folder: Path, **changes: object) -> str:
    """Return the message of the refusal."""
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
    arrays, expected = DAMAGED[fault]
    file = tmp_path / "reference.npz"
    np.savez(file, **arrays)
    message = refused(generator, tmp_path, reference=str(file))
    assert str(file) in message and expected in message


def _flipped(whole: bytes) -> Iterator[bytes]:
    """Yield the file with one byte flipped: one of a date, which does not matter, and forty over the whole length."""
    for place in {10, *np.linspace(0, len(whole) - 1, 40).astype(int).tolist()}:
        yield whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]


def _survives(file: Path, read: Callable[[], object]) -> bool:
    try:
        read()
    except UserError as error:
        assert str(file) in str(error) and "\n" not in str(error)
        return False
    return True


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_byte_in_statistics(save, tmp_path):
    """No flipped byte gives another kind of error, or other numbers."""
    network, file, buffer = color_network("inception"), tmp_path / "reference.npz", io.BytesIO()
    save(buffer, **statistics(spatial=False))
    whole = buffer.getvalue()
    file.write_bytes(whole)
    expected = read_statistics(file, [network])["inception"].fingerprint
    seen = set()
    for damaged in _flipped(whole):
        file.write_bytes(damaged)
        found: list[str] = []

        def read(found: list[str] = found) -> None:
            assert npz_images(file) is None
            found += [known.fingerprint for known in read_statistics(file, [network]).values()]

        seen.add(_survives(file, read))
        assert set(found) <= {expected}
    assert seen == {True, False}  # some bytes say nothing, such as dates


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_flipped_byte_in_images(save, tmp_path):
    file, buffer = tmp_path / "samples.npz", io.BytesIO()
    save(buffer, arr_0=np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3))
    whole = buffer.getvalue()
    seen = set()
    for damaged in _flipped(whole):
        file.write_bytes(damaged)
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
        "must be left out for tokenizer: it is an option of generator",
    ),
    "guidance": ({"guidance_scales": [-1.0]}, "guidance_scale must be a number from 0 to 10,000, got -1.0"),
}


@pytest.mark.parametrize("lack", LACKING)
def test_metrics_that_cannot_be_measured_are_refused(lack, generator, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_feature_network", _no_logits)
    changes, expected = LACKING[lack]
    for name in ("both", "pool"):
        np.savez(tmp_path / name, **statistics(spatial=name == "both"))
    if "reference" in changes:
        changes = changes | {"reference": str(tmp_path / f"{changes['reference']}.npz")}
    assert expected in refused(generator, tmp_path, **changes)


@pytest.mark.slow
def test_metrics_that_one_network_allows(generator, tmp_path, monkeypatch):
    """Logits and spatial features of one network are enough; without named metrics, those that can be are measured."""
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
def test_unwritable_files_are_reported_before_any_work(what, place, generator, tokenizer, tmp_path):
    (tmp_path / "afile").write_text("here")
    (tmp_path / "afolder").mkdir()
    changes, expected = UNWRITABLE[place]
    options = {name: str(tmp_path / value) for name, value in changes.items()}
    model = generator if what == "generator" else tokenizer
    before = sorted(tmp_path.rglob("*"))
    message = refused(generator, tmp_path, what=what, model=[model], **options)
    assert expected.replace("FOLDER", str(tmp_path)) in message
    assert sorted(tmp_path.rglob("*")) == before


def test_one_image_has_no_distances(tokenizer: str) -> None:
    config = evaluate.Config("tokenizer", [tokenizer], ImagesConfig("demo", 32, limit=1), network="inception-colors")
    with pytest.raises(UserError, match=r"data\.images must have at least 2 images for distances, got 1 in"):
        evaluate.run(config)
