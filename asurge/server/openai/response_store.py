"""Answers of ``/v1/responses`` that are kept for a while."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import msgspec
from aiohttp import web

from asurge.server.errors import ApiError
from asurge.server.keys import ApiKey
from asurge.server.schema.chat import Message
from asurge.server.schema.responses import Item

STORED_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """An answer that is kept, with the conversation up to and including it.

    Attributes:
        items: those of the answer, by their ids.
    """

    body: bytes
    conversation: tuple[Message, ...]
    items: Mapping[str, Item]
    size: int


class _Shelf:
    """One key's answers, the oldest first."""

    def __init__(self) -> None:
        self.kept: dict[str, Stored] = {}
        self.items: dict[str, Item] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self.kept)

    def put(self, name: str, stored: Stored) -> None:
        self.kept[name] = stored
        self.items |= stored.items
        self.size += stored.size

    def take(self, name: str) -> None:
        stored = self.kept.pop(name)
        self.size -= stored.size
        for item in stored.items:
            del self.items[item]


class ResponseStore:
    """The newest answers, bounded in number and bytes. Each key sees only its own, and when there is too much, the
    key that holds most loses some, so that nobody pushes out what others keep."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._shelves: dict[str, _Shelf] = {}

    def put(
        self, name: str, body: bytes, conversation: list[Message], owner: ApiKey, items: Sequence[Item] = ()
    ) -> None:
        known = {item.id: item for item in items if item.id is not None}
        size = len(body) + len(msgspec.json.encode(conversation)) + len(msgspec.json.encode(items))
        self._shelves.setdefault(owner.owner, _Shelf()).put(name, Stored(body, tuple(conversation), known, size))
        self._shrink(len, self._most)
        self._shrink(lambda shelf: shelf.size, STORED_BYTES)

    def get(self, name: str, owner: ApiKey) -> Stored:
        """Raises:
        ApiError: there is none, or it is another's.
        """
        shelf = self._shelves.get(owner.owner)
        if shelf is None or name not in shelf.kept:
            raise ApiError(
                "there is no such response: it was not stored, or has been forgotten", status=404, code="not_found"
            )
        return shelf.kept[name]

    def items(self, owner: ApiKey) -> Mapping[str, Item]:
        """All items of answers that are kept for a key, by their ids."""
        shelf = self._shelves.get(owner.owner)
        return {} if shelf is None else shelf.items

    def size(self, owner: ApiKey) -> int:
        """How many bytes are kept for a key."""
        shelf = self._shelves.get(owner.owner)
        return 0 if shelf is None else shelf.size

    def delete(self, name: str, owner: ApiKey) -> None:
        """Raises:
        ApiError: there is none, or it is another's.
        """
        self.get(name, owner)
        self._take(owner.owner, name)

    def _shrink(self, measure: Callable[[_Shelf], int], most: int) -> None:
        while sum(map(measure, self._shelves.values())) > most:
            owner = max(self._shelves, key=lambda one: measure(self._shelves[one]))
            self._take(owner, next(iter(self._shelves[owner].kept)))

    def _take(self, owner: str, name: str) -> None:
        self._shelves[owner].take(name)
        if not self._shelves[owner]:
            del self._shelves[owner]


STORE = web.AppKey("asurge.responses", ResponseStore)
