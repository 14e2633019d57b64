"""`vavae evaluate` against plain computations: generators, samples, tokenizers; two processes; stopped and resumed."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluate_models import color_network, make_generator, make_tokenizer, use_colors
from PIL import Image
from scipy.linalg import sqrtm

from vavae import rng
from vavae.config import to_plain, to_yaml
from vavae.data import to_tensor, to_uint8
from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.evaluation import features as evaluate_store
from vavae.evaluation import reconstruction as evaluate_reconstruction
from vavae.evaluation.compare import read_records
from vavae.evaluation.features import BlockStore
from vavae.evaluation.generation import read_statistics
from vavae.evaluation.images import npz_images
from vavae.flow.paths import Prediction
from vavae.io.hashing import digest, weights_fingerprint
from vavae.metrics import (
    MetricRecord,
    cknna,
    inception_score,
    kernel_distance,
    knn_accuracy,
    latent_spectrum,
    linear_probe,
    precision_recall,
    published_psnr,
    ssim,
)
from vavae.models.sampling import choose_labels, draw
from vavae.stages import evaluate

BLOCK, COUNT = 24, 36  # images of a block, and of a set: a block and a half
DATA = ImagesConfig("demo", 32, limit=COUNT)
NETWORK = color_network()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tokenizer().save_pretrained(folder / "tokenizer")
    make_generator().save_pretrained(folder / "generator")
    return folder


@pytest.fixture(autouse=True)
def colors(monkeypatch: pytest.MonkeyPatch) -> None:
    use_blocks_and_colors(monkeypatch)


def use_blocks_and_colors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(evaluate_store, "BLOCK", BLOCK)
    use_colors(patch.setattr)


@pytest.fixture(scope="module")
def reference(models: Path) -> Path:
    """Return the statistics of the reference that the evaluation of `measured` saves."""
    return models / "reference.npz"


@pytest.fixture(scope="module")
def measured(models: Path, reference: Path) -> dict[str, float]:
    """Evaluate the generator; return the numbers by name."""
    with pytest.MonkeyPatch.context() as patch:
        use_blocks_and_colors(patch)
        config = generation(models, models / "measured", real_split="train", save_reference=str(reference))
        return values(evaluate.run(config))


@pytest.fixture(scope="module")
def without_ratio(measured: dict[str, float]) -> dict[str, float]:
    """Return the numbers that need no `real_split`."""
    return {name: value for name, value in measured.items() if name != "FDr"}


def evaluation(what: str, models: Path, folder: Path, /, **changes: object) -> evaluate.Config:
    config = evaluate.Config(
        what,
        [str(models / what)],
        DATA,
        network=NETWORK.name,
        features=str(folder / "features"),
        output=str(folder / "records.json"),
        device="cpu",
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def generation(models: Path, folder: Path, **changes: object) -> evaluate.Config:
    return evaluation("generator", models, folder, **{"count": COUNT, "steps": 3, "batch_size": 8, **changes})


def reference_pixels(split: str = "test") -> torch.Tensor:
    source = DATA.open(split)  # type: ignore[arg-type]
    return torch.stack([torch.from_numpy(np.array(source.image(i))) for i in range(len(source))])


def drawn_pixels(scale: float = 1.5, seed: int = 0, protocol: str = "balanced") -> torch.Tensor:
    generator = make_generator()
    labels = choose_labels(COUNT, 10, protocol, seed)
    settings = replace(generator.sampling, guidance_scale=scale)
    return torch.from_numpy(draw(generator, labels, range(COUNT), seed, settings))


def plain_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    root = sqrtm(np.cov(x.T) @ np.cov(y.T))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T)) - 2 * np.trace(root).real)


def values(records: list[MetricRecord]) -> dict[str, float]:
    assert len({r.name for r in records}) == len(records)
    return {r.name: r.value for r in records}


@pytest.mark.slow
def test_generation_metrics_equal_plain_computations(measured):
    found = measured
    real, fake = NETWORK.all_parts(reference_pixels()), NETWORK.all_parts(drawn_pixels())
    assert found["FID"] == pytest.approx(plain_distance(fake["pool"], real["pool"]), rel=1e-5)
    assert found["sFID"] == pytest.approx(plain_distance(fake["spatial"], real["spatial"]), rel=1e-5)
    assert found["Inception Score"] == pytest.approx(inception_score([fake["logits"]]), rel=1e-6)
    overlap = precision_recall(real["pool"], fake["pool"], 3)
    assert (found["precision"], found["recall"]) == (overlap.precision, overlap.recall)
    assert found["KID"] == pytest.approx(kernel_distance(real["pool"], fake["pool"]), rel=1e-4)
    floor = plain_distance(NETWORK(reference_pixels("train")), real["pool"])
    assert found["FDr"] == pytest.approx(found["FID"] / floor, rel=1e-5)


@pytest.mark.slow
def test_every_record_has_its_protocol(models, tmp_path):
    config = generation(models, tmp_path, label_protocol="random", seed=5, guidance_channels=2, guidance_scales=[3.0])
    evaluate.run(config)
    records = read_records(tmp_path / "records.json")
    fid = next(r for r in records if r.name == "FID")
    p = fid.protocol
    assert (p.samples, p.reference_samples, p.label_protocol, p.seed, p.steps) == (COUNT, COUNT, "random", 5, 3)
    assert (p.solver, p.shift, p.guidance_scale, p.guidance_channels) == ("euler", 0.3, 3.0, 2)
    assert (p.guidance_interval, p.dtype, p.image_size) == ((0.125, 1.0), "fp32", 32)
    assert (p.feature_network, p.feature_network_hash) == (NETWORK.name, NETWORK.fingerprint)
    assert p.checkpoint == str(models / "generator") and p.reference == "demo-test"
    assert p.checkpoint_hash and p.reference_hash and fid.versions["torch"]
    # The hashes depend on contents only: another folder with the same model and images has the same ones.
    make_generator().save_pretrained(tmp_path / "copy")
    evaluate.run(replace(config, model=[str(tmp_path / "copy")], features=str(tmp_path / "other")))
    again = next(r for r in read_records(tmp_path / "records.json") if r.name == "FID")
    assert again.value == fid.value and fid.obstacles(again) == []
    assert again.protocol.checkpoint_hash == p.checkpoint_hash and again.protocol.reference_hash == p.reference_hash


@pytest.mark.slow
def test_guidance_settings_and_weak_model_are_used_and_recorded(models, tmp_path, capsys):
    make_generator(2).save_pretrained(tmp_path / "weak")
    own = {"metrics": ["frechet"], "guidance_kind": "zero_star", "zero_init_steps": 2, "end": 0.9, "steps": 5}
    config = generation(models, tmp_path, guidance_scales=[1.0, 2.0], weak_model=str(tmp_path / "weak"), **own)
    unguided, guided = (record for record in evaluate.run(config) if record.name == "FID")
    settings = make_generator().sampling.changed(guidance_scale=2.0, **{k: own[k] for k in own if k != "metrics"})
    labels = choose_labels(COUNT, 10, "balanced", 0)
    pixels = draw(make_generator().with_weak_model(make_generator(2)), labels, range(COUNT), 0, settings)
    expected = plain_distance(NETWORK(torch.from_numpy(pixels)), NETWORK(reference_pixels()))
    assert guided.value == pytest.approx(expected, rel=1e-5)
    p, plain = guided.protocol, unguided.protocol
    assert (p.guidance_kind, p.zero_init_steps, p.end) == ("zero_star", 2, 0.9)
    assert (p.weak_model, p.weak_model_hash) == (str(tmp_path / "weak"), make_generator(2).fingerprint())
    assert (plain.guidance_kind, plain.zero_init_steps, plain.weak_model, plain.end) == (None, None, None, 0.9)
    # Features of samples of another weak model are not used again.
    make_generator(3).save_pretrained(tmp_path / "weak")
    assert evaluate.run(replace(config, guidance_scales=[2.0]))[0].value != guided.value
    with pytest.raises(UserError, match="guidance_scale must not be 1 with weak_model"):
        evaluate.run(replace(config, guidance_scales=[1.0]))


def test_networks_are_compiled_on_request(models, tmp_path, capsys, monkeypatch):
    network = replace(color_network(), modules=(torch.nn.Identity(),))
    monkeypatch.setattr(evaluate, "load_feature_network", lambda name, device: network)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: None)
    evaluate.run(generation(models, tmp_path, compile=True, metrics=["frechet"]))
    printed = capsys.readouterr().out
    assert "compile: transformer, 8 images: " in printed and f"compile: {network.name}, 8 images: " in printed


@pytest.mark.slow
def test_stochastic_sampler(models, tmp_path):
    """The samples equal those of `vavae sample`, whatever the batch; the record names the solver."""
    settings = replace(make_generator().sampling, solver="euler_maruyama", steps=5)
    labels = choose_labels(COUNT, 10, "balanced", 0)
    pixels = torch.from_numpy(draw(make_generator(), labels, range(COUNT), 0, settings))
    config = generation(models, tmp_path, solver="euler_maruyama", steps=5, metrics=["frechet"])
    records = evaluate.run(config)
    expected = plain_distance(NETWORK(pixels), NETWORK(reference_pixels()))
    assert values(records)["FID"] == pytest.approx(expected, rel=1e-5)
    assert (records[0].protocol.solver, records[0].protocol.steps) == ("euler_maruyama", 5)
    deterministic = evaluate.run(replace(config, solver="euler"))
    assert values(deterministic)["FID"] != pytest.approx(expected, rel=1e-3)


def test_fingerprint_depends_on_prediction():
    """Stored features of velocity models are older than the other predictions, and stay valid."""
    generator = make_generator()
    found = {}
    for prediction in get_args(Prediction):
        generator.prediction = prediction
        found[prediction] = generator.fingerprint()
    assert len(set(found.values())) == len(found) > 2
    weights, shape = weights_fingerprint(generator.transformer), to_plain(generator.transformer.config)
    for newer in ("auxiliary_block", "class_token", "routing"):  # which are off
        del shape[newer]
    former = digest(weights, shape, "linear", generator.tokenizer.fingerprint())
    assert found["velocity"] == former


@pytest.mark.slow
def test_scales_checkpoints_and_networks_in_one_run(models, tmp_path, capsys):
    both = [str(models / "generator"), str(tmp_path / "second")]
    other = make_generator()
    with torch.no_grad():
        for parameter in other.transformer.parameters():
            parameter *= 0.9
    other.save_pretrained(tmp_path / "second")
    config = generation(
        models, tmp_path, model=both, guidance_scales=[1.0, 4.0], network=f"{NETWORK.name}, b", metrics=["frechet"]
    )
    records = evaluate.run(config)
    assert [(r.protocol.checkpoint, r.protocol.guidance_scale, r.name) for r in records] == [
        (path, scale, name) for path in both for scale in (1.0, 4.0) for name in ("FID", "Fréchet distance")
    ]
    assert len({r.value for r in records if r.name == "FID"}) == 4
    fake, real = NETWORK(drawn_pixels(4.0)), NETWORK(reference_pixels())
    assert records[2].value == pytest.approx(plain_distance(fake, real), rel=1e-5)
    out = capsys.readouterr().out
    assert "guidance" in out and "checkpoint" in out
    with Image.open(tmp_path / "records.png") as picture:
        assert picture.width > 300


@pytest.mark.slow
def test_samples_from_generator_folder_and_npz_agree(models, without_ratio, tmp_path):
    pixels = drawn_pixels().numpy()
    (tmp_path / "png").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "png" / f"{number:06d}.png")
    Image.fromarray(pixels[0]).resize((99, 99)).save(tmp_path / "png" / "grid.png")  # as `vavae sample` leaves it
    np.savez(tmp_path / "samples.npz", arr_0=pixels)
    np.savez_compressed(tmp_path / "small.npz", arr_0=pixels)
    for name in ("png", "samples.npz", "small.npz"):
        config = evaluation("samples", models, tmp_path, model=[str(tmp_path / name)], batch_size=16)
        records = evaluate.run(config)
        assert values(records) == pytest.approx(without_ratio, rel=1e-5)
        assert len({r.protocol.checkpoint_hash for r in records}) == 1
    mapped = npz_images(tmp_path / "samples.npz")
    assert mapped is not None
    np.testing.assert_array_equal(mapped.block(range(COUNT)).pixels(slice(None)), pixels)


@pytest.mark.slow
def test_reference_statistics_instead_of_images(models, measured, reference, tmp_path):
    found = evaluate.run(generation(models, tmp_path, reference=str(reference)))
    assert set(values(found)) == {"FID", "sFID", "Inception Score"}  # others need the images
    assert values(found) == pytest.approx({name: measured[name] for name in values(found)}, rel=1e-9)
    assert next(r for r in found if r.name == "FID").protocol.reference_samples == COUNT
    with pytest.raises(UserError, match="statistics of the network b"):
        evaluate.run(generation(models, tmp_path, reference=str(reference), network="b"))
    # ADM's form: statistics of more images than it holds, of the Inception of the graph.
    real = NETWORK.all_parts(reference_pixels())
    arrays = {"mu": real["pool"].double().mean(0).numpy(), "sigma": np.cov(real["pool"].double().numpy().T)}
    np.savez(tmp_path / "adm.npz", arr_0=reference_pixels()[:30].numpy(), **arrays)
    adm = read_statistics(tmp_path / "adm.npz", [color_network("inception"), color_network("b")])
    assert set(adm) == {"inception"} and adm["inception"].spatial is None and adm["inception"].count is None
    mixed = generation(models, tmp_path, reference=str(tmp_path / "adm.npz"), network="inception,b")
    records = evaluate.run(mixed)
    by_name = {(r.name, r.protocol.feature_network): r for r in records}
    assert by_name["FID", "inception"].value == pytest.approx(measured["FID"], rel=1e-6)
    assert by_name["FID", "inception"].protocol.reference_samples is None
    assert by_name["Fréchet distance", "b"].protocol.reference_samples == 30
    assert by_name["precision", "inception"].protocol.reference_samples == 30
    assert ("sFID", "inception") not in by_name


def test_images_of_different_sizes_are_refused(models, tmp_path):
    (tmp_path / "png").mkdir()
    for number, side in enumerate((32, 32, 16)):
        Image.new("RGB", (side, side)).save(tmp_path / "png" / f"{number}.png")
    with pytest.raises(UserError, match="differ in size"):
        evaluate.run(evaluation("samples", models, tmp_path, model=[str(tmp_path / "png")]))
    with pytest.raises(UserError, match="no such folder"):
        evaluate.run(generation(models, tmp_path, what="samples", model=["absent"]))
    (tmp_path / "broken").mkdir()
    for number in range(2):
        Image.new("F", (32, 32)).save(tmp_path / "broken" / f"{number}.tif")
    with pytest.raises(UserError, match=r"0\.tif: its pixels are 32-bit"):
        evaluate.run(generation(models, tmp_path, what="samples", model=[str(tmp_path / "broken")]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": ["GOOD", "/missing"]}, "/missing: no such file"),
        ({"model": ["TOKENIZER"]}, "tokenizer.*not a generator"),
        ({"what": "samples", "model": ["/missing"]}, "/missing"),
        ({"what": "samples", "model": ["/missing.npz"]}, "/missing.npz"),
        ({"what": "tokenizer", "model": ["/missing"]}, "/missing"),
        ({"reference": "/missing.npz"}, "/missing.npz"),
        ({"data": replace(DATA, images="/missing")}, "/missing"),
        ({"data": replace(DATA, size=64)}, r"size of the reference, 64 px \(data\.size\), got 32 px"),
        ({"real_split": "test"}, "real_split must not be the reference"),
        ({"network": ""}, "must name a feature network"),
    ],
)
def test_mistakes_are_reported_before_any_work(models, tmp_path, monkeypatch, changes, message):
    def work(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(evaluate, "load_feature_network", work)
    monkeypatch.setattr(evaluate.of_tokenizer, "perceptual_networks", work)
    real = {"GOOD": str(models / "generator"), "TOKENIZER": str(models / "tokenizer")}
    if "model" in changes:
        changes = {**changes, "model": [real.get(name, name) for name in changes["model"]]}
    with pytest.raises(UserError, match=message):
        evaluate.run(generation(models, tmp_path, **changes))
    assert not (tmp_path / "features").exists()


@pytest.mark.slow
def test_stopped_evaluation_resumes(models, without_ratio, tmp_path, monkeypatch):
    calls: list[list[int]] = []
    import vavae.evaluation.images as images

    def counted(generator, labels, indices, *rest):
        calls.append(list(indices))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return draw(generator, labels, indices, *rest)

    monkeypatch.setattr(images, "draw", counted)
    config = generation(models, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        evaluate.run(config)
    assert calls[-1][0] == BLOCK + 8  # the first block is done
    assert values(evaluate.run(config)) == without_ratio
    assert [numbers[0] for numbers in calls[5:]] == [BLOCK, BLOCK + 8]


def reconstruction_config(models: Path, folder: Path, **changes: object) -> evaluate.Config:
    # t-SNE needs more than 30 latents.
    return evaluation("tokenizer", models, folder, **{"latents": 28, "tsne_seeds": 1, **changes})


FEW = {"latents": 8, "tsne_seeds": 0}  # for tests of reconstructions alone


@pytest.mark.slow
def test_reconstruction_in_both_conventions(models, tmp_path):
    records = evaluate.run(reconstruction_config(models, tmp_path, bootstrap=30, **FEW))
    found = {(r.name, r.protocol.convention): r for r in records}
    tokenizer, pixels = make_tokenizer(), reference_pixels()
    images = to_tensor(pixels)
    with torch.inference_mode():
        strict = tokenizer.autoencoder.decode(tokenizer.autoencoder.encode(images).mode())
        noise = rng.normal(0, "posterior", range(COUNT), (4, 8, 8))
        published = tokenizer.autoencoder.decode(tokenizer.autoencoder.encode(images).sample(noise=noise))
    for convention, decoded in (("strict", strict), ("published", published)):
        stored = to_uint8(decoded)
        psnr = published_psnr(stored, pixels)
        assert found["PSNR", convention].value == pytest.approx(float(psnr.mean()), rel=1e-5)
        assert found["rFID", convention].value == pytest.approx(
            plain_distance(NETWORK(stored), NETWORK(pixels)), rel=1e-4
        )
        low, high = found["PSNR", convention].interval
        assert low < found["PSNR", convention].value < high
        with (tmp_path / "records.images.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == COUNT
        written = [float(row[f"{convention} psnr"]) for row in rows]
        np.testing.assert_allclose(written, psnr.numpy(), rtol=1e-4)
    reflected = ssim(published.clamp(-1, 1), images, border="reflect").mean()
    assert found["SSIM", "published"].value == pytest.approx(float(reflected), rel=1e-4)
    assert found["PSNR", "strict"].protocol.posterior == "mean"
    assert found["PSNR", "published"].protocol.posterior == "sample"
    assert (found["PSNR", "strict"].protocol.seed, found["rFID", "published"].protocol.seed) == (None, 0)
    differing = ["seed", "posterior", "preprocessing", "convention"]
    assert found["PSNR", "strict"].obstacles(found["PSNR", "published"]) == differing


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked, published",
    [
        ("inception,inception-pytorch-fid", ["inception-pytorch-fid"]),
        (
            "inception, inception:weights.pth, b, inception-clean:weights.pth,teacher:inception",
            [
                "inception-pytorch-fid",
                "inception-pytorch-fid:weights.pth",
                "b",
                "inception-clean:weights.pth",
                "teacher:inception",
            ],
        ),
    ],
)
def test_published_rfid_resizes_as_pytorch_fid(models, tmp_path, asked, published):
    """This holds for weights in a file too; a network that both conventions name is used once."""
    kept = str(models / "features")  # for all cases
    config = reconstruction_config(models, tmp_path, network=asked, features=kept, **FEW)
    records = [r for r in evaluate.run(config) if r.name in ("rFID", "reconstruction Fréchet distance")]
    seen = {
        convention: [r for r in records if r.protocol.convention == convention] for convention in config.conventions
    }
    assert [r.protocol.feature_network for r in seen["strict"]] == list(config.networks)
    assert [r.protocol.feature_network for r in seen["published"]] == published
    for found in seen.values():  # the stand-ins all see the same colors
        assert len({r.value for r in found}) == 1


class GridTeacher(torch.nn.Module):
    """Mean colors on a 4 x 4 grid."""

    name = "grid"

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def fingerprint(self) -> str:
        return "grid teacher"

    def forward(self, images: torch.Tensor):
        from vavae.teachers import TeacherFeatures

        grid = F.adaptive_avg_pool2d(images, 4)
        return TeacherFeatures(grid, grid.flatten(1))


@pytest.mark.slow
def test_latent_metrics_equal_plain_computations(models, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_teacher", lambda name, **sizes: GridTeacher())
    config = reconstruction_config(models, tmp_path, conventions=[], latents=1000, teacher="grid")
    found = values(evaluate.run(config))
    tokenizer = make_tokenizer()
    sets = []
    for split in ("train", "test"):
        source = DATA.open(split)  # type: ignore[arg-type]
        sets += [
            tokenizer.encode(to_tensor(reference_pixels(split))),
            torch.tensor([source.label(i) for i in range(COUNT)]),
        ]
    latents = sets[2]
    assert found["effective rank"] == pytest.approx(latent_spectrum(latents).effective_rank, rel=1e-5)
    assert found["linear probe"] == linear_probe(*sets) and found["k-NN accuracy (k = 20)"] == knn_accuracy(*sets)
    pooled = F.adaptive_avg_pool2d(to_tensor(reference_pixels()), 4).flatten(1)
    assert found["alignment: CKNNA (k = 10)"] == pytest.approx(cknna(latents, pooled), rel=1e-3)
    distances = torch.cdist(latents.flatten(1).double(), latents.flatten(1).double()).fill_diagonal_(torch.inf)
    midpoints = (latents + latents[distances.argmin(1)]) / 2
    decoded = to_uint8(tokenizer.decode(midpoints))
    expected = plain_distance(NETWORK(decoded), NETWORK(reference_pixels()))
    assert found["interpolation FID"] == pytest.approx(expected, rel=1e-3)
    assert {"uniformity: Gini", "sphere uniformity", "neighbour uniformity: entropy gap"} <= set(found)
    spectrum = [float(line) for line in (tmp_path / "records.spectrum.txt").read_text().split()]
    np.testing.assert_allclose(spectrum, latent_spectrum(latents).eigenvalues.numpy(), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(models, tmp_path, launch, request):
    """Compare every record, and every image's values, to the last digit."""
    generated = generation(models, tmp_path, count=3 * BLOCK, network=f"{NETWORK.name},b", real_split="train")
    configs = {
        "generator": replace(generated, bootstrap=5),
        "tokenizer": reconstruction_config(models, tmp_path, tsne_seeds=0, bootstrap=5),
    }
    recipes = []
    for name, config in configs.items():
        recipes.append(tmp_path / f"{name}.yaml")
        recipes[-1].write_text(
            to_yaml(replace(config, features=str(tmp_path / "two"), output=str(tmp_path / f"{name}-two.json")))
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes: sums depend on the number of threads, in the last digits
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    launch(2, "evaluations", BLOCK, *recipes)
    for name, config in configs.items():
        evaluate.run(replace(config, output=str(tmp_path / f"{name}-one.json")))
        one, two = (json.loads((tmp_path / f"{name}-{n}.json").read_text()) for n in ("one", "two"))
        assert one == two and len(one) > 10
    assert (tmp_path / "tokenizer-one.images.csv").read_text() == (tmp_path / "tokenizer-two.images.csv").read_text()


@pytest.mark.slow
def test_stored_fidelity_is_reused(models, tmp_path, monkeypatch):
    config = reconstruction_config(models, tmp_path, conventions=["strict"], **FEW)
    expected = values(evaluate.run(config))
    decoded = []
    plain = evaluate_reconstruction.Reconstructions._rebuild

    def counted(self, images, indices):
        decoded.append(len(images))
        return plain(self, images, indices)

    monkeypatch.setattr(evaluate_reconstruction.Reconstructions, "_rebuild", counted)
    assert values(evaluate.run(config)) == expected and decoded == []
    # If the values of a block are lost but its features are there, only this block is decoded again.
    store = BlockStore(config.features)
    fidelity = [f for f in store.folder.rglob("*.safetensors") if "psnr" in store.read(f.stem)]
    assert len(fidelity) == 2
    fidelity[0].unlink()
    assert values(evaluate.run(config)) == expected
    assert sum(decoded) in (BLOCK, COUNT - BLOCK)
