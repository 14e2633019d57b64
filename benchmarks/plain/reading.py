"""Read latents like the published data set: each item opens its shard, and a loader collates items."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


class PerItemLatents(torch.utils.data.Dataset):
    """One file is opened per latent."""

    def __init__(self, folder: Path) -> None:
        self.items = []
        for path in sorted(folder.glob("*.safetensors")):
            if path.name.startswith("latents_rank"):
                with safe_open(path, "pt") as file:
                    count = file.get_slice("labels").get_shape()[0]
                self.items += [(path, index) for index in range(count)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path, local = self.items[index]
        with safe_open(path, "pt") as file:
            latent = file.get_slice("latents")[local : local + 1]
            label = file.get_slice("labels")[local : local + 1]
        return latent[0], label[0]
