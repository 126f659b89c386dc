"""What the readers of storage files share: topics, messages, and the error of a bad file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

#: Topic name, receive time in ns, CDR bytes.
RawMessage = tuple[str, int, bytes]


@dataclass(frozen=True)
class Topic:
    """One topic of a log: name, type such as 'sensor_msgs/msg/Image', number of messages."""

    name: str
    type: str
    count: int


class StorageError(Exception):
    """A storage file is damaged, cut off, or no storage file."""


class StorageFile(Protocol):
    """One file of a log."""

    topics: Mapping[str, Topic]
    foreign: list[str]
    problem: str

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """Yield the messages of some topics in the order of time."""
        ...
