"""`vavae serve`: answers to requests, refusals, and the end of the command."""

import io
import json
import math
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import gradio_client
import httpx
import numpy as np
import pytest
import torch
from children import CONTEXT
from launching import free_port as unused_port
from PIL import Image

from vavae.cli import run
from vavae.data import demo_pixels
from vavae.errors import UserError
from vavae.models import Generator, SamplingConfig
from vavae.serve.again import with_text
from vavae.serve.server import free_port, known_hosts, launch
from vavae.serve.studio import Studio

pytestmark = pytest.mark.slow  # gradio alone takes five seconds to load

FEW = (2.0, "euler", 4, 0.3, 0.1, 1.0, "cfg", 1)  # guidance scale, solver, grid points, shift, interval, kind, still
SAMPLING = SamplingConfig("euler", 4, 0.3, 2.0, 0.1, 1.0)


def build(*studios: Studio) -> Any:
    from vavae.serve import page  # gradio takes five seconds to load: not at collection, which every worker does

    return page.build(*studios)


@pytest.fixture(scope="module")
def client(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))
    page = build(studio)
    launch(page, "127.0.0.1", free_port("127.0.0.1"))
    yield gradio_client.Client(page.local_url, verbose=False)
    page.close()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Any]:
    files = []
    for number in (0, 1):
        Image.fromarray(demo_pixels("test")[number]).save(tmp_path / f"{number}.png")
        files.append(gradio_client.handle_file(str(tmp_path / f"{number}.png")))
    return files


