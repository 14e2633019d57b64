"""The commands on a device without float64, as Apple's GPUs are, beside the same commands on the CPU.

The device is a stand-in (`standin_device.py`), in a process of its own; it also finds what mixes devices, which a
CPU's tests cannot. No kernel of a GPU is run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from vavae.data import open_images
from vavae.evaluation.compare import read_records

STANDIN = Path(__file__).parents[1] / "support" / "standin_device.py"
pytestmark = pytest.mark.slow
DEVICES = ("cpu", "standin")
# Of the processes: no other accelerator beside the stand-in.
ALONE = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
NETWORK = "teacher:dinov2-small-focus@28"


def _commands(images: Path, out: Path, device: str) -> list[list[str]]:
    data = ["--data.images", str(images), "--data.size", "32", "--data.workers", "0"]
    training = ["--training.device", device, "--training.batch_size", "8", "--training.precision", "fp32"]
    tokenizer = str(out / "tokenizer/tokenizer")
    # Not by the transformer of four steps, which has hardly left zero.
    sampling = ["--device", device, "--guidance_scale", "2"]
    measuring = ["--device", device, "--network", NETWORK, *data]
    return [
        [
            "train-tokenizer", "--output", str(out / "tokenizer"), *data, *training, "--training.images", "24",
            "--tokenizer.latent_channels", "4", "--tokenizer.base_channels", "32", "--tokenizer.blocks_per_level", "1",
            "--tokenizer.channel_multipliers", "[1,2]", "--tokenizer.attention_levels", "[]",
            "--teacher.name", "dinov2-small-focus", "--teacher.input_size", "28", "--teacher.cache_features", "true",
            "--objective.adversarial.start_images", "8", "--objective.adversarial.discriminator.layers", "2",
            "--objective.adversarial.discriminator.base_channels", "8", "--training.preview_images", "16",
        ],
        ["encode", "--device", device, *data, "--tokenizer", tokenizer, "--output", str(out / "latents")],
        [
            "train-dit", "--output", str(out / "generator"), "--latents", str(out / "latents"),
            "--tokenizer", tokenizer, *training, "--training.images", "32", "--training.log_images", "16",
            "--transformer.size", "S/2", "--transformer.width", "32", "--transformer.depth", "2",
            "--transformer.heads", "2",
        ],
        ["sample", *sampling, "--count", "2", "--steps", "4", "--output", str(out / "euler")],
        ["sample", *sampling, "--count", "1", "--solver", "dopri5", "--output", str(out / "dopri5")],
        ["evaluate", "tokenizer", tokenizer, *measuring, "--output", str(out / "tokenizer.json")],
        [
            "evaluate", "generator", "demo", *measuring, "--count", "16", "--steps", "3",
            "--output", str(out / "generator.json"),
        ],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what all commands wrote on either device."""
    folder = tmp_path_factory.mktemp("standin")
    images = folder / "images"
    for split, count in (("train", 40), ("test", 24)):
        source = open_images("demo", split)
        for index in range(count):
            label = images / split / source.class_names[source.label(index)]
            label.mkdir(parents=True, exist_ok=True)
            source.image(index).save(label / f"{index:03d}.png")
    lines = [json.dumps(line) for device in DEVICES for line in _commands(images, folder / device, device)]
    ended = subprocess.run(
        [sys.executable, STANDIN], input="\n".join(lines), env=ALONE, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


@pytest.mark.parametrize("model", ["tokenizer/tokenizer", "generator/generator"])
def test_training_ends_with_the_weights_of_the_cpu(runs: Path, model: str) -> None:
    here, there = (load_file(runs / device / model / "model.safetensors") for device in DEVICES)
    assert here.keys() == there.keys()
    error = sum(float((here[name] - there[name]).double().square().sum()) for name in here)
    assert error < 1e-8 * sum(float(value.double().square().sum()) for value in here.values())


def test_lines_of_the_log_are_those_of_the_cpu(runs: Path) -> None:
    here, there = (
        [json.loads(line) for line in (runs / device / "generator/metrics.jsonl").read_text().splitlines()]
        for device in DEVICES
    )
    assert [line["images"] for line in there] == [line["images"] for line in here] == [16, 32]
    np.testing.assert_allclose([line["total"] for line in there], [line["total"] for line in here], rtol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "dopri5"])
def test_samples_are_those_of_the_cpu(runs: Path, solver: str) -> None:
    names = sorted(path.name for path in (runs / "cpu" / solver).glob("0*.png"))
    assert names
    for name in names:
        here, there = (np.asarray(Image.open(runs / device / solver / name)).astype(int) for device in DEVICES)
        assert np.abs(here - there).max() <= 2 and here.std() > 20, name


