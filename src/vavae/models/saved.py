"""Base of tokenizers and generators: saved as folders, uploaded to the hub."""

import tempfile
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from vavae.checkpoints.folder import hold_in
from vavae.device import named_device
from vavae.errors import UserError, one_line


class SavedModel:
    """A model that `save_pretrained` writes as a folder.

    Attributes:
        provenance: Facts about the training, for the model card.
    """

    provenance: dict[str, Any]

    @property
    def _networks(self) -> tuple[nn.Module, ...]:
        """The networks, the main one first."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self._networks[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; the transformer's for a generator."""
        return next(self._networks[0].parameters()).dtype

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the networks to a device, convert their weights, or both: `to("cuda")`, `to(torch.bfloat16)`.

        Args:
            device: The device, or the type as the only argument.
            dtype: Type of weights and computation, as in `from_pretrained`. Back in float32, weights stay rounded.

        Raises:
            UserError: The device does not exist, the type is not one of weights, or a weight is too large for it.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        place = self.device if device is None else named_device(device)
        hold_in(dtype, *self._networks)
        for network in self._networks:
            network.to(place)
        return self

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `from_pretrained` reads."""
        raise NotImplementedError

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, commit_message: str | None = None
    ) -> str:
        """Upload the files of `save_pretrained` to a model repository, made if it is missing; return its address.

        Args:
            repo_id: `owner/name` of the repository.
            private: Whether a new repository is private.
            token: Token of the hub; None for the stored one.
            commit_message: Message of the commit; "Upload generator" or "Upload tokenizer" by default.

        Raises:
            UserError: The hub refuses.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        message = commit_message or f"Upload {type(self).__name__.lower()}"
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            try:
                api = HfApi(token=token)
                address = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
                api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, repo_type="model")
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                raise UserError(f"{repo_id}: the hub refuses ({one_line(error)[:200]})") from error
        return str(address)

    def _training(self) -> str:
        """Return the section of the model card on the training, empty if nothing is known."""
        facts = "".join(f"- {key}: {value}\n" for key, value in self.provenance.items())
        return f"\n## Training\n\n{facts}" if facts else ""
