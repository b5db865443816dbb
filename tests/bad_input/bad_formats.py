"""Data that is wrong in the ways of one kind of data: tags, passages, pictures, recordings, series, logs, pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bad_data import MEND, NONE, Write, lines, of
from bad_entry import Entry


def _conll() -> Iterator[Entry]:
    bad = of("token-classification", ".conll")
    good = "Ada B-person\nlives O\n\n"
    yield bad("empty", "", "bad.conll", "no usable row")
    yield bad("words alone", good + "in\nRome\n", "bad.conll:4", "found 1 columns", "expected 2", *MEND)
    yield bad("a column too many", good + "in X O\n", "bad.conll:4", "found 3 columns", "expected 2", *MEND)
    yield bad("an empty column", "Ada\tB-person\nin\t\n", "bad.conll:2", "empty column", "expected 2", "mend it")
    yield bad("one column all through", "Ada\nlives\n", "bad.conll:1", "found 1 columns", "a word and its tag")
    yield bad("Latin-1", good.encode() + b"caf\xe9 O\n", "bad.conll:4", "0xe9", *MEND)
    bioes = "Ada S-person\nin O\n\nRome B-place\nRome E-place\n"
    yield bad("another scheme", bioes, "bad.conll:1", "'S-person'", "task.scheme=plain")
    bio = ("-o", "task.scheme=bio")
    yield bad("a tag of no scheme", good + "in ADP\n", "bad.conll:4", "'ADP'", "B-type or I-type", *MEND, more=bio)
    yield bad("one sentence", good, "no rows are left", "give more rows")
    yield bad("no entity", "a O\n\nb O\n\nc O\n", "token-classification", "expected at least 2")


def _squad() -> Iterator[Entry]:
    bad = of("question-answering", ".json", "--format", "squad", area="squad")

    def file(context: Any = "Ada came.", **more: Any) -> str:
        question = {"id": "q", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}], **more}
        return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [question]}]}]})

    yield bad("truncated", file()[:-20], "bad.json:1", "expected one JSON object")
    yield bad("a list", "[]", "'data'", "expected a list, as in SQuAD")
    yield bad("no data", '{"version": "2"}', "'data'", "None", "as in SQuAD")
    yield bad("data of texts", '{"data": ["x"]}', "'paragraphs'", "as in SQuAD")
    yield bad("no questions", '{"data": [{"paragraphs": [{"context": "x"}]}]}', "'qas'", "as in SQuAD")
    yield bad("a question that is a text", '{"data": [{"paragraphs": [{"context": "x", "qas": ["?"]}]}]}', "bad.json:1")
    yield bad("a context that is a number", file(5), "bad.json:1", "'context' is 5", "expected text")
    yield bad("no question", file(question=None), "bad.json:1", "'question' is None", "expected text")
    yield bad("an answer elsewhere", file(answers=[{"text": "Ada", "answer_start": 4}]), "bad.json:1", "does not match")
    yield bad("an answer before the text", file(answers=[{"text": "Ada", "answer_start": -3}]), "bad.json:1", "-3")
    yield bad("a place in words", file(answers=[{"text": "Ada", "answer_start": "0"}]), "bad.json:1", "answer_start")
    yield bad("answers by name", file(answers={"text": ["Ada"]}), "bad.json:1", "'answers'", "a list of objects")
    yield bad("a key twice", file().replace('"id"', '"question"', 1), "'question' occurs twice", "bad.json")


def _picture(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    from PIL import Image

    Image.new(mode, size).save(path)


def _coco() -> Iterator[Entry]:
    bad = of("object-detection", ".json", "--format", "coco", area="coco")

    def file(box: Any = (1, 1, 4, 4), picture: str = "a.png", **more: Any) -> Write:
        document = {
            "images": [{"id": i, "file_name": picture if i else "a.png"} for i in range(3)],
            "annotations": [{"id": 9, "image_id": 1, "category_id": 7, "bbox": box, **more.pop("annotation", {})}],
            "categories": [{"id": 7, "name": "cat"}],
            **more,
        }

        def write(path: Path) -> None:
            _picture(path.with_name("a.png"))
            path.with_name("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
            path.write_text(json.dumps(document))

        return write

    other = {"annotation": {"category_id": 8}}
    yield bad("truncated", '{"images": [', "bad.json", "expected a COCO file")
    yield bad("a list", "[]", "no JSON object", "'images'", "a list of objects")
    yield bad("no annotations", file(annotations=None), "'annotations'", "a list of objects")
    yield bad(
        "a category twice", file(categories=[{"id": 7, "name": n} for n in "ab"]), "id 7 occurs twice", "give each"
    )
    yield bad("a category without a name", file(categories=[{"id": 7}]), "category number 1", "'id' and 'name'")
    yield bad("a box of three", file([1, 1, 4]), "bad.json:2", "annotation id 9", "four numbers", *MEND)
    yield bad("a box of words", file(["a", 1, 4, 4]), "bad.json:2", "annotation id 9", "four numbers", *MEND)
    yield bad("a box below nothing", file([1, 1, -4, 4]), "bad.json:2", "above 0", *MEND)
    yield bad("a box of no numbers", file([1, 1, float("nan"), 4]), "bad.json:2", "annotation id 9", *MEND)
    yield bad("a box outside", file([100, 100, 4, 4]), "bad.json:2", "picture", *MEND)
    yield bad("an unknown category", file(**other), "bad.json:2", "category_id 8", "'categories'", *MEND)
    yield bad("an unknown picture", file(annotation={"image_id": 5}), "image_id 5", "'images'", *MEND)
    yield bad("a missing picture", file(picture="b.png"), "bad.json:2", "no file 'b.png'", *MEND)
    yield bad("a broken picture", file(picture="broken.png"), "bad.json:2", "broken.png", *MEND)
    yield bad("pictures of one id", file(images=[{"id": 0, "file_name": "a.png"}] * 2), "bad.json:2", "id of its own")
    yield bad("a picture without a name", file(images=[{"id": 1}]), "bad.json:1", "file_name", "expected a path")


def _images() -> Iterator[Entry]:
    bad = of("image-classification", ".png", area="images")
    claims_much = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0\2\0\0" * 2 + b"\x08\x02\0\0\0"
    yield bad("empty", b"", "bad.png", "it is empty")
    yield bad("text", "no picture", "bad.png", "expected a picture")
    yield bad("its beginning", b"\x89PNG\r\n\x1a\n", "bad.png", "expected a picture")
    yield bad("a size of gigabytes", claims_much, "bad.png", "expected a picture")
    yield bad("16 bits", lambda path: _picture(path, mode="I;16"), "bad.png", "8 bits a channel", "convert it")

    def cut(path: Path) -> None:
        _picture(path, (64, 64))
        path.write_bytes(path.read_bytes()[:-40])

    yield bad("truncated", cut, "bad.png", "expected a picture")

    def one_class(path: Path) -> None:
        (path / "cats").mkdir(parents=True)
        for name in "abc":
            _picture(path / "cats" / f"{name}.png")

    yield of("image-classification", "", area="images")("one class", one_class, "(cats)", "folder of its own")
    rows = of("image-classification", ".jsonl", area="images")
    yield rows("a missing picture", lines({"image": "no.png", "label": "a"}), "bad.jsonl:1", "no.png", *MEND)
    yield rows("no picture", lines({"image": 5, "label": "a"}), "bad.jsonl:1", "found 5", *MEND)


def _recordings() -> Iterator[Entry]:
    bad = of("speech-recognition", ".jsonl", area="speech")

    def heard(name: str, content: bytes | None, *words: str, text: Any = "one", audio: Any = "a.wav") -> Entry:
        def write(path: Path) -> None:
            if content is not None:
                path.with_name("a.wav").write_bytes(content)
            path.write_text(lines({"audio": audio, "text": text}))

        return bad(name, write, "bad.jsonl:1", *words, *MEND)

    header = b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x80>\0\0\0}\0\0\2\0\x10\0data\0\0\0\0"
    yield heard("missing", None, "a.wav")
    yield heard("empty", b"", "a.wav")
    yield heard("text", b"this is no recording", "a.wav", "libsndfile")
    yield heard("its beginning", header[:20], "a.wav")
    yield heard("no samples", header, "a.wav")
    yield heard("no name", header, "found 5", "the path of a recording", audio=5)
    yield heard("no words", header, "what is said", text="")
    spoken = of("speech-recognition", ".trans.txt", area="transcripts")
    yield spoken("no recordings", "a-1 GO\na-2 DO\n", ".trans.txt:1", "no recording 'a-1'", "mend it")
    yield spoken("a name alone", "a-1\n", ".trans.txt:1", "found 'a-1' alone", "mend it")
    yield spoken("Latin-1", b"a-1 caf\xe9\n", ".trans.txt:1", "0xe9", "mend it")
    yield spoken("empty", "", ".trans.txt", "no usable row")


def _series() -> Iterator[Entry]:
    long = of("series-classification", ".csv", "--format", "series-long", area="series-long")
    head = "id,time,load,label\na,1,0.5,ok\n"
    yield long("words", head + "a,2,high,ok\n", "bad.csv:3", "'load'", "found 'high'", "a number", *MEND)
    yield long("a value too many", head + "a,2,1,ok,5\n", "bad.csv:3", "found 5 values, expected 4", *MEND)
    yield long("times that go back", head + "a,0,1,ok\n", "bad.csv:3", "'0' after '1'", "times that increase", *MEND)
    yield long("a time twice", head + "a,1,1,ok\n", "bad.csv:3", "'1' after '1'", "times that increase", *MEND)
    yield long("two classes", head + "a,2,1,worn\n", "bad.csv:3", "'worn'", "'ok' as in line 2", *MEND)
    yield long("no values", "id,time,label\na,1,ok\n", "bad.csv:1", "one with values")
    yield long("a column twice", "id,id\na,b\n", "bad.csv:1", "'id'")
    named = ("--format", "series-long", "-o", "data.format_options.value_columns=[heat]")
    yield long("a column that is not there", head, "bad.csv:1", "expected 'heat'", more=named)
    yield long("empty", "", "bad.csv", "no usable row")
    wide = of("series-classification", ".csv", "--format", "series-wide", area="series-wide")
    head = "id,t0,t1,label\nx,1,2,ok\n"
    yield wide("words", head + "y,1,two,ok\n", "bad.csv:3", "'t1'", "found 'two'", "a number", *MEND)
    yield wide("a gap at the end of the line", head + "y,1\n", "bad.csv:3", "found 2 values, expected 4", *MEND)
    yield wide("no number at all", head + "y,,,ok\n", "bad.csv:3", "expected at least one number", *MEND)
    yield wide("infinity", head + "y,1,inf,ok\n", "bad.csv:3", *MEND)
    patterns = ("--format", "series-wide", "-o", "data.format_options.value_columns=v*")
    yield wide("no such columns", head, "bad.csv:1", "value_columns='v*'", more=patterns)
    yield wide("one class", head + "y,3,4,ok\nz,1,2,ok\n", "1 class (ok)", "expected at least 2")
    ts = of("series-classification", ".ts")
    head = "@univariate true\n@classLabel true up down\n@data\n1,2:up\n"
    yield ts("video", b"G@\x00\x10" + bytes(200), "bad.ts", "no format recognises it", "data.format=NAME")
    asked = ("--format", "ts")
    yield ts("no data", "@univariate true\n", "bad.ts", "no line @data", more=asked)
    yield ts("values before the head ends", "1,2:up\n@data\n", "bad.ts:1", "starts with @", more=asked)
    yield ts("a switch in words", "@univariate maybe\n@data\n", "bad.ts:1", "'maybe'", "true or false")
    yield ts("a class of its own", head + "1,2:left\n", "bad.ts:5", "class 'left'", "up, down", *MEND)
    yield ts("no class", head + "1,2\n", "bad.ts:5", "expected values, a colon and the class", *MEND)
    yield ts("a dimension too many", head + "1,2:3,4:up\n", "bad.ts:5", "found 2 dimensions, expected 1", *MEND)
    yield ts("words", head + "1,two:up\n", "bad.ts:5", "two", "expected numbers and commas", *MEND)
    yield ts("a length in words", "@serieslength long\n@equallength true\n@data\n", "bad.ts:1", "'long'")
    rows = of("series-forecasting", ".jsonl", area="series")
    column = "bad.jsonl:1"
    yield rows("words", lines({"series": ["a"]}), column, "found 'a'", "expected a number", *MEND)
    yield rows("numbers beside lists", lines({"series": [1, [2]]}), column, "numbers beside lists", *MEND)
    yield rows("channels of two lengths", lines({"series": [[1, 2], [1]]}), column, "expected one length", *MEND)
    yield rows("no series", lines({"values_": [1]}), column, "found columns 'values_'", *MEND)
    yield rows("an empty series", lines({"series": []}), column, "found []", *MEND)
    yield rows("gaps alone", lines({"series": [None, None]}), column, "at least one number", *MEND)
    yield rows("beyond float32", lines({"series": [1e300] * 99}), column, "float32 holds", *MEND)
    yield rows("too short", lines({"series": [1.0, 2.0]}), "expected at least", "forecast 24")


def _logs() -> Iterator[Entry]:
    bad = of("next-item", ".inter", area="interactions")
    head = "user_id:token\titem_id:token\ttimestamp:float\n7\ta\t3\n"
    yield bad("empty", "", "bad.inter", "no format recognises it", "data.format=NAME")
    asked = ("--format", "interactions")
    yield bad("nothing", "", "bad.inter", "no usable row", more=asked)
    yield bad("other columns", "who\twhat\n1\t2\n", "bad.inter:1", "user_id", "user_column=COLUMN")
    yield bad("a value too few", head + "7\tb\n", "bad.inter:3", "found 2 values, expected 3", *MEND)
    yield bad("a time in words", head + "7\tb\tnoon\n", "bad.inter:3", "'noon'", "an ISO date", *MEND)
    yield bad("no user", head + "\tb\t4\n", "bad.inter:3", "found no user", *MEND)
    yield bad("no item", head + "7\t\t4\n", "bad.inter:3", "found no item", *MEND)
    yield bad("Latin-1", head.encode() + b"7\tcaf\xe9\t4\n", "bad.inter:3", "0xe9", *MEND)
    rated = ("--format", "interactions", "-o", "data.format_options.min_rating=3")
    yield bad("no ratings", head, "bad.inter:1", "min_rating", "rating_column", more=rated)
    rating = "user\titem\trating\n1\ta\tgood\n"
    yield bad("a rating in words", rating, "bad.inter:2", "'good'", "expected a number")
    rows = of("next-item", ".jsonl", area="items")
    yield rows("no items", lines({"user": 1}), "bad.jsonl:1", "found columns 'user'", "items_column=COLUMN", *MEND)
    yield rows("items in words", lines({"items": "a b"}), "bad.jsonl:1", "found 'a b'", "a list of items", *MEND)
    yield rows("an item that is a list", lines({"items": [["a"]]}), "bad.jsonl:1", "a list of items", *MEND)
    table = of("tabular-classification", ".csv", area="table")
    yield table("no class", "a,b\n1,2\n3,4\n", "bad.csv:2", "found columns 'a', 'b'", "label_column=COLUMN", *NONE)
    yield table("one column", "a,class\n1,x\n2,y\n", "bad.csv:2", "expected at least two", *NONE)
    yield table("an empty class", "a,b,class\n1,2,x\n3,4,\n", "bad.csv:3", "'class'", *MEND)
    yield table("one class", "a,b,class\n1,2,x\n3,4,x\n5,6,x\n", "expected at least 2")


def _pairs() -> Iterator[Entry]:
    bad = of("seq2seq", ".en", "--format", "parallel-text", area="parallel")

    def sides(**texts: str | bytes) -> Write:
        def write(path: Path) -> None:
            for language, text in texts.items():
                content = text if isinstance(text, bytes) else text.encode()
                path.with_suffix(f".{language}").write_bytes(content)

        return write

    yield bad("one side", sides(en="one\ntwo\n"), "bad.en", "beside it", "there is none")
    yield bad("three sides", sides(en="a\n", es="b\n", de="c\n"), "bad.en", "bad.de, bad.es", "one other language")
    yield bad("other counts", sides(en="a\nb\n", es="c\n"), "bad.en has 2 lines", "bad.es has 1", "align them again")
    yield bad("an empty line", sides(en="a\nb\n", es="c\n\n"), "bad.en:2", "bad.es:2", "empty line", *MEND)
    yield bad("Latin-1", sides(en="a\nb\n", es=b"c\ncaf\xe9\n"), "bad.en:2", "0xe9", *MEND)
    rows = of("seq2seq", ".jsonl", area="pairs")
    yield rows("no target", lines({"source": "a"}), "bad.jsonl:1", "'source' and 'target'", *MEND)
    yield rows("a target of numbers", lines({"source": "a", "target": 5}), "bad.jsonl:1", "found 5", *MEND)
    yield rows("one language", lines({"translation": {"en": "a"}}), "bad.jsonl:1", "found languages 'en'", *MEND)
    yield rows("an empty source", lines({"source": " ", "target": "b"}), "bad.jsonl:1", "found ' '", *MEND)
    labels = of("text-classification", ".jsonl", area="labels")
    one_class = lines(*({"text": text, "label": "a"} for text in "xyz"))
    yield labels("one class", one_class, "text-classification", "expected at least 2")


def _conversations() -> Iterator[Entry]:
    rows = of("chat", ".jsonl", area="chat")

    def turns(name: str, messages: Any, *words: str) -> Entry:
        return rows(name, lines({"messages": messages}), "bad.jsonl:1", "expected", *words, *MEND)

    def said(*roles: str) -> list[dict[str, str]]:
        return [{"role": role, "content": "x"} for role in roles]

    yield turns("no messages", [], "column 'messages': found []")
    yield turns("messages in words", "hello", "column 'messages': found 'hello'")
    yield turns("a role", said("user", "robot"), "message 2", "found role 'robot'")
    yield turns("no content", [{"role": "user"}, *said("assistant")], "message 1", "found content None")
    yield turns("content of parts", [{"role": "user", "content": [{"type": "image"}]}], "message 1", "expected text")
    yield turns("a turn that is a text", [*said("user"), "hello"], "message 2", "found 'hello'")
    yield turns("two users in a row", said("user", "user", "assistant"), "found two user messages in a row")
    yield turns("the assistant first", said("assistant", "user"), "the user to speak first")
    yield turns("no answer", said("user"), "ends with the user")
    yield turns("a system message in the middle", said("user", "system", "assistant"), "found a system message")
    yield turns("empty answers", [*said("user"), {"role": "assistant", "content": " "}], "only empty assistant")
    yield rows("a prompt of numbers", lines({"prompt": 5, "completion": "x"}), "bad.jsonl:1", "found 5", *MEND)
    yield rows("a prompt alone", lines({"prompt": "x"}), "bad.jsonl:1", "found columns 'prompt'", *MEND)
    prefer = of("preference", ".jsonl", area="preference")

    def preferred(name: str, row: Any, *words: str) -> Entry:
        return prefer(name, lines(row), "bad.jsonl:1", "expected", *words, *MEND)

    yield preferred("no rejected answer", {"prompt": "x", "chosen": "y"}, "found columns 'prompt', 'chosen'")
    yield preferred("no prompt", {"chosen": "y", "rejected": "z"}, "found columns 'chosen', 'rejected'")
    yield preferred("one answer twice", {"prompt": "x", "chosen": "y", "rejected": "y"}, "the same answer twice")
    yield preferred("an answer of numbers", {"prompt": "x", "chosen": 5, "rejected": "y"}, "'chosen'", "found 5")
    yield preferred("an empty prompt", {"prompt": "", "chosen": "y", "rejected": "z"}, "'prompt'", "found ''")
    asked = of("question-answering", ".jsonl", area="questions")
    row = {"question": "Who?", "context": "Ada."}
    yield asked("no context", lines({"question": "Who?"}), "bad.jsonl:1", "'question' and 'context'", *MEND)
    yield asked("answers in words", lines({**row, "answers": "Ada"}), "bad.jsonl:1", "found 'Ada'", *MEND)
    half = {"text": ["Ada"], "answer_start": []}
    yield asked("answers of two lengths", lines({**row, "answers": half}), "bad.jsonl:1", "both of one length", *MEND)
    tags = of("token-classification", ".jsonl", area="tags")
    yield tags("a tag too few", lines({"tokens": ["a", "b"], "tags": ["O"]}), "bad.jsonl:1", "found 1 tags", *MEND)
    yield tags("words in words", lines({"tokens": "a b", "tags": ["O"]}), "bad.jsonl:1", "found 'a b'", *MEND)
    boxes = of("object-detection", ".jsonl", area="boxes")
    yield boxes("no boxes", lines({"image": "x.png", "objects": 5}), "bad.jsonl:1", "found 5", *MEND)
    several = {"bbox": [[1, 1, 2, 2]], "category": []}
    yield boxes(
        "a class too few", lines({"image": "x.png", "objects": several}), "bad.jsonl:1", "as many of each", *MEND
    )


ENTRIES = [
    *_conll(),
    *_squad(),
    *_coco(),
    *_images(),
    *_recordings(),
    *_series(),
    *_logs(),
    *_pairs(),
    *_conversations(),
]
