"""RAE's published files: shapes from names, weights loaded strictly, averages preferred."""

from pathlib import Path

import pytest
import torch

from vavae.checkpoints.loading import load_decoder, load_transformer
from vavae.cli import run
from vavae.errors import UserError
from vavae.tokenizer import ViTDecoder
from vavae.transformer import DiTDH

SHAPE = {"latent_size": 4, "latent_channels": 6, "num_classes": 3}
NETWORK = {"widths": (16, 24), "depths": (2, 1), "heads": (2, 3)}


def ditdh() -> DiTDH:
    torch.manual_seed(0)
    model = DiTDH(**SHAPE, **NETWORK)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


def test_transformer_of_a_training_checkpoint(tmp_path: Path) -> None:
    model = ditdh()
    plain = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    content = {"step": 5, "epoch": 1, "model": plain, "ema": model.state_dict(), "optimizer": {}, "scheduler": {}}
    torch.save(content, tmp_path / "stage2.pt")
    loaded = load_transformer(tmp_path / "stage2.pt")
    assert isinstance(loaded.model, DiTDH) and loaded.model.config == model.config
    x, t, y = torch.randn(2, 6, 4, 4), torch.tensor([0.2, 0.7]), torch.tensor([0, 3])
    with torch.no_grad():
        assert torch.equal(loaded.model(x, t, y), model(x, t, y))
    assert "DiTDH width 16 + 24, depth 2 + 1, 3 classes" in str(loaded.report) and "'ema'" in str(loaded.report)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = ditdh().state_dict()
    del state["s_projector.weight"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"missing s_projector\.weight"):
        load_transformer(tmp_path / "model.pt")


@pytest.mark.slow
def test_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ViTDecoder(6, 4, 2, width=768, depth=12, heads=12, mlp_width=32)
    whole = {f"decoder.{name}": value for name, value in model.state_dict().items()} | {"encoder.x": torch.zeros(1)}
    torch.save({"model": whole, "epoch": 3}, tmp_path / "training.pt")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for file in ("model.pt", "training.pt"):
        decoder, report = load_decoder(tmp_path / file)
        assert decoder.shape == model.shape and decoder.grid == (4, 4) and decoder.patch_size == 2
        assert all(torch.equal(value, decoder.state_dict()[name]) for name, value in model.state_dict().items())
        assert report.what.startswith("decoder of 6 channels, width 768")
    with pytest.raises(UserError, match="holds the decoder of a representation autoencoder, which needs its teacher"):
        load_transformer(tmp_path / "model.pt")


def test_heads_that_do_not_show_are_asked_for(tmp_path: Path) -> None:
    torch.save(ViTDecoder(6, 4, 2, width=16, depth=1, heads=2, mlp_width=8).state_dict(), tmp_path / "model.pt")
    with pytest.raises(UserError, match="pass heads: they do not show in a decoder of width 16 and depth 1"):
        load_decoder(tmp_path / "model.pt")
    assert load_decoder(tmp_path / "model.pt", heads=4)[0].shape["heads"] == 4


def test_convert_says_that_a_decoder_needs_its_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(ViTDecoder(6, 4, 2, width=16, depth=1, heads=2, mlp_width=8).state_dict(), tmp_path / "model.pt")
    assert run(["convert", str(tmp_path / "model.pt"), str(tmp_path / "out"), "--scaling_factor=1"]) == 2
    assert "the decoder of a representation autoencoder: pass its teacher" in capsys.readouterr().err