@pytest.mark.parametrize("what", ["tokenizer", "generator"])
def test_numbers_are_those_of_the_cpu(runs: Path, what: str) -> None:
    here, there = (
        {
            (record.name, record.protocol.convention): record.value
            for record in read_records(runs / device / f"{what}.json")
        }
        for device in DEVICES
    )
    assert here.keys() == there.keys() and len(here) >= 4
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=0.02, abs=1e-6), name


def test_a_stopped_run_goes_on_as_if_it_had_not_been_and_batches_are_halved(tmp_path: Path) -> None:
    """Stopped within a line of the log, so that its sums, float64, are put back too."""
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(STANDIN.parent / "training")!r})
from regression_task import Regression
from vavae.training.trainer import Engine, EngineConfig

class OnDevice(Regression):
    def __init__(self, stop_at=None, fits=8):
        super().__init__()
        self.stop_at, self.fits = stop_at, fits
        for module in self.modules.values():
            module.to("standin")
    def batches(self, start, order):
        return ((position, x.to("standin")) for position, x in super().batches(start, order))

config = EngineConfig(images=160, batch_size=8, device="standin", log_images=40, ema_decay=0.9, tensorboard=False)
def run(folder, stop_at=None, fits=8):
    try:
        Engine(OnDevice(stop_at, fits), config, Path({str(tmp_path)!r}) / folder).run("run")
    except KeyboardInterrupt:
        assert stop_at is not None

run("whole")
run("parts", 104)
run("parts")
run("halved", fits=4)
"""
    _printed(script)
    whole, parts = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts"))
    assert whole == parts and len(whole.splitlines()) == 4
    assert json.loads((tmp_path / "halved/micro_batch.json").read_text()) == {"micro_batch": 4}


def _printed(script: str) -> list[str]:
    """The lines that a program writes which has the device."""
    program = [sys.executable, "-c", "import standin_device, torch\n" + script]
    ended = subprocess.run(program, cwd=STANDIN.parent, env=ALONE, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_the_stand_in_refuses_what_such_a_gpu_refuses() -> None:
    script = """
x = torch.ones(3).to("standin")
print((x + 1).cpu().tolist(), float(x.sum()), x.device.type)
for refused in (
    lambda: x.double(),
    lambda: torch.zeros(2, dtype=torch.float64, device="standin"),
    lambda: x + torch.ones(3),
    lambda: torch.nn.functional.linear(x, torch.ones(2, 3)),
    lambda: torch.linalg.eigvals(torch.eye(2).to("standin")),
    lambda: torch.inference_mode()(torch.linalg.matrix_rank)(torch.eye(2).to("standin")),
    lambda: x.to("cpu", torch.float64),
    lambda: torch.ones(3)[torch.tensor([0, 1]).to("standin")],
    lambda: x.index_select(0, torch.tensor([0, 1])),
    lambda: x.numpy(),
    lambda: torch.ones(3).to("standin", non_blocking=True),
    lambda: x.to("cpu", non_blocking=True),
    lambda: torch.full((2,), 2**60).to("standin"),
    lambda: torch.arange(2).to("standin") * 2**60,
):
    try:
        print(refused())
    except (TypeError, RuntimeError) as error:
        print(type(error).__name__)
"""
    done, *refused = _printed(script)
    assert done == "[2.0, 2.0, 2.0] 3.0 standin"
    kinds = "Type Type Runtime Runtime NotImplemented Type Type Runtime Runtime Runtime Runtime Runtime Type Type"
    assert refused == [f"{kind}Error" for kind in kinds.split()]


def test_the_accelerator_of_a_machine_is_named() -> None:
    script = """
from vavae.errors import UserError
from vavae.commands import doctor
from vavae.training.parallel import processes
from vavae.device import resolve_device
print(resolve_device("auto"), resolve_device("standin"))
for device in ("mps", "standin:1"):
    try:
        resolve_device(device)
    except UserError as error:
        print(error)
newest = torch.__version__
torch.__version__ = torch.torch_version.TorchVersion("2.12.1")
try:
    resolve_device("standin")
except UserError as error:
    print(error)
torch.__version__ = newest
for device in ("auto", "standin"):
    print(dict(doctor.findings(doctor.Config(device)))["device"])
import os
os.environ.update(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")
try:
    with processes("standin"):
        print("joined")
except UserError as error:
    print(error)
"""
    assert _printed(script) == [
        "cpu standin",
        "device: 'mps' is not on this machine; use auto, cpu or standin",
        "device: 'standin:1' is not on this machine; use auto, cpu or standin",
        "device: 'standin' needs torch 2.13 or newer; this is 2.12.1",
        "CPU (threads: 1); --device standin takes the GPU",
        "STANDIN",
        "device: several processes train on CPUs or NVIDIA GPUs, not on standin",
    ]
