"""Make real_inception.safetensors: real Inception features of embedded images, and their distance by numpy alone.

    python tests/metrics/make_real_inception.py

Prints the file's sha256, which test_real_inception.py holds.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vavae.data import DemoImages, load_pixels
from vavae.metrics import FIDInception

COUNT = 12


def distance_of_few(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of fewer samples than dimensions without any covariance, (n, d) and (m, d) float64.

    tr (C1 C2)^½ is the nuclear norm of X1 X2ᵀ / ((n - 1) (m - 1))^½, X centered.
    """
    x, y = a - a.mean(0), b - b.mean(0)
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum() / np.sqrt((len(x) - 1) * (len(y) - 1))
    spread = (x**2).sum() / (len(x) - 1) + (y**2).sum() / (len(y) - 1)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread - 2 * overlap)


def main() -> None:
    """Compute and write."""
    network = FIDInception.from_asset()
    features = {}
    with torch.inference_mode():
        for split in ("train", "test"):
            source = DemoImages("train" if split == "train" else "test")
            parts = [network(load_pixels(source, [i], 32)) for i in range(COUNT)]
            features[split] = torch.cat(parts)
    distance = distance_of_few(*(features[split].double().numpy() for split in ("train", "test")))
    path = Path(__file__).with_name("real_inception.safetensors")
    save_file({**features, "distance": torch.tensor(distance, dtype=torch.float64)}, path)
    print(distance, hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
