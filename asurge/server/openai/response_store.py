"""Store of the answers of ``/v1/responses``, which are kept for a while."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from asurge.server.errors import ApiError
from asurge.server.keys import ApiKey
from asurge.server.schema.chat import Message
from asurge.server.schema.responses import Item

STORED_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class StoredResponse:
    """An answer that is kept, with the conversation up to and including it.

    Attributes:
        items: those of the answer, by their ids.
        given: the items that the request itself had, as they are listed.
    """

    body: bytes
    conversation: tuple[Message, ...]
    items: Mapping[str, Item]
    given: tuple[dict[str, Any], ...]
    size: int


class _Shelf:
    """Stored answers of a key, the oldest first."""

    def __init__(self) -> None:
        self.kept: dict[str, StoredResponse] = {}
        self.items: dict[str, Item] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self.kept)

    def put(self, name: str, stored: StoredResponse) -> None:
        self.kept[name] = stored
        self.items |= stored.items
        self.size += stored.size

    def take(self, name: str) -> None:
        stored = self.kept.pop(name)
        self.size -= stored.size
        for item in stored.items:
            del self.items[item]


class ResponseStore:
    """The newest responses, bounded in number and bytes.

    Each key sees only its own, and when there is too much, the key that holds most loses some, so that nobody pushes out what
    others keep.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._shelves: dict[str, _Shelf] = {}

    def put(
        self,
        name: str,
        body: bytes,
        conversation: list[Message],
        owner: ApiKey,
        items: Sequence[Item] = (),
        given: Sequence[dict[str, Any]] = (),
    ) -> None:
        known = {item.id: item for item in items if item.id is not None}
        size = len(body) + sum(len(msgspec.json.encode(part)) for part in (conversation, items, given))
        stored = StoredResponse(body, tuple(conversation), known, tuple(given), size)
        self._shelves.setdefault(owner.owner, _Shelf()).put(name, stored)
        self._shrink(len, self._most)
        self._shrink(lambda shelf: shelf.size, STORED_BYTES)

    def get(self, name: str, owner: ApiKey) -> StoredResponse:
        """Return a stored response.

        Raises:
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
        """Bytes stored for a key."""
        shelf = self._shelves.get(owner.owner)
        return 0 if shelf is None else shelf.size

    def delete(self, name: str, owner: ApiKey) -> None:
        """Delete a stored response.

        Raises:
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


_PAGE, _MOST_PER_PAGE = 20, 100


def page_of(items: Sequence[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of items that have ids, as OpenAI's lists have them: ``limit``, ``after`` an id, ``order``, the newest first.

    Args:
        items: the oldest first.

    Raises:
        ApiError: a parameter is wrong.
    """
    order, limit, after = query.get("order", "desc"), query.get("limit", str(_PAGE)), query.get("after")
    if order not in ("asc", "desc"):
        raise ApiError(f"order={order[:20]!r} must be asc or desc", param="order")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= _MOST_PER_PAGE):
        raise ApiError(f"limit={limit[:20]!r} must be in [1, {_MOST_PER_PAGE}]", param="limit")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        at = next((at for at, item in enumerate(ordered) if item["id"] == after), None)
        if at is None:
            raise ApiError(f"after={after[:100]!r} is not among the items: use the id of one", param="after")
        ordered = ordered[at + 1 :]
    page = ordered[: int(limit)]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"data": page, "first_id": first, "last_id": last, "has_more": len(page) < len(ordered)}


STORE = web.AppKey("asurge.responses", ResponseStore)