def shown(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_sample_endpoint(client: Any, studio: Studio) -> None:
    answer, line, command, _ = client.predict([], 3, 5, *FEW, api_name="/sample")
    assert [entry["caption"] for entry in answer] == ["airplane", "automobile", "bird"]
    expected = studio.sample([0, 1, 2], 5, SAMPLING)
    for entry, image in zip(answer, expected, strict=True):
        np.testing.assert_array_equal(shown(entry["image"]), image)
    with Image.open(answer[1]["image"]) as image:
        text = json.loads(image.text["vavae"])  # type: ignore[attr-defined]
    assert (text["model"], text["seed"], text["index"], text["label"]) == ("demo", 5, 1, 1)
    assert text["sampling"]["steps"] == 4 and text["command"] == command
    assert line == "seed 5 · 4 euler grid points, time shift 0.3, guidance 2 from time 0.1 to 1"
    two, *_ = client.predict([3, 9], 3, 5, *FEW, api_name="/sample")
    assert [entry["caption"] for entry in two] == ["cat", "truck", "cat"]


def test_kind_of_guidance_and_weak_model_reach_the_samples(generator: Generator, monkeypatch: Any) -> None:
    guided = generator.with_weak_model(generator)
    studio = Studio(generator.tokenizer, guided, source="demo", weak_source="small")
    assert studio.guidance_kinds == ["cfg", "zero_star"]
    act = next(fn.fn for fn in build(studio).fns.values() if fn.api_name == "sample")
    monkeypatch.setattr("vavae.serve.page.still_asked", lambda: lambda: None)
    images, line, command, code = act([3], 1, 5, *FEW[:6], "zero_star", 2, progress=lambda *_, **more: None)
    expected = guided([3], 5, output_type="np", **vars(SAMPLING) | {"guidance_kind": "zero_star", "zero_init_steps": 2})
    np.testing.assert_array_equal(np.asarray(images[0][0]), expected[0])
    assert line.endswith("CFG-Zero* guidance 2 against the weak model small from time 0.1 to 1")
    assert command.endswith("--guidance_kind zero_star --zero_init_steps 2 --weak_model small")
    assert "from_pretrained('demo').with_weak_model(vavae.Generator.from_pretrained('small'))" in code
    # Without guidance the command would be refused with a weak model.
    *_, command, code = act([3], 1, 5, 1.0, *FEW[1:], progress=lambda *_, **more: None)
    assert "weak" not in command + code


def test_two_checkpoints_draw_from_the_same_noise(studio: Studio, generator: Generator, monkeypatch: Any) -> None:
    other = Studio(studio.tokenizer, generator, source="other")
    page = build(studio, other)
    act = next(fn.fn for fn in page.fns.values() if fn.api_name == "sample")
    monkeypatch.setattr("vavae.serve.page.still_asked", lambda: lambda: None)
    first, second, _, command, code = act([3, 4], 2, 5, *FEW, progress=lambda *_, **more: None)
    assert command.splitlines()[1] == command.splitlines()[0].replace("demo", "other")
    assert "from_pretrained('demo')" in code and "from_pretrained('other')" in code
    for (one, caption), (two, same) in zip(first, second, strict=True):
        assert caption == same
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_unlike_checkpoints_are_not_compared(studio: Studio) -> None:
    alone = Studio(studio.tokenizer, source="alone")
    with pytest.raises(
        UserError, match=r"compare must be .* like demo \(16x8x8, 10 classes\), got alone \(no generator"
    ):
        build(studio, alone)
    with pytest.raises(UserError, match="compare must be"):
        build(alone, alone)


def test_reconstruct_endpoint(client: Any, studio: Studio, pictures: list[Any]) -> None:
    (original, rebuilt), difference, latent, numbers, _, code = client.predict(pictures[0], 32, api_name="/reconstruct")
    made = studio.reconstruct(Image.fromarray(demo_pixels("test")[0]), 32)
    expected = (made.original, made.image, made.difference, made.latent)
    for path, image in zip((original, rebuilt, difference, latent), expected, strict=True):
        np.testing.assert_array_equal(shown(path), image)
    assert f"PSNR **{made.psnr:.2f} dB**" in numbers and f"SSIM **{made.ssim:.3f}**" in numbers
    assert "Latent 16 × 8 × 8: 33.3% of the image's numbers." in numbers
    assert "studio.reconstruct" in code
    with Image.open(rebuilt) as image:
        text = json.loads(image.text["vavae"])  # type: ignore[attr-defined]
    assert text == {"model": "demo", "side": 32, "psnr": made.psnr, "shows": "reconstruction"}


def test_interpolation_endpoints(client: Any, studio: Studio, pictures: list[Any]) -> None:
    between, *_ = client.predict(*pictures, 32, 3, api_name="/between_images")
    assert [entry["caption"] for entry in between] == ["0%", "50%", "100%"]
    images = [Image.fromarray(demo_pixels("test")[number]) for number in (0, 1)]
    np.testing.assert_array_equal(shown(between[1]["image"]), studio.between_images(*images, 32, 3)[1])
    noises, line, _ = client.predict(4, 0, 1, 2, *FEW, api_name="/between_seeds")
    assert line.startswith("seed 0 to 1 · 4 euler")
    np.testing.assert_array_equal(shown(noises[1]["image"]), studio.between_seeds(4, 0, 1, 2, SAMPLING)[1])


@pytest.mark.parametrize(
    ("arguments", "endpoint", "message"),
    [
        ((None, 32), "/reconstruct", "choose an image first"),
        ((0, 33), "/reconstruct", "side must be a multiple of 4 from 4 to 1024, got 33"),
        ((0, None), "/reconstruct", "Side in pixels must be a number; the field is empty"),
        ((0, None, 32, 3), "/between_images", "choose an image first"),
        (([], 3, None, *FEW), "/sample", "Seed must be a number; the field is empty"),
        (([], 3, 5, 2.0, "euler", 4, 0.3, 0.9, 0.2), "/sample", "guidance_stop must be .* got 0.9 to 0.2"),
        ((4, None, 1, 2, *FEW), "/between_seeds", "Seed 1 must be a number; the field is empty"),
    ],
)
def test_errors_are_sentences_on_the_page(
    client: Any, pictures: list[Any], arguments: tuple, endpoint: str, message: str
) -> None:
    given = [pictures[0] if value == 0 else value for value in arguments]
    with pytest.raises(gradio_client.exceptions.AppError, match=message):
        client.predict(*given, api_name=endpoint)


def test_damaged_image_is_refused(client: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(gradio_client.exceptions.AppError, match="this file cannot be read as an image"):
        client.predict(gradio_client.handle_file(str(tmp_path / "broken.png")), 32, api_name="/reconstruct")


def test_16_bit_images_are_read_as_in_data_sets(client: Any, tmp_path: Path) -> None:
    gray = (np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64).astype(np.uint16)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    (original, _), *_ = client.predict(
        gradio_client.handle_file(str(tmp_path / "gray.png")), 32, api_name="/reconstruct"
    )
    np.testing.assert_array_equal(shown(original), np.repeat((gray >> 8).astype(np.uint8)[..., None], 3, axis=2))


MARK = {"_type": "gradio.FileData"}


def refused(client: Any, endpoint: str, data: Any) -> str:
    """Return the error of a call of the HTTP API."""
    headers = {"Content-Type": "application/json"}
    sent = httpx.post(
        f"{client.src}gradio_api/call/{endpoint}", content=json.dumps({"data": data}), headers=headers, timeout=60
    )
    assert sent.status_code == 200, sent.text
    answer = httpx.get(f"{client.src}gradio_api/call/{endpoint}/{sent.json()['event_id']}", timeout=60).text
    event, content = answer.strip().splitlines()[:2]
    assert event == "event: error"
    return json.loads(content.removeprefix("data: "))["error"]


@pytest.fixture
def secret(tmp_path: Path) -> str:
    Image.new("RGB", (32, 32), (1, 2, 3)).save(tmp_path / "secret.png")
    os.mkfifo(tmp_path / "fifo.png")
    return str(tmp_path / "secret.png")


def test_only_uploaded_files_are_opened(client: Any, secret: str) -> None:
    link = Path(os.environ["GRADIO_TEMP_DIR"]) / "link.png"
    link.symlink_to(secret)
    fifo = secret.replace("secret", "fifo")
    paths = [secret, fifo, str(link), f"{link.parent}/../{Path(secret).name}", "/dev/zero", f"file://{secret}", "a\0b"]
    sent: list[Any] = [{"path": path} for path in paths] + [{"path": secret, "meta": MARK}]
    sent += [
        {"path": f"{client.src}config", "meta": MARK},
        {"path": "", "url": f"{client.src}config"},
        {"path": str(link.parent)},
    ]
    sent += [secret, {"path": "x" * 6000}, {"path": [secret]}]
    for value in sent:
        assert refused(client, "reconstruct", [value, 32]) == "image must be a file that was uploaded to this page"
    for place in (secret, fifo, link):
        assert httpx.get(f"{client.src}gradio_api/file={place}").status_code == 403


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 99, "Classes must be a list of the 10 choices, got 99"),
        (0, [1, 10], "Classes must be a list of the 10 choices, got [1, 10]"),
        (0, [1] * 11, "Classes must be a list of the 10 choices, got [1, 1, "),
        (0, [[1]], "Classes must be a list of the 10 choices, got [[1]]"),
        (0, None, "Classes must be a list of the 10 choices, got None"),
        (1, 10**9, "Images must be from 1 to 64, got 1000000000"),
        (1, 10**400, "Images must be from 1 to 64, got a number of 1329 bits"),
        (1, "5", "Images must be a whole number, got '5'"),
        (1, 2.5, "Images must be a whole number, got 2.5"),
        (1, None, "Images must be a whole number, got None"),
        (2, -1, "Seed must be from 0 to 9223372036854775807, got -1"),
        (2, 10**30, "Seed must be from 0 to 9223372036854775807, got 1" + 30 * "0"),
        (
            2,
            {"path": "http://192.0.2.1/", "meta": MARK},
            "Seed must be a whole number, got {'path': 'http://192.0.2.1/'",
        ),
        (3, math.nan, "Guidance scale (1 is none) must be a number, got nan"),
        (3, 1e308, "Guidance scale (1 is none) must be from 1 to 10, got 1e+308"),
        (3, True, "Guidance scale (1 is none) must be a number, got True"),
        (4, "dopri", "Solver must be one of the 6 choices, got 'dopri'"),
        (5, 10**9, "Grid points must be from 2 to 250, got 1000000000"),
        (8, "x" * 10**6, "Guidance up to time (1 is data) must be a number, got 'xxx"),
    ],
)
def test_invalid_values_are_refused_in_one_sentence(
    client: Any, place: int, value: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data: list[Any] = [[], 1, 0, *FEW]
    data[place] = value
    error = refused(client, "sample", data)
    assert error.startswith(message) and len(error) < 200
    assert "Traceback" not in capfd.readouterr().err


def test_wrong_number_of_values_is_refused(client: Any) -> None:
    assert refused(client, "sample", [[], 1]) == "data must be a list of 11 values, got 2"
    assert refused(client, "sample", [[], 1, 0, *FEW] * 1000) == "data must be a list of 11 values, got 11000"
    # The queue cannot be bypassed.
    assert httpx.post(f"{client.src}gradio_api/run/sample", json={"data": [[], 1, 0, *FEW]}).status_code == 404


def test_samples_that_are_not_finite(client: Any, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = next(studio.generator.transformer.parameters())  # type: ignore[union-attr]
    monkeypatch.setattr(weights, "data", torch.full_like(weights, math.nan))
    message = "sample 0 is not finite with guidance_scale 2 and 4 steps of euler"
    assert refused(client, "sample", [[1], 1, 0, *FEW]).startswith(message)
    assert refused(client, "between_seeds", [1, 0, 1, 2, *FEW]).startswith(message)


def test_decoded_images_that_are_not_finite(
    client: Any, studio: Studio, pictures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = next(studio.tokenizer.autoencoder.decoder.parameters())
    monkeypatch.setattr(weights, "data", torch.full_like(weights, math.nan))
    for endpoint, values in (
        ("/reconstruct", (pictures[0], 32)),
        ("/between_images", (*pictures, 32, 3)),
        ("/sample", ([1], 1, 0, *FEW)),
    ):
        with pytest.raises(gradio_client.exceptions.AppError, match="decoder returns numbers that are not finite"):
            client.predict(*values, api_name=endpoint)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("call/nosuch", {"data": []}),
        ("queue/join", {"data": [], "fn_index": 99, "session_hash": "a"}),
    ],
)
def test_unknown_functions_are_refused_in_one_line(
    client: Any, path: str, content: dict, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = httpx.post(f"{client.src}gradio_api/{path}", json=content)
    assert answer.status_code == 400 and answer.text.startswith(f"This page cannot answer /gradio_api/{path}")
    assert len(answer.text.splitlines()) == 1 and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("evil.example:7860", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1", 421),
        ("", 421),
        ("[", 421),
        ("localhost", 200),
        ("LocalHost:7860", 200),
        ("[::1]:7860", 200),
    ],
)
def test_unknown_hosts_are_refused(client: Any, host: str, status: int) -> None:
    assert httpx.get(f"{client.src}config", headers={"Host": host}).status_code == status


def test_known_hosts_of_a_public_address() -> None:
    from vavae.serve.guard import KnownHosts  # imports gradio

    names, addresses = known_hosts("0.0.0.0", ("lab.example",))
    assert addresses and {"lab.example", socket.gethostname(), "localhost"} <= names
    guard = KnownHosts(None, names, addresses)
    assert all(map(guard._knows, (b"10.0.0.1:7860", b"[fe80::1]:80", b"lab.example:443")))
    assert not guard._knows(b"evil.example")


@pytest.fixture
def long_call(client: Any, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A call of `sample` that would take a minute; the fixture waits until it has begun."""
    begun, ended = threading.Event(), threading.Event()

    def endless(labels: Any, seed: Any, sampling: Any, tick: Any) -> None:
        begun.set()
        try:
            for _ in range(600):
                tick()
                time.sleep(0.1)
        finally:
            ended.set()

    monkeypatch.setattr(studio, "sample", endless)
    index = next(i for i, fn in enumerate(client.config["dependencies"]) if fn["api_name"] == "sample")
    call = {"data": [[], 1, 0, *FEW], "fn_index": index, "session_hash": f"visitor{time.time()}"}
    sent = httpx.post(f"{client.src}gradio_api/queue/join", json=call).json()
    with httpx.stream("GET", f"{client.src}gradio_api/queue/data", params=call) as answers:
        assert begun.wait(20) and not ended.is_set()
        yield {**call, **sent, "ended": ended, "answers": answers}
    assert ended.wait(20)


def test_work_ends_with_its_visitor(long_call: dict[str, Any]) -> None:
    long_call["answers"].close()
    assert long_call["ended"].wait(20)


def test_stop_ends_the_work(client: Any, long_call: dict[str, Any]) -> None:
    names = ("session_hash", "fn_index", "event_id")
    httpx.post(f"{client.src}gradio_api/cancel", json={name: long_call[name] for name in names})
    assert long_call["ended"].wait(20)


def test_controls_accept_the_models_defaults(generator: Generator) -> None:
    """A control refuses every click if its range does not contain its value."""
    import gradio

    defaults = SamplingConfig("euler_maruyama", 300, 3.0, 12.0, 0.1, 1.0)
    other = Generator(generator.transformer, generator.tokenizer, sampling=defaults)
    sliders = [c for c in build(Studio(other.tokenizer, other)).blocks.values() if isinstance(c, gradio.Slider)]
    assert len(sliders) == 14
    assert all(slider.minimum <= slider.value <= slider.maximum for slider in sliders)


def test_tokenizer_alone_has_no_sample_endpoint(studio: Studio) -> None:
    page = build(Studio(studio.tokenizer))
    assert set(page.get_api_info()["named_endpoints"]) == {"/reconstruct", "/between_images"}


def test_page_loads_nothing_from_other_machines(client: Any) -> None:
    with urllib.request.urlopen(client.src) as answer:
        html = answer.read().decode()
    loaded = re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?://[^"]+)"', html)
    assert not [address for address in loaded if not address.startswith(client.src)]
    assert client.config["stylesheets"] == []  # web fonts would be listed here


def serve(folder: str) -> None:
    """Run the command in this process, a new one, behind a proxy; write its output to files."""
    os.environ.update(http_proxy="http://192.0.2.1:1", no_proxy="")
    tempfile.tempdir = folder
    files = Path(folder, "out").open("w", buffering=1), Path(folder, "error").open("w")  # noqa: SIM115
    with redirect_stdout(files[0]), redirect_stderr(files[1]):
        sys.exit(run(["serve", "--device", "cpu", "--allowed_hosts", "lab.example"]))


def test_command_serves_until_a_signal(tmp_path: Path) -> None:
    """The page works with a proxy in the environment and under an allowed name; uploads are removed at the end."""
    out = tmp_path / "out"
    process = CONTEXT.Process(target=serve, args=(str(tmp_path),))
    process.start()
    while process.is_alive() and not (out.exists() and "\n" in out.read_text()):
        time.sleep(0.05)
    try:
        line = out.read_text().splitlines()[0]
        address = re.fullmatch(r"demo: (http://127\.0\.0\.1:\d+/)", line)[1]  # type: ignore[index]
        for host, status in (("lab.example", 200), ("evil.example", 421)):
            answer = httpx.get(f"{address}config", headers={"Host": host}, trust_env=False, timeout=60)
            assert answer.status_code == status
        assert len(list(tmp_path.glob("vavae-serve-*"))) == 1
    finally:
        process.terminate()
        process.join(60)
    error = (tmp_path / "error").read_text()
    assert process.exitcode == 0, error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("vavae-serve-*"))


class Printed(io.StringIO):
    """Output of the command, which Ctrl-C ends half a second after it names its address."""

    def write(self, text: str) -> int:
        if "http://127.0.0.1:" in text:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        return super().write(text)


def test_command_of_the_readme_ends_by_ctrl_c(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes its own page only."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # the command sets them
    (line,) = re.findall(r"^vavae (serve.*?) +#", (Path(__file__).parents[2] / "README.md").read_text(), re.MULTILINE)
    with redirect_stdout(Printed()) as printed:
        assert run([*line.split(), "--port", str(unused_port())]) == 0
    address = re.findall(r"^demo: (http.*)$", printed.getvalue(), re.MULTILINE)[0]
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)
    assert httpx.get(f"{client.src}config", trust_env=False).status_code == 200
    assert not list(tmp_path.iterdir())


def test_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["serve", "--port", str(port), "--device", "cpu"]) == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere"),
        (["--compare", "/nowhere", "--device", "cpu"], "/nowhere"),
        (["--port", "70000"], "port must be from 1 to 65535, got 70000"),
        (["--host", "nowhere.invalid"], "host: 'nowhere.invalid' does not exist"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--device", "meta"], "got 'meta', which is not on this machine"),
    ],
)
def test_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run(["serve"]) == 2
    assert "vavae serve needs gradio: pip install 'vavae[serve]'" in capsys.readouterr().err


def luminance(color: str) -> float:
    """Return the relative luminance (WCAG 2) of a color such as #2563eb."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize(
    "name",
    [f"button_primary_background_fill{suffix}" for suffix in ("", "_hover", "_dark", "_hover_dark")] + ["color_accent"],
)
def test_contrast_of_white_letters(name: str) -> None:
    from vavae.serve.parts import theme

    ours = theme()
    assert ours.button_primary_text_color == ours.button_primary_text_color_dark == "white"
    color = getattr(ours, getattr(ours, name).removeprefix("*"))
    assert 1.05 / (luminance(color) + 0.05) >= 4.5


def test_text_is_in_the_file_of_the_page(tmp_path: Path) -> None:
    from gradio.processing_utils import save_pil_to_cache

    made = with_text(demo_pixels("test")[0], seed=5, name="Straße")
    with Image.open(save_pil_to_cache(made, str(tmp_path), format="png")) as image:
        assert json.loads(image.text["vavae"]) == {"seed": 5, "name": "Straße"}  # type: ignore[attr-defined]
