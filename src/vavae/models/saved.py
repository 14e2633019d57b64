"""Base of tokenizers and generators: saved as folders with a model card, uploaded to the hub."""

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from vavae.checkpoints.folder import CARD, hold_in
from vavae.checkpoints.locations import hub_id
from vavae.checkpoints.registry import MODELS
from vavae.device import named_device
from vavae.errors import UserError, one_line
from vavae.io.files import parse_json

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

_ANY_SOURCE = "this folder or its hub id"


class SavedModel:
    """A model that `save_pretrained` writes as a folder.

    Attributes:
        provenance: Facts about the training, for the model card.
    """

    provenance: dict[str, Any]
    _pipeline_tag: ClassVar[str]  # the hub's name of the task

    @property
    def _tags(self) -> tuple[str, ...]:
        """Tags of the model card."""
        raise NotImplementedError

    @property
    def _networks(self) -> tuple[nn.Module, ...]:
        """The networks, the main one first."""
        raise NotImplementedError

    @property
    def _moved(self) -> tuple[nn.Module, ...]:
        """All that `to` moves: the networks, with parts that are not saved."""
        return self._networks

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
        for network in self._moved:
            if any(tensor.device != place for tensor in (*network.parameters(), *network.buffers())):
                network.to(place)
        return self

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `from_pretrained` reads."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return a hash of the model, in hexadecimal."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
        datasets: Sequence[str] = (),
        results: str | Path | None = None,
    ) -> str:
        """Upload the files of `save_pretrained` to a model repository, made if it is missing; return its address.

        Args:
            repo_id: `owner/name` of the repository.
            private: Whether a new repository is private.
            token: Token of the hub; None for the stored one.
            commit_message: Message of the commit; "Upload generator" or "Upload tokenizer" by default.
            license: As in `card`.
            datasets: As in `card`.
            results: As in `card`.

        Raises:
            UserError: The hub refuses; or see `card`.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        message = commit_message or f"Upload {type(self).__name__.lower()}"
        card = self.card(repo_id, license=license, datasets=datasets, results=results)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            card.save(Path(folder, CARD))
            try:
                api = HfApi(token=token)
                address = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
                api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, repo_type="model")
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                raise UserError(f"{repo_id}: the hub refuses ({one_line(error)[:200]})") from error
        return str(address)

    def card(
        self,
        repo_id: str | None = None,
        *,
        license: str | None = None,
        datasets: Sequence[str] = (),
        results: str | Path | None = None,
        library: str = "vavae",
    ) -> "ModelCard":
        """Return the model card: the hub's metadata, how to load the model, and facts about its training.

        Args:
            repo_id: The repository that the card is for.
            license: The hub's identifier of the license, such as "mit"; by default the one of a published model that
                was converted. A card without it states no license.
            datasets: Data sets of the training by their names on the hub; by default the known ones.
            results: JSON file of `vavae evaluate --output`, whose records of this model become evaluation results.
            library: The library that loads the model: "vavae" or "diffusers".

        Raises:
            UserError: `results` cannot be read, or has no record of this model.
        """
        from huggingface_hub import ModelCard, ModelCardData

        origins = [origin for part in self._parts() for origin in _origins(part.provenance)]
        known = next((model for model in MODELS if model.hub_id == self.provenance.get("converted_from")), None)
        measured = [] if results is None else self._measured(Path(results))
        data = ModelCardData(
            base_model=origins or None,
            datasets=list(datasets) or _datasets(part.provenance for part in self._parts()) or None,
            eval_results=measured or None,
            library_name=library,
            license=license or (known.license if known else None),
            model_name=(repo_id or type(self).__name__).rpartition("/")[2] if measured else None,
            pipeline_tag=self._pipeline_tag,
            tags=list(self._tags),
        )
        facts = "".join(f"- {key}: {value}\n" for key, value in self.provenance.items())
        text = self._description(repo_id or _ANY_SOURCE, library) + (f"\n## Training\n\n{facts}" if facts else "")
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")

    def _parts(self) -> "list[SavedModel]":
        """Return the model and the models in it."""
        return [self]

    def _description(self, source: str, library: str) -> str:
        """Return the card's title, and how to load the model from `source`."""
        raise NotImplementedError

    def _measured(self, results: Path) -> "list[EvalResult]":
        from huggingface_hub import EvalResult

        own = self.fingerprint()
        try:
            records = parse_json(results.read_text(encoding="utf-8"))
            found = [record for record in records if record["protocol"].get("checkpoint_hash") == own]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"results must be a file of 'vavae evaluate --output', got {results}") from error
        if not found:
            raise UserError(f"results must have records of this model (checkpoint_hash {own[:12]}…), got {results}")
        measured = []
        for record in found:
            protocol = {key: value for key, value in record["protocol"].items() if key != "checkpoint"}
            images = protocol.get("reference") or protocol.get("split") or "images"
            measured.append(
                EvalResult(
                    task_type=self._pipeline_tag,
                    dataset_type=_identifier(images),
                    dataset_name=images,
                    metric_type=_identifier(record["name"]),
                    metric_name=record["name"],
                    metric_value=record["value"],
                    metric_args=protocol,
                )
            )
        return measured


def _identifier(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _origins(provenance: dict[str, Any]) -> list[str]:
    """Return the repositories that a model was converted from or whose weights its training started from."""
    given = [provenance[key] for key in ("converted_from", "initial") if key in provenance]
    return [repository for source in given if (repository := hub_id(source))]


def _datasets(provenances: Iterable[dict[str, Any]]) -> list[str]:
    """Return the data sets on the hub that the facts about trainings name, each once."""
    found = [str(provenance["dataset"]) for provenance in provenances if "dataset" in provenance]
    return list(dict.fromkeys(found))
