"""Readers refuse damaged and hostile files in one line: the inputs by which benchmarks/fuzz.py reached new code."""

import zipfile
from pathlib import Path

import pytest

from fuzz_targets import CORPUS, TARGETS
from vavae.errors import RunError, UserError


@pytest.mark.parametrize("name", TARGETS)
def test_stored_inputs(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]()
    path = tmp_path / target.name
    for seed in target.seeds:  # a target that refuses good files would test nothing
        path.write_bytes(seed)
        target.read(path)
    with zipfile.ZipFile(CORPUS / f"{name}.zip") as stored:
        for member in stored.namelist():
            path.write_bytes(stored.read(member))
            try:
                target.read(path)
            except (UserError, RunError):
                pass
            except Exception as error:
                error.add_note(f"{name}.zip: {member}")
                raise
