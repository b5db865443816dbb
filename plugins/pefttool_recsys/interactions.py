"""Logs of who took what and when as one row a user: RecBole's .inter, MovieLens' u.data, CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from pefttool import DataError, DataFormat, DataProblem, Options, Row
from pefttool.toolkit import text_files, timestamps
from pefttool.toolkit.columns import describe
from pefttool.toolkit.csv_dialect import separator_of

USER = ("user_id", "user", "userid", "uid", "customer_id", "customer")
ITEM = ("item_id", "item", "itemid", "iid", "movie_id", "movieid", "product_id", "product")
TIMESTAMP = ("timestamp", "time", "ts", "datetime", "date")
RATING = ("rating", "score", "stars")
#: What a column of times may be called besides: the order of the lines is not taken for time beside such a one.
TIMELY = re.compile(r"time|date|(^|[\W_])(dat|ts|at|when)($|[\W_])", re.IGNORECASE)
#: Columns of a file without a header line, as MovieLens orders them.
BARE = ("user_id", "item_id", "rating", "timestamp")
#: Without names three columns end in a time, and numbers no larger than this may as well be ratings.
LARGEST_RATING = 100.0
OPTIONS = "-o data.format_options"
#: Of a file that is recognised without being asked for; CSV with such columns is read on request.
SUFFIXES, BARE_SUFFIXES = (".inter",), (".data", ".dat")


class InteractionsOptions(Options):
    user_column: str | None = Field(None, description=f"default: the first of {', '.join(USER)}")
    item_column: str | None = Field(None, description=f"default: the first of {', '.join(ITEM)}")
    timestamp_column: str | None = Field(
        TIMESTAMP[0],
        description=f"numbers or ISO dates that order a user's items; default: the first of {', '.join(TIMESTAMP)};"
        " null, or where no column may be it: the order of the lines",
    )
    rating_column: str | None = Field(
        None,
        description=f"default: the first of {', '.join(RATING)}, if there is one; `rating`: what the third of three"
        " columns without names is",
    )
    min_rating: float | None = Field(None, description="leave out interactions with a lower rating")
    delimiter: str | None = Field(
        None, min_length=1, description="between columns; default: whichever of tab, ::, comma and ; the first line has"
    )


@dataclass
class _User:
    """A user's interactions, as (time, item, rating, values of other columns); `line` is that of the first."""

    line: int
    taken: list[tuple[float, str, float | None, list[str]]] = field(default_factory=list)


class Interactions(DataFormat):
    """A log of interactions, grouped to users in the order of their first line, each user's items in order of time."""

    name = "interactions"
    Options = InteractionsOptions
    on_request = (".csv", ".tsv")

    def sniff(self, path: Path) -> str | None:
        suffix = path.suffix.lower()
        if suffix not in (*SUFFIXES, *BARE_SUFFIXES):
            return None
        first = next((text for _, text, problem in _lines(path) if problem is None and text.strip()), "")
        names = [_name(cell) for cell in _cells(first, _delimiter(first))]
        if suffix in SUFFIXES:
            return f"suffix {suffix}" if len(names) > 1 else None
        bare = len(names) in (3, 4) and all(map(_is_number, names))
        return f"suffix {suffix}, {len(names)} numbers in a line" if bare else None

    def read(self, path: Path, options: InteractionsOptions) -> Iterator[Row | DataProblem]:
        users: dict[str, _User] = {}
        problems: list[DataProblem] = []
        table: _Table | None = None
        for number, text, problem in _lines(path):
            if problem is not None:
                if table is None:
                    raise DataError(str(problem))
                problems.append(problem)
            elif text.strip():
                if table is None:
                    table = _Table.of(path, number, text, options)
                    if not table.bare:
                        continue
                complaint = table.take(number, text, users, options.min_rating)
                if complaint is not None:
                    problems.append(DataProblem(str(path), number, complaint))
        records: list[Row | DataProblem] = list(problems)
        if table is not None:
            table.require_times(path, users.values())
            records += [_row(name, user, table, str(path)) for name, user in users.items() if user.taken]
        yield from sorted(records, key=lambda record: record.line)


