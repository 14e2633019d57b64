"""Samples of tar shards: find the image and the label among neighboring members of one name."""

from typing import IO, NamedTuple

from vavae.data.labels import IMAGE_NAMES, class_number
from vavae.errors import UserError, one_line
from vavae.io.files import parse_json

# Bytes of a member that are read for a label.
_LONGEST = 2**24


class Entry(NamedTuple):
    """An image of a shard: name, offset and size of its member, its label or None, and why it cannot be read."""

    name: str
    offset: int
    size: int
    label: int | None = None
    error: str | None = None


class Label(NamedTuple):
    """A label of a sample: its rank (the lowest counts), its origin, the class number, and its member."""

    rank: int
    source: str
    number: int
    member: str


class Sample:
    """The members of one sample, in the order of the shard."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.images: list[tuple[str, Entry]] = []  # with the extensions
        self.labels: list[Label] = []
        self._address = address
        self._extensions: set[str] = set()

    def add(self, extension: str) -> None:
        """Record the extension of a member.

        Raises:
            UserError: The sample has such a member already.
        """
        if extension in self._extensions:
            raise UserError(f"images: {self._address} holds {self.name}.{extension} twice in one sample")
        self._extensions.add(extension)

    def image(self) -> Entry | None:
        """Return the sample's image, or None.

        Raises:
            UserError: There are several, and their names do not say which it is.
        """
        plain = [entry for extension, entry in self.images if "." not in extension]
        named = [entry for extension, entry in self.images if set(extension.split(".")) & set(IMAGE_NAMES)]
        entries = plain or named or [entry for _, entry in self.images]
        if len(entries) > 1 and not plain:
            raise UserError(
                f"images: {self._address}: {entries[0].name} and {entries[1].name} are one sample, since a sample's "
                "name ends at its first dot, and nothing says which is its image: replace the other dots, call the "
                "image NAME.png, NAME.jpg, …, or name its part of the ending (data.image_column)"
            )
        return entries[0] if entries else None

    def label(self) -> Label | None:
        """Return the sample's label, or None.

        Raises:
            UserError: Two members of the same rank give different ones.
        """
        first = min(self.labels, default=None)
        for other in self.labels:
            if first is not None and other.rank == first.rank and other.number != first.number:
                raise UserError(
                    f"images: {self._address}: {first.member} gives the label {first.number} and {other.member} gives "
                    f"{other.number}: name the one that counts (data.label_column)"
                )
        return first


def read_label(content: IO[bytes], extension: str, names: tuple[str, ...], member: str, address: str) -> Label | None:
    """Return the label that a member holds under one of `names`, or None.

    `extension` is in lower case, such as "label.cls"; `member` and `address` (of the shard) are named in errors.

    Raises:
        UserError: The member is a label by its name, or its JSON has one, but it is not a class number.
    """
    parts = extension.split(".")
    by_name, is_json = any(name.lower() in parts for name in names), parts[-1] == "json"
    if not names or not (by_name or is_json):
        return None
    source, rank = f".{extension}", 2 if is_json else int(len(parts) > 1)
    text = content.read(_LONGEST + 1)
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"is too long for a label (more than {_LONGEST:,} bytes)")
        value = parse_json(text.decode("utf-8-sig")) if is_json else text.decode("utf-8-sig", "replace")
        if isinstance(value, dict):
            keys = {key.lower(): key for key in value}
            key = next((keys[name.lower()] for name in names if name.lower() in keys), None)
            if key is None:
                return None
            source, value = f"{key} in .json", value[key]
        elif not by_name:
            raise ValueError("must hold an object with a label")
        return Label(rank, source, class_number(value), member)
    except ValueError as error:  # of JSON and of UTF-8 too
        remedy = "data.label_column none takes no labels"
        raise UserError(f"images: {address}: {member}: {one_line(error)[:200]} ({remedy})") from error
