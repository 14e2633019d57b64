"""LightningDiT: construction, initialization, labels, grids, precision."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.grids import patchify, unpatchify
from vavae.transformer import LightningDiT, LightningDiTConfig, size_names
from vavae.transformer.layers import RMSNorm, time_features
from vavae.transformer.positions import tables_of_grid

TINY = {"latent_size": 4, "latent_channels": 3, "width": 32, "depth": 2, "heads": 2, "num_classes": 5}
SWITCHES = [
    {},
    {"qk_norm": True},
    {"qk_norm": True, "rmsnorm": False},
    {"adaln_shift": False},
    {"swiglu": False, "rope": False, "rmsnorm": False},
    {"patch_size": 2, "learn_sigma": True},
]


def tiny(seed: int = 0, **changes: object) -> LightningDiT:
    """Return a small network in which no parameter is zero, so that every one matters."""
    torch.manual_seed(seed)
    model = LightningDiT(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs(batch: int = 2, height: int = 4, width: int = 4, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, height, width, generator=generator)
    t = torch.rand(batch, generator=generator)
    return x, t, torch.randint(0, 5, (batch,), generator=generator)


# Construction


def test_config_and_keyword_arguments_agree() -> None:
    config = LightningDiTConfig(**TINY)
    assert LightningDiT(**TINY).config == config == LightningDiT(config).config
    assert LightningDiT(config, depth=1).config == dataclasses.replace(config, depth=1)
    with pytest.raises(TypeError, match="widht"):
        LightningDiT(widht=32)


def test_config_rebuilds_the_network() -> None:
    model = tiny(latent_size=(4, 8), positions="interpolate", **SWITCHES[1])
    again = LightningDiT(model.config)
    again.load_state_dict(model.state_dict(), strict=True)
    x, t, y = inputs(width=8)
    assert torch.equal(again.eval()(x, t, y), model(x, t, y))


def test_sizes() -> None:
    assert len(size_names()) == 12
    config = LightningDiTConfig.from_size("S/2", num_classes=7)
    assert (config.depth, config.width, config.heads, config.patch_size) == (12, 384, 6, 2)
    assert config.num_classes == 7
    assert LightningDiTConfig.from_size("XL/1") == LightningDiTConfig()
    assert LightningDiTConfig.from_size("LightningDiT-B/1") == LightningDiTConfig.from_size("B/1")
    assert LightningDiT.from_size("S/1", depth=1, latent_size=4).config.depth == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_size": 3}, "latent_size"),
        ({"latent_size": (4, 5), "patch_size": 2}, "latent_size"),
        ({"latent_size": (4, 4, 4)}, "latent_size"),
        ({"heads": 3}, "heads"),
        ({"width": 30}, "width"),
        ({"width": 24, "heads": 4}, "rope"),
        ({"depth": 0}, "depth"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"num_classes": -1}, "num_classes"),
        ({"label_dropout": 1.5}, "label_dropout"),
        ({"positions": "extrapolate"}, "positions"),
    ],
)
def test_bad_values_are_named(changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=f"^{named} must "):
        LightningDiT(**{**TINY, **changes})


def test_unknown_sizes_and_options_are_named() -> None:
    with pytest.raises(UserError, match="XXL/1"):
        LightningDiT.from_size("XXL/1")
    with pytest.raises(UserError, match="use_rope"):
        LightningDiT.from_size("S/1", use_rope=True)


def test_wrong_inputs_are_refused() -> None:
    _, t, y = inputs()
    with pytest.raises(UserError, match=r"^x must have shape \(B, 3, h, w\), got \(2, 4, 4, 4\)"):
        tiny()(torch.zeros(2, 4, 4, 4), t, y)
    with pytest.raises(UserError, match=r"^x must have sides that are multiples of 2"):
        tiny(patch_size=2)(torch.zeros(2, 3, 4, 5), t, y)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("t", torch.rand(1)),  # torch would broadcast one value over the batch
        ("t", torch.rand(2, 1)),
        ("t", 0.5),
        ("y", torch.tensor([1])),
        ("y", [1, 2]),
        ("y", torch.tensor([1.0, 2.0])),
        ("y", torch.tensor([True, False])),
        ("label_drop", torch.tensor([True])),
    ],
)
def test_conditions_of_wrong_shape_are_refused(name: str, value: object) -> None:
    x, t, y = inputs()
    with pytest.raises(UserError, match=f"^{name} must "):
        tiny()(**{"x": x, "t": t, "y": y, name: value})


def test_labels_of_any_integer_type() -> None:
    x, t, y = inputs()
    model = tiny()
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(model(x, t, y.to(dtype)), model(x, t, y))


def test_published_initialization() -> None:
    torch.manual_seed(0)
    model = LightningDiT(**{**TINY, "width": 128, "num_classes": 500})
    x, t, y = inputs()
    assert torch.equal(model(x, t, y), torch.zeros(2, 3, 4, 4))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "adaLN" in name or name == "final_layer.linear.weight":
            assert not parameter.any(), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.startswith(("t_embedder", "y_embedder")):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            fan_out, fan_in = parameter.shape[0], parameter[0].numel()
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.97 * bound < parameter.abs().max() <= bound, name


def test_reset_parameters_fills_a_meta_network() -> None:
    with torch.device("meta"):
        model = LightningDiT(**TINY, qk_norm=True)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan"))
    torch.manual_seed(3)
    model.reset_parameters()
    torch.manual_seed(3)
    expected = LightningDiT(**TINY, qk_norm=True).state_dict()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    for name in ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"):
        assert torch.equal(model.state_dict()[name], expected[name])


# Parts


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    h=st.integers(1, 4),
    w=st.integers(1, 4),
    patch=st.integers(1, 3),
)
def test_unpatchify_undoes_patchify(batch: int, channels: int, h: int, w: int, patch: int) -> None:
    shape = (batch, channels, h * patch, w * patch)
    images = torch.arange(batch * channels * h * w * patch**2, dtype=torch.float32).view(shape)
    patches = patchify(images, patch)
    assert patches.shape == (batch, h * w, patch**2 * channels)
    assert torch.equal(unpatchify(patches, patch, (h, w)), images)
    first = patches[0, 0].view(patch, patch, channels)  # row, column, channel
    assert torch.equal(first.permute(2, 0, 1), images[0, :, :patch, :patch])


def test_patch_embedding_is_the_convolution() -> None:
    embedder = tiny(patch_size=2).x_embedder
    x, _, _ = inputs(height=6, width=4)
    expected = embedder.proj(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedder(x), expected)


def test_time_features() -> None:
    features = time_features(torch.tensor([0.3]))
    assert features.shape == (1, 256)
    assert features[0, 0].item() == pytest.approx(0.9553365)
    assert features[0, 128].item() == pytest.approx(0.2955202)


def test_rmsnorm_rounds_before_the_weight() -> None:
    norm = RMSNorm(64)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = 300 * torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), (exact * norm.weight).float(), rtol=1e-6, atol=1e-6)
    half = x.bfloat16()
    exact = half.double() / (half.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    rounded = exact.float().bfloat16() * norm.weight
    assert (norm(half) == rounded).float().mean() > 0.99  # float32 may round a few differently
    torch.testing.assert_close(norm(half), rounded, rtol=1e-2, atol=0)


# Labels


def test_explicit_mask_replaces_labels_in_both_modes() -> None:
    model = tiny(label_dropout=0.5)
    x, t, y = inputs(batch=4)
    mask = torch.tensor([True, False, True, False])
    with torch.no_grad():
        expected = model(x, t, torch.where(mask, 5, y))
        assert torch.equal(model(x, t, y, label_drop=mask), expected)
        assert torch.equal(model.train()(x, t, y, label_drop=mask), expected)


def test_labels_are_dropped_in_training_only() -> None:
    embedder = tiny(label_dropout=0.25).y_embedder
    labels = torch.zeros(4000, dtype=torch.long)
    null = embedder.embedding_table.weight[5]
    assert not (embedder(labels, None) == null).all(dim=1).any()
    torch.manual_seed(0)
    dropped = (embedder.train()(labels, None) == null).all(dim=1).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.03)


def test_no_classes_leaves_one_label() -> None:
    model = tiny(num_classes=0)
    x, t, _ = inputs()
    labels = torch.zeros(2, dtype=torch.long)
    assert torch.equal(model(x, t, labels), model(x, t, labels, label_drop=torch.ones(2, dtype=torch.bool)))


# Grids


@pytest.mark.parametrize("positions", ["recompute", "interpolate"])
@pytest.mark.parametrize("switches", SWITCHES)
def test_any_grid(switches: dict, positions: str) -> None:
    model = tiny(positions=positions, **switches)
    for height, width in [(4, 4), (8, 4), (2, 6)]:
        x, t, y = inputs(height=height, width=width)
        assert model(x, t, y).shape == x.shape


def test_another_grid_equals_network_built_for_it() -> None:
    """With "recompute", only the buffers depend on the trained grid."""
    square, wide = tiny(), tiny(latent_size=(4, 8))
    x, t, y = inputs(width=8)
    torch.testing.assert_close(square(x, t, y), wide(x, t, y), rtol=0, atol=0)
    stretched = tiny(positions="interpolate")
    assert not torch.allclose(stretched(x, t, y), wide(x, t, y))


def test_trained_grid_uses_the_loaded_buffers() -> None:
    model = tiny()
    x, t, y = inputs()
    before = model(x, t, y)
    with torch.no_grad():
        model.pos_embed.add_(1)
    assert not torch.allclose(model(x, t, y), before)


def test_tables_made_in_inference_mode_serve_training() -> None:
    model = tiny()
    x, t, y = inputs(height=7, width=5)
    with torch.inference_mode():
        model(x, t, y)
    model.train()(x, t, y).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_tables_of_another_grid_are_cached() -> None:
    model = tiny()
    x, t, y = inputs(height=11, width=3)
    model(x, t, y)
    before = tables_of_grid.cache_info()
    model(x, t, y)
    after = tables_of_grid.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


def test_rows_and_columns_have_different_positions() -> None:
    model = tiny()
    x, t, y = inputs()
    assert not torch.allclose(model(x.transpose(2, 3), t, y), model(x, t, y).transpose(2, 3), atol=1e-3)


# Precision, batches, memory


def test_sample_does_not_depend_on_its_batch() -> None:
    model = tiny()
    x, t, y = inputs(batch=5)
    whole = model(x, t, y)
    for i in range(5):
        torch.testing.assert_close(model(x[i : i + 1], t[i : i + 1], y[i : i + 1])[0], whole[i])


@pytest.mark.parametrize("switches", SWITCHES)
def test_autocast_keeps_norms_and_residual_in_float32(switches: dict) -> None:
    model = tiny(**switches)
    x, t, y = inputs()
    dtypes: dict[str, torch.dtype] = {}
    for name in ("norm1", "norm2", "attn"):
        module = getattr(model.blocks[1], name)
        module.register_forward_hook(lambda _m, _i, out, name=name: dtypes.update({name: out.dtype}))
    model.blocks[1].register_forward_hook(lambda _m, _i, out: dtypes.update({"residual": out.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x, t, y)
    assert dtypes == {
        "norm1": torch.float32,
        "norm2": torch.float32,
        "attn": torch.bfloat16,
        "residual": torch.float32,
    }
    full = model(x, t, y)
    assert (low.float() - full).norm() < 0.02 * full.norm()


def test_float64_is_float64_throughout() -> None:
    model = tiny(**SWITCHES[1])
    x, t, y = inputs(height=8)
    exact = copy.deepcopy(model).double()(x.double(), t.double(), y)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(model(x, t, y).double(), exact, rtol=1e-4, atol=1e-5)
