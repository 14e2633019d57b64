import re

import pytest

from vavae.assets import ASSETS, get_asset
from vavae.assets.convert import CONVERTERS
from vavae.errors import UserError


def test_every_asset_is_pinned_and_has_a_converter() -> None:
    names = [asset.name for asset in ASSETS]
    assert len(set(names)) == len(names)
    for asset in ASSETS:
        assert asset.converter in CONVERTERS
        assert asset.licence
        assert asset.size_bytes > 0
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in asset.sha256)
        for source in asset.sources:
            assert len(asset.sha256) in (1, len(source.members))


def test_the_fine_tuned_backbone_says_so() -> None:
    assert "saliency" in get_asset("dinov2-small-focus").description


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown asset 'lpips-vgg'; did you mean 'lpips-vgg16'\?"):
        get_asset("lpips-vgg")
