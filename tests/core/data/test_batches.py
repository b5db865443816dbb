"""The order of training: every row once an epoch, decided by the seed alone, resumable at any step."""

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pefttool.api.errors import DataError
from pefttool.api.task import Task
from pefttool.api.values import Row, Setting
from pefttool.data.batches import Batches, Position, by_length
from pefttool.data.encoding import Telling, encode

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=120)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 5), st.integers(0, 3), st.integers(0, 4))
def test_every_row_occurs_once_an_epoch(lengths, batch_size, micro_batches, seed, epoch):
    batches = Batches(tuple(lengths), batch_size, micro_batches, seed)
    steps = batches.epoch(epoch)
    assert sorted(i for step in steps for batch in step for i in batch) == list(range(len(lengths)))
    assert len(steps) == batches.steps_per_epoch
    assert all(len(batch) <= batch_size for step in steps for batch in step)
    assert all(len(step) <= micro_batches for step in steps)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 5), st.integers(0, 40))
def test_going_on_from_a_position_gives_the_same_steps(lengths, batch_size, micro_batches, k):
    batches = Batches(tuple(lengths), batch_size, micro_batches, 7)
    whole = list(islice(batches.steps(), k + 10))
    position = whole[k - 1][0] if k else Position()
    assert list(islice(batches.steps(position), 10)) == whole[k:]


def test_epochs_and_seeds_differ():
    lengths = tuple(range(1, 101))
    assert Batches(lengths, 8, 1, 0).epoch(0) != Batches(lengths, 8, 1, 0).epoch(1)
    assert Batches(lengths, 8, 1, 0).epoch(0) != Batches(lengths, 8, 1, 1).epoch(0)


def test_batches_hold_rows_of_similar_length():
    lengths = tuple((i * 37) % 400 + 1 for i in range(400))
    padded = sum(
        max(lengths[i] for i in batch) * len(batch) for step in Batches(lengths, 8, 1, 0).epoch(0) for batch in step
    )
    assert padded < 1.1 * sum(lengths)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"), [(3.0, None, 39), (0.5, None, 6), (0.001, None, 1), (3.0, 7, 7)]
)
def test_total_steps(epochs, max_steps, expected):
    assert Batches((1,) * 100, 8, 1, 0).total_steps(epochs, max_steps) == expected


def test_by_length_starts_with_the_longest():
    assert by_length([3, 9, 1, 5], 2) == [[1, 3], [0, 2]]


class Words:
    """One unit of loss a word; `!` marks a row that the task finds wrong once encoded."""

    untrained = Task.untrained

    def encode(self, row, processor, setting):
        n = len(row.values["text"].split())
        return {"weight": n, "length": n + 1, "trained": n, "truncated": n > 3, "text": row.values["text"]}

    def check_encoded(self, example, processor):
        return "it shouts" if "!" in example["text"] else None


def rows(*texts):
    return [Row({"text": t}, "a.jsonl", i) for i, t in enumerate(texts, 1)]


def test_rows_without_loss_are_dropped_and_reported():
    encoded = encode(rows("a b", "", "c d e f"), Words(), None, Setting(None))
    assert [e["length"] for e in encoded.examples] == [3, 5]
    assert [r.line for r in encoded.rows] == [1, 3]
    assert [r.place for r in encoded.dropped] == ["a.jsonl:2"]
    assert (encoded.tokens, encoded.trained, encoded.truncated) == (8, 6, 1)


def test_zero_trained_tokens_are_refused():
    with pytest.raises(DataError, match=r"none of the 2 rows has a trained token.*a\.jsonl:1.*train\.sequence_length"):
        encode(rows("", ""), Words(), None, Setting(None))


def test_a_row_that_is_wrong_once_encoded_is_named():
    with pytest.raises(DataError, match=r"a\.jsonl:2: it shouts"):
        encode(rows("a", "b!"), Words(), None, Setting(None))


@given(LENGTHS, st.integers(300, 900), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_batches_are_filled_up_to_their_tokens_and_never_beyond(lengths, tokens, micro_batches, seed, packed):
    batches = Batches(tuple(lengths), 8, micro_batches, seed, tokens, packed)
    steps = batches.epoch(1)
    filled = [batch for step in steps for batch in step]
    assert sorted(i for batch in filled for i in batch) == list(range(len(lengths)))
    costs = [[lengths[i] for i in batch] for batch in filled]
    assert all((sum(c) if packed else max(c) * len(c)) <= tokens for c in costs)
    if packed:  # the next row would not have fitted; the order of batches is that of the rows
        assert all(sum(a) + b[0] > tokens for a, b in pairwise(costs))


@given(LENGTHS, st.integers(300, 900), st.integers(1, 4), st.integers(1, 3))
def test_the_steps_of_batches_filled_by_tokens_are_counted(lengths, tokens, micro_batches, epochs):
    batches = Batches(tuple(lengths), 8, micro_batches, 0, tokens, packed=True)
    total = batches.total_steps(float(epochs), None)
    assert total == sum(len(batches.epoch(e)) for e in range(epochs))
    position, _ = list(islice(batches.steps(), total))[-1]
    assert position in (Position(epochs, 0), Position(epochs - 1, len(batches.epoch(epochs - 1))))


def test_packed_batches_are_not_sorted():
    lengths = tuple((i * 37) % 400 + 1 for i in range(64))
    order = [i for step in Batches(lengths, 8, 1, 0, packed=True).epoch(0) for batch in step for i in batch]
    assert len(order) == 64 and [lengths[i] for i in order[:16]] != sorted(lengths[i] for i in order[:16])


def test_rows_that_cannot_be_encoded_are_told_and_left_out_where_that_is_allowed():
    class Picky:
        def encode(self, row, processor, setting):
            if row.values["n"] % 2:
                raise DataError(f"{row.place}: an odd one")
            return {"length": 1, "trained": 1, "weight": 1, "truncated": False}

        def check_encoded(self, example, processor):
            return None

    rows = [Row({"n": n}, "d.jsonl", n + 1) for n in range(5)]
    told = []
    found = encode(
        rows, Picky(), None, Setting(None), Telling(bad_rows=lambda problems, good: told.append((problems, good)))
    )
    assert [row.line for row in found.rows] == [1, 3, 5] and len(found.examples) == 3
    ((problems, good),) = told
    assert [str(problem) for problem in problems] == ["d.jsonl:2: an odd one", "d.jsonl:4: an odd one"] and good == 3
    with pytest.raises(DataError, match=r"d\.jsonl:2: an odd one"):
        encode(rows, Picky(), None, Setting(None))


def test_where_no_row_can_be_encoded_the_first_is_named():
    told = []
    with pytest.raises(DataError, match=r"none of the 2 rows can be used; mend them, the first: a\.jsonl:1: it shouts"):
        encode(
            rows("a!", "b!"), Words(), None, Setting(None), Telling(bad_rows=lambda problems, good: told.append(good))
        )
    assert told == [0]
