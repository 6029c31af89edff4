"""Examples to finetune on: texts, prompts with their completions, and conversations, from JSON lines; which of their text is predicted.

A line of a ``.jsonl`` file is one of::

    {"text": "..."}                                                         # all of it is predicted
    {"prompt": "...", "completion": "..."}                                  # the completion
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}   # what the assistant says

Other files are documents, predicted throughout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from statescan.data.sources import Document, Source, documents_of, find_files, read_text
from statescan.data.tokenizers import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Spans = tuple[tuple[int, int], ...]

INCLUDE = ("*.jsonl", "*.txt")
"""What is taken from folders."""


class ChatTemplate:
    """Conversations as text, by a Jinja template; without one as ChatML, each message being ``<|im_start|>ROLE\\nCONTENT<|im_end|>\\n``."""

    def __init__(self, template: str | None = None, special_tokens: Mapping[str, str] | None = None) -> None:
        self.template, self.special_tokens = template, dict(special_tokens or {})

    @staticmethod
    def of(tokenizer: Tokenizer, template: str | None = None) -> ChatTemplate:
        """The tokenizer's own, or ChatML if it has none; ``template`` is "chatml" or a Jinja file to use in its place."""
        if template is None:
            text = getattr(tokenizer, "chat_template", None)
        elif template == "chatml":
            text = None
        elif Path(template).is_file():
            text = read_text(template)
        else:
            raise ValueError(f"template must be 'chatml' or a file that holds a Jinja template; there is no file {template}")
        return ChatTemplate(text, getattr(tokenizer, "special_tokens", None))

    def render(self, messages: Messages, *, prompt: bool = False) -> str:
        """The conversation as text; with ``prompt``, up to where the assistant's next words go: what ``generate`` continues."""
        return self._render(messages, prompt)[0]

    def learned(self, messages: Messages) -> tuple[str, Spans]:
        """The conversation as text, and the spans of characters that the assistant says, with the mark that ends each.

        They are the template's ``{% generation %}`` blocks, if it has them; else they are found by rendering the conversation up to
        each of the assistant's messages, without it and with it.
        """
        text, marked = self._render(messages)
        if marked:
            return text, tuple((int(start), int(stop)) for start, stop in marked)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self.render(messages[:i], prompt=True), self.render(messages[: i + 1])
            if not (text.startswith(after) and after.startswith(before)):
                raise ValueError(
                    f"the chat template writes the beginning of a conversation differently once message {i + 1} follows, so what the "
                    "assistant says cannot be told apart: mark it in the template with {% generation %}, or give one turn an example"
                )
            spans.append((len(before), len(after)))
        return text, tuple(spans)

    def _render(self, messages: Messages, prompt: bool = False) -> tuple[str, list[Any]]:
        """The text, and the spans that the template marks."""
        if self.template is None:
            said = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
            return said + ("<|im_start|>assistant\n" if prompt else ""), []
        try:
            from jinja2.exceptions import TemplateError
            from transformers.utils.chat_template_utils import render_jinja_template
        except ImportError as error:
            raise ImportError(
                "the tokenizer's chat template needs transformers: pip install 'statescan[hub]', or template='chatml'"
            ) from error
        try:
            texts, marked = render_jinja_template(
                [[dict(message) for message in messages]],
                chat_template=self.template,
                return_assistant_tokens_mask=not prompt,
                add_generation_prompt=prompt,
                **self.special_tokens,
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        return texts[0], marked[0] if marked else []


def read_examples(sources: Source | Sequence[Source], template: ChatTemplate, separator: str | None = None) -> list[Document]:
    """Every example of every file, once; from folders, the ``.jsonl`` and ``.txt`` files. What is wrong names its file and line."""
    examples: list[Document] = []
    for name, path in find_files(sources, INCLUDE):
        if path.suffix != ".jsonl":
            examples += documents_of(name, path, separator)
            continue
        lines = read_text(path).removeprefix("\ufeff").split("\n")
        found = [_example(line, path, name, number, template) for number, line in enumerate(lines, 1) if line.strip()]
        if not found:
            raise ValueError(f"{path} is empty: it holds no example")
        examples += found
    if not examples:
        raise ValueError(f"{sources} holds no text")
    once: dict[tuple[str, Spans | None], Document] = {}
    for example in examples:
        once.setdefault((example.text, example.learned), example)
    return list(once.values())


def _example(line: str, path: Path, name: str, number: int, template: ChatTemplate) -> Document:
    where = f"{path}, line {number}"
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error.msg}, at character {error.pos + 1}") from None
    if not isinstance(data, dict):
        raise ValueError(f'{where} must be an object such as {{"text": ...}}; got a {type(data).__name__}')
    try:
        text, learned = _read(data, template)
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: half of a character (a lone surrogate) stands at position {error.start}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Document(f"{name}#{number}", text, path, learned)


def _read(data: Mapping[str, Any], template: ChatTemplate) -> tuple[str, Spans | None]:
    if "messages" in data:
        text, learned = template.learned(_messages(data["messages"]))
        learned = tuple((start, stop) for start, stop in learned if stop > start)
        if not learned:
            raise ValueError("the assistant says nothing in this conversation, so there is nothing to learn")
        return text, learned
    if "prompt" in data and "completion" in data:
        prompt, completion = _text(data, "prompt"), _text(data, "completion")
        if not completion:
            raise ValueError("completion is empty, so there is nothing to learn")
        return prompt + completion, ((len(prompt), len(prompt) + len(completion)),)
    if "text" in data:
        text = _text(data, "text")
        if not text.strip():
            raise ValueError("text is empty, so there is nothing to learn")
        return text, None
    raise ValueError(f"expected text, or prompt and completion, or messages; got {', '.join(map(repr, data)) or 'an empty object'}")


def _text(data: Mapping[str, Any], key: str) -> str:
    if not isinstance(data[key], str):
        raise ValueError(f"{key} must be text; got {json.dumps(data[key])[:40]}")
    return data[key]


def _messages(messages: Any) -> Messages:
    if not isinstance(messages, list) or not messages:
        raise ValueError('messages must be a list of {"role": ..., "content": ...}, one at least')
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise ValueError(f"message {i} must have role and content; got {json.dumps(message)[:60]}")
        if not all(isinstance(message[key], str) for key in ("role", "content")):
            raise ValueError(f"role and content of message {i} must be text; got {json.dumps(message)[:60]}")
    return messages
