"""Every `vavae` command in README, docs and recipes has options and recipes that exist, and every link a target."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from vavae.cli import run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
RECIPES = sorted((ROOT / "src/vavae/recipes").glob("**/*.yaml"))


# Launchers of several processes.
LAUNCHER = re.compile(r"(torchrun .*--no-python\s+vavae|sbatch examples/slurm\.sh) ")


def commands(text: str) -> list[str]:
    """Return the `vavae …` commands in shell blocks, also those behind torchrun and SLURM, continued lines joined."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [LAUNCHER.sub("vavae ", line.strip().removeprefix("$ ")) for line in lines]
    return [line for line in lines if line.startswith("vavae ")]


def headed_commands(path: Path) -> list[str]:
    """Return the `vavae …` commands in the comment at the top of a recipe, continued lines joined."""
    comment = "\n".join(line[1:] for line in path.read_text().splitlines() if line.startswith("#"))
    head = comment.replace("\\\n", " ").splitlines()
    named = r"\s*(Run:|Measure:)?\s*"
    return [re.sub(f"^{named}", "", line) for line in head if re.match(rf"{named}vavae \S", line)]


ALL = [(page.name, line) for page in PAGES for line in commands(page.read_text())] + [
    (path.name, line) for path in RECIPES for line in headed_commands(path)
]


def test_there_are_commands_to_check() -> None:
    assert len([line for page, line in ALL if page == "README.md"]) >= 8


@pytest.mark.parametrize(("page", "line"), ALL)
def test_command_resolves(
    page: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parse the command line and its recipe without running the command."""
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(line, comments=True)[1:]
    asks = any(a in ("--help", "--version", "--print_config") for a in arguments)
    code = run(arguments if asks else [*arguments, "--print_config"])
    assert code == 0, capsys.readouterr().err


def test_readme_holds_out_the_same_images_everywhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next command would train on the test images, or measure on training images."""
    monkeypatch.chdir(ROOT)
    lines = [line for page, line in ALL if page == "README.md" and "--data.images my-images" in line]
    assert [line.split()[1] for line in lines] == ["train-tokenizer", "encode", "evaluate"]
    for line in lines:
        assert run([*shlex.split(line)[1:], "--print_config"]) == 0
        assert "holdout: 0.1\n" in capsys.readouterr().out, line


def test_kubernetes_job_resolves(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, job = yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    command = container["command"]
    monkeypatch.chdir(ROOT)
    assert run([*command[command.index("vavae") + 1 :], "--print_config"]) == 0, capsys.readouterr().err


def test_example_jobs_leave_time_to_save() -> None:
    """torchrun must kill its processes before the cluster does, and 30 s after SIGTERM is too early."""
    slurm = (ROOT / "examples" / "slurm.sh").read_text()
    given = int(re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", slurm, re.MULTILINE)[0])
    assert 30 < int(re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", slurm)[0]) < given
    assert "export VAVAE_CACHE" in slurm
    _, job = yaml.safe_load_all((ROOT / "examples" / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert 30 < int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(Path(environment["VAVAE_CACHE"]).parent) in mounts


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("https://", "mailto:")):
            assert (page.parent / target).exists(), target
