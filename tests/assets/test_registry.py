"""The table of assets: pinned hashes, converters, near-miss names."""

import re

import pytest

from vavae.assets import ASSETS, get_asset
from vavae.assets.convert import CONVERTERS
from vavae.errors import UserError


def test_assets_have_pinned_hashes_and_converters() -> None:
    names = [asset.name for asset in ASSETS]
    assert len(set(names)) == len(names)
    for asset in ASSETS:
        assert asset.converter in CONVERTERS
        assert asset.license
        assert asset.size_bytes > 0
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in asset.sha256)
        for source in asset.sources:
            assert len(asset.sha256) in (1, len(source.members))


def test_fine_tuned_backbone_is_described_as_such() -> None:
    assert "saliency" in get_asset("dinov2-small-focus").description


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown asset 'lpips-vgg'; did you mean 'lpips-vgg16'\?"):
        get_asset("lpips-vgg")
