"""The model in the package and its studio."""

import pytest

from vavae.models import Generator
from vavae.serve.studio import Studio


@pytest.fixture(scope="session")
def generator() -> Generator:
    return Generator.from_pretrained("demo")


@pytest.fixture(scope="session")
def studio(generator: Generator) -> Studio:
    return Studio(generator.tokenizer, generator)
