"""Base of tokenizers and generators: saved as folders, uploaded to the hub."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from vavae.errors import UserError, one_line


class SavedModel:
    """A model that `save_pretrained` writes as a folder.

    Attributes:
        provenance: Facts about the training, for the model card.
    """

    provenance: dict[str, Any]

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
