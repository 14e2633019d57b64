"""Hashes of texts, tensors and networks: names for what a result was computed from."""

import hashlib

import torch
from torch import Tensor, nn


def digest(*parts: object) -> str:
    """Return the sha256 of the text of `parts`, in hexadecimal."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's shape, type and values, in hexadecimal."""
    head = f"{tensor.dtype} {tuple(tensor.shape)}\n".encode()
    return hashlib.sha256(head + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def weights_fingerprint(network: nn.Module) -> str:
    """Return the sha256 of the names, shapes and values of all parameters and buffers, in hexadecimal."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