@dataclass(frozen=True)
class _Table:
    """Where the columns of a file are: places in a line, by what they hold; `bare` files have no header line.

    others   columns that are none of these, by their names: nothing is made of them, which is told
    """

    delimiter: str
    width: int
    bare: bool
    others: Mapping[str, int]
    user: int
    item: int
    timestamp: int | None
    rating: int | None

    @classmethod
    def of(cls, path: Path, line: int, text: str, options: InteractionsOptions) -> _Table:
        """From the first line of the file. Raises DataError where a column that is needed is not there."""
        delimiter = options.delimiter or _delimiter(text)
        names = [_name(cell) for cell in _cells(text, delimiter)]
        bare = len(names) in (3, 4) and all(map(_is_number, names))
        if bare:
            third = BARE[2:3] if options.rating_column == BARE[2] else BARE[3:]
            names = [*BARE[:2], *(third if len(names) == 3 else BARE[2:])]

        def find(option: str, usual: Sequence[str], needed: bool) -> int | None:
            asked = getattr(options, option)
            asked = None if asked == usual[0] else asked
            lowered = [name.lower() for name in names]
            if asked is not None and asked in names:
                return names.index(asked)
            found = next((lowered.index(name) for name in usual if name in lowered), None) if asked is None else None
            if found is None and (needed or asked is not None):
                expected = repr(asked) if asked is not None else f"one of {', '.join(usual)}"
                raise DataError(
                    f"{path}:{line}: found columns {', '.join(map(repr, names))}, expected {expected} (name yours with"
                    f" -o data.format=interactions {OPTIONS}.{option}=COLUMN)"
                )
            return found

        user, item = find("user_column", USER, True), find("item_column", ITEM, True)
        timestamp = None if options.timestamp_column is None else find("timestamp_column", TIMESTAMP, False)
        rating = find("rating_column", RATING, False)
        others = {name: i for i, name in enumerate(names) if name and i not in (user, item, timestamp, rating)}
        timely = next((name for name in others if TIMELY.search(name)), None)
        if timestamp is None and options.timestamp_column is not None and timely is not None:
            raise DataError(
                f"{path}:{line}: found column {timely!r}, expected to know whether it orders a user's items: name it"
                f" with {OPTIONS}.timestamp_column={timely}, or have the order of the lines be it with"
                f" {OPTIONS}.timestamp_column=null"
            )
        if options.min_rating is not None and rating is None:
            raise DataError(f"{path}:{line}: min_rating needs a column with ratings: name it with rating_column")
        assert user is not None and item is not None
        return cls(delimiter, len(names), bare, others, user, item, timestamp, rating)

    def require_times(self, path: Path, users: Iterable[_User]) -> None:
        """Raises DataError where the last of three columns without names may as well be ratings: they order nothing."""
        if not self.bare or self.rating is not None or self.width != len(BARE) - 1:
            return
        times = [one[0] for user in users for one in user.taken]
        if times and max(times) <= LARGEST_RATING:
            raise DataError(
                f"{path}: found up to {max(times):g} in the third of three columns without names, expected to know"
                f" whether it is a time or a rating: write a first line of names ({', '.join(BARE[:2])}, {BARE[3]}), or"
                f" have it be a rating with {OPTIONS}.rating_column={BARE[2]}"
            )

    def take(self, line: int, text: str, users: dict[str, _User], least: float | None) -> str | None:
        """Add the interaction in this line to its user's; or what is wrong with it."""
        cells = _cells(text, self.delimiter)
        if len(cells) != self.width:
            return f"found {len(cells)} values, expected {self.width}"
        user, item = cells[self.user], cells[self.item]
        if not user or not item:
            return f"found no {'user' if not user else 'item'}, expected one in every line"
        time = float(line) if self.timestamp is None else timestamps.seconds(cells[self.timestamp])
        if time is None:
            return f"found time {describe(cells[self.timestamp or 0])}, {timestamps.EXPECTED}"
        rating = None if self.rating is None else timestamps.number(cells[self.rating])
        if self.rating is not None and rating is None:
            return f"found rating {describe(cells[self.rating])}, expected a number"
        held = users.setdefault(user, _User(line))
        if least is None or (rating is not None and rating >= least):
            held.taken.append((time, item, rating, [cells[i] for i in self.others.values()]))
        return None


def _row(name: str, user: _User, table: _Table, file: str) -> Row:
    taken = sorted(user.taken, key=lambda one: one[0])  # what has one time stays in the order of the lines
    values: dict[str, Any] = {"user": name, "items": [item for _, item, *_ in taken]}
    if table.timestamp is not None:
        values["timestamps"] = [time for time, *_ in taken]
    if table.rating is not None:
        values["ratings"] = [rating for _, _, rating, _ in taken]
    for i, other in enumerate(table.others):
        values.setdefault(other, [others[i] for *_, others in taken])
    return Row(values, file, user.line)


def _lines(path: Path) -> Iterator[tuple[int, str, DataProblem | None]]:
    """(number, text, problem) without the ends of the lines; a first line `sep=;` is blank."""
    for number, text, problem in text_files.lines(path):
        said = separator_of(text) if number == 1 else None
        yield number, "" if said is not None else text.rstrip("\r\n"), problem


def _delimiter(text: str) -> str:
    return next((one for one in ("\t", "::", ",", ";") if one in text), "\t")


def _cells(text: str, delimiter: str) -> list[str]:
    if '"' in text and len(delimiter) == 1 and delimiter != '"':
        try:
            return [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter, strict=True))]
        except (csv.Error, StopIteration):
            pass  # then the quotes are part of the values
    return [cell.strip() for cell in text.split(delimiter)]


def _name(cell: str) -> str:
    """`user_id` of RecBole's `user_id:token`."""
    return cell.partition(":")[0].strip()


def _is_number(text: str) -> bool:
    return timestamps.number(text) is not None
