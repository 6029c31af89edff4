"""Examples: what of them is predicted, how conversations become text, and how packing keeps them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from statescan.data import ByteTokenizer, ChatTemplate, Document, Windows, encode_documents, held_out_batches, load_tokenizer, read_examples
from statescan.data.corpus import Corpus, split_corpora

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "?"}]
CHAT += [{"role": "assistant", "content": "é!"}]
CHATML = ChatTemplate()


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def said(document: Document) -> list[str]:
    assert document.learned is not None
    return [document.text[start:stop] for start, stop in document.learned]


def predicted(corpus: Corpus) -> list[int]:
    """The targets of a reading, in order."""
    targets = [t for batch in held_out_batches(corpus, 1, 7) for t in batch.targets[0].tolist()]
    return [t for t in targets if t >= 0]


def test_each_kind_of_line_and_of_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.jsonl", {"text": "all of it"}, "", {"prompt": "2+2=", "completion": "4"}, {"messages": CHAT}, {"text": "all of it"})
    (folder / "b.txt").write_text("one|two")
    (folder / "c.md").write_text("not taken from a folder")
    examples = read_examples(str(folder), CHATML, separator="|")
    assert [e.name for e in examples] == ["a.jsonl#1", "a.jsonl#3", "a.jsonl#4", "b.txt#0", "b.txt#1"], "an example is taken once"
    assert [e.learned is None for e in examples] == [True, False, False, True, True]
    assert said(examples[1]) == ["4"]
    assert said(examples[2]) == ["ho<|im_end|>\n", "é!<|im_end|>\n"]
    assert examples[2].text.startswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n<|im_start|>user")
    assert CHATML.render(CHAT[:1], prompt=True) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": "a\u2028b"}, ensure_ascii=False).encode() + b"\r\n")
    assert [e.text for e in read_examples(marked, CHATML)] == ["a\u2028b"], "a byte order mark, and a separator that is no line end"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text"', "is not JSON"),
        ([1], "must be an object .* got a list"),
        ({}, "expected text, or prompt and completion, or messages; got an empty object"),
        ({"prompt": "a"}, "expected text, or prompt and completion, or messages; got 'prompt'"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": ["a"], "completion": "b"}, "prompt must be text"),
        ({"text": 3}, "text must be text; got 3"),
        ({"text": " "}, "text is empty"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": [{"role": "user"}]}, "message 1 must have role and content"),
        ({"messages": [{"role": "user", "content": None}]}, "role and content of message 1 must be text"),
        ({"messages": CHAT[:1]}, "the assistant says nothing"),
        ('{"text": "\\ud800"}', "lone surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    file = write(tmp_path / "bad.jsonl", {"text": "good"}, line)
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 2.*{message}"):
        read_examples(file, CHATML)


def test_empty_files_and_single_examples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty"):
        read_examples(write(tmp_path / "empty.jsonl", ""), CHATML)
    with pytest.raises(ValueError, match="holds no text"):
        read_examples(write(tmp_path / "empty.txt", ""), CHATML)
    one = read_examples(write(tmp_path / "one.jsonl", {"prompt": "a", "completion": "b"}), CHATML)
    with pytest.raises(ValueError, match="holds a single example"):
        split_corpora(one, None, ByteTokenizer(), 0.5)
    with pytest.raises(ValueError, match="nothing is left to train on"):
        split_corpora(one, one, ByteTokenizer(), 0.5)


def test_only_completions_are_predicted() -> None:
    first = Document("a", "2+2=4é", Path("a"), ((4, 6),))
    inner = Document("b", "x:yes;z", Path("b"), ((2, 5),))
    plain = Document("c", "ab", Path("c"))
    corpus = encode_documents([first, inner, plain], ByteTokenizer())
    assert predicted(corpus) != []
    expected = [*"4é".encode(), 256, *b"yes", *b"ab", 256]
    assert sorted(predicted(corpus)) == sorted(expected), "the end is predicted only where it follows what is"
    assert (corpus.n_targets, corpus.n_bytes) == (len(expected), 3 + 3 + 2)
    assert encode_documents([plain], ByteTokenizer()).learned is None
    head = corpus.head(3)
    assert (head.names, head.n_targets) == (("a",), 4)
    assert predicted(head) == [*"4é".encode(), 256]


def test_packed_examples_are_reset_and_stay_whole() -> None:
    asked = Document("a", "q" * 20 + "answer", Path("a"), ((20, 26),))
    told = Document("b", "t" * 26, Path("b"))
    corpus = encode_documents([asked, told], ByteTokenizer())
    windows = Windows(corpus, 1, 9, piece=9)
    batches = [next(windows) for _ in range(24)]
    inputs, targets = (torch.cat([getattr(b, name)[0] for b in batches]).tolist() for name in ("inputs", "targets"))
    resets = torch.cat([b.timeline.reset[0] for b in batches if b.timeline.reset is not None]).nonzero().flatten().tolist()
    ends = [*resets[1:], len(inputs)]
    pieces = [(inputs[a:b], targets[a:b]) for a, b in zip(resets, ends, strict=True)][:-1]
    example = ([256, *b"q" * 20, *b"answer"], [-100] * 20 + [*b"answer", 256])
    told_pieces = [([256, *b"t" * 8], [*b"t" * 9]), ([*b"t" * 9], [*b"t" * 9]), ([*b"t" * 9], [*b"t" * 8, 256])]
    assert pieces.count(example) >= 3, "an example with a prompt is never cut, and its prompt never predicted"
    assert all(piece == example or piece in told_pieces for piece in pieces)
    assert all(piece in pieces for piece in told_pieces), "text that is predicted throughout is cut into pieces"


# -- templates of a tokenizer -------------------------------------------------------------------------------------------------

JINJA = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A {{ m.content }} {{ eos_token }}\n{% else %}U {{ m.content }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}A {% endif %}"
)
MARKED = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
MARKED += "{% else %}{{ m.content }}{% endif %}{% endfor %}"


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    words = ["<stop>", "?", "U", "A", "hi", "ho", "é!", "\n"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\n"), "isolated"), tokenizers.pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.add_special_tokens(["<stop>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<stop>", "chat_template": JINJA}))
    return tmp_path


def test_the_template_of_the_tokenizer(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    template = ChatTemplate.of(tokenizer)
    text, spans = template.learned(CHAT)
    assert text == "U hi\nA ho <stop>\nU ?\nA é! <stop>\n"
    assert [text[a:b] for a, b in spans] == ["ho <stop>\n", "é! <stop>\n"]
    assert template.render(CHAT[:1], prompt=True) == "U hi\nA "
    corpus = encode_documents([Document("a", text, Path("a"), spans)], tokenizer)
    assert predicted(corpus) == [5, 0, 7, 6, 0, 7, 0]
    trimmed = text.rstrip("\n")
    corpus = encode_documents([Document("a", trimmed, Path("a"), ((spans[1][0], len(trimmed)),))], tokenizer)
    assert predicted(corpus) == [6, 0], "an end that the template wrote is not written twice"
    # the copy keeps the template, and a file of its own wins
    copy = tmp_path / "copy"
    copy.mkdir()
    tokenizer.save(copy)
    assert ChatTemplate.of(load_tokenizer(copy)).render(CHAT[:1]) == "U hi\n"
    (copy / "chat_template.jinja").write_text(MARKED)
    text, spans = ChatTemplate.of(load_tokenizer(copy)).learned(CHAT)
    assert [text[a:b] for a, b in spans] == ["ho", "é!"], "generation blocks say it themselves"
    assert ChatTemplate.of(tokenizer, str(copy / "chat_template.jinja")).render(CHAT[:1]) == "[user]hi"
    assert ChatTemplate.of(tokenizer, "chatml").render(CHAT[:1]).startswith("<|im_start|>user")
    with pytest.raises(ValueError, match="there is no file nowhere"):
        ChatTemplate.of(tokenizer, "nowhere")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "differently once message 2 follows"),
        ("{{ raise_exception('no users here') }}", "no users here"),
        ("{% for %}", "the chat template refuses the conversation"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path: Path, template: str, message: str) -> None:
    pytest.importorskip("transformers")
    file = write(tmp_path / "chat.jsonl", {"messages": CHAT})
    with pytest.raises(ValueError, match=rf"line 1: .*{message}"):
        read_examples(file, ChatTemplate(template))
