"""Continue a prompt: read it in chunks of constant memory, then one token at a time, with a state that can be kept and branched.

A prompt is read once and continued many times::

    prefix = prefill(model, "def ")                      # Prefix(state, logits, seen)
    statescan.state.save(prefix, "def.safetensors")      # and statescan.state.load
    texts = generate(model, state=prefix, num_return_sequences=3)

Rows of a batch never see each other: each equals the row alone, whatever the lengths of its neighbours' prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from statescan import state as states
from statescan.engine import Engine
from statescan.heads import LanguageModel
from statescan.layers.prompt_products import products_of
from statescan.procedures.sampling import Sampler, row_generators
from statescan.procedures.text import TextStream, Tokenizer
from statescan.state import State
from statescan.timeline import Timeline

Kind = Literal["text", "ids", "tensor"]


class LanguageModelLike(Protocol):
    """What generation needs of a model; ``tokenizer`` may be absent."""

    def scan(self, ids: Tensor, state: State, timeline: Timeline | None = None, *, logits_at: Any = "all") -> tuple[Tensor, State]: ...

    def step(self, ids: Tensor, state: State) -> tuple[Tensor, State]: ...

    def init_state(self, batch_size: int) -> State: ...


@states.state
class Prefix(NamedTuple):
    """What a model knows after reading something: all that a continuation needs."""

    state: State
    """The model's state."""
    logits: Tensor
    """(B, V), of the token that comes next."""
    seen: Tensor
    """bool (B, V): the tokens read or written so far (for the repetition penalty)."""


class Prompt(NamedTuple):
    """Token ids of each row, and what kind of prompt they were: results come in the same kind."""

    rows: list[Tensor]
    kind: Kind
    batched: bool


def prefill(
    model: Any,
    prompt: Any,
    *,
    state: State | Prefix | None = None,
    chunk_size: int = 1024,
    tokenizer: Tokenizer | None = None,
) -> Prefix:
    """Read a prompt, in chunks of ``chunk_size`` positions: memory does not grow with its length.

    ``prompt``: a string, ids (L,), ids (B, L), or a list of strings or id lists of different lengths. ``state``: what came before, a
    :class:`Prefix` or a model's state with as many rows.
    """
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    return _read(model, _parse(prompt, tokenizer), state, chunk_size)


def generate(
    model: Any,
    prompt: Any = None,
    *,
    max_new_tokens: int = 128,
    do_sample: bool | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_strings: str | Sequence[str] = (),
    eos_token_id: int | Sequence[int] | None = None,
    num_return_sequences: int = 1,
    seed: int | Sequence[int] | None = None,
    stream: bool = False,
    state: State | Prefix | None = None,
    return_state: bool = False,
    chunk_size: int = 1024,
    tokenizer: Tokenizer | None = None,
) -> Any:
    """The continuation of a prompt (without the prompt itself), in the kind of the prompt.

    A string gives a string, a list of strings a list; ids (L,) give ids (N,); ids (B, L) give (B, N), rows that ended early filled with
    the end token; id lists give id lists. Without a prompt, ``state`` must be a :class:`Prefix`, which is continued: as text where there
    is a tokenizer.

    - ``do_sample=None`` samples unless ``temperature`` is 0 (greedy).
    - ``stop_strings``: text ends before the first of them; ids and state run through the token that completed it.
    - ``eos_token_id``: default the tokenizer's; ``()`` for none. It is the last of the ids and no part of the text.
    - ``num_return_sequences``: continuations of each row, in neighbouring rows; the prompt is read once.
    - ``seed``: row i draws from ``seed + i``, or from ``seed[i]``; a row's samples do not depend on its neighbours.
    - ``stream=True``: a :class:`Stream` of pieces (of tokens where the prompt was ids); (row, piece) for a batch.
    - ``return_state=True``: (continuation, Prefix); the Prefix has read the prompt and every returned token.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}; to read a prompt without continuing it use prefill")
    if num_return_sequences < 1:
        raise ValueError(f"num_return_sequences must be at least 1, got {num_return_sequences}")
    sampler = Sampler(do_sample, temperature, top_k, top_p, min_p, repetition_penalty)
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    stop_strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
    if "" in stop_strings:
        raise ValueError("an empty stop string stops everything: leave it out")
    if stop_strings and tokenizer is None:
        raise ValueError("stop_strings need a tokenizer, and the model has none: pass tokenizer=...")
    if eos_token_id is None:
        eos_token_id = getattr(tokenizer, "eos_id", None)
    ends = () if eos_token_id is None else (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)

    if prompt is not None:
        parsed = _parse(prompt, tokenizer)
        prefix = _read(model, parsed, state, chunk_size)
        kind, batched = parsed.kind, parsed.batched
    else:
        if not isinstance(state, Prefix):
            raise ValueError("without a prompt, state must be a Prefix (made by prefill, or by generate with return_state=True)")
        prefix = _check_prefix(model, state)
        kind, batched = ("ids" if tokenizer is None else "text"), prefix.logits.shape[0] > 1
    if num_return_sequences > 1:
        prefix = states.select(prefix, torch.arange(prefix.logits.shape[0]).repeat_interleave(num_return_sequences))
        batched = True
    rows = prefix.logits.shape[0]
    texts = [
        TextStream(tokenizer, stop_strings) if tokenizer is not None and (kind == "text" or stop_strings) else None for _ in range(rows)
    ]
    events = _decode(model, prefix, sampler, row_generators(seed, rows), texts, ends, max_new_tokens, return_state)
    running = Stream(events, kind == "text", batched)
    if stream:
        return running

    gathered: list[list[Any]] = [[] for _ in range(rows)]
    for piece in running:
        row, content = piece if batched else (0, piece)
        gathered[row].append(content)
    result: Any = ["".join(pieces) for pieces in gathered] if kind == "text" else gathered
    if kind == "tensor":
        longest = max(len(ids) for ids in gathered)
        fill = ends[0] if ends else -1
        result = torch.tensor([ids + [fill] * (longest - len(ids)) for ids in gathered], device=prefix.logits.device)
    result = result if batched else result[0]
    return (result, running.state) if return_state else result


class Stream:
    """An iterator over what is generated: pieces of text, or tokens; (row, piece) for a batch. ``state`` is set at the end if asked for."""

    def __init__(self, events: Iterator[_Event], text: bool, batched: bool) -> None:
        self.state: Prefix | None = None
        self._text = text
        self._batched = batched
        self._events = events

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        for event in self._events:
            if isinstance(event, Prefix):
                self.state = event
            elif event.text if self._text else event.token is not None:
                content = event.text if self._text else event.token
                return (event.row, content) if self._batched else content
        raise StopIteration


class _Token(NamedTuple):
    """One token of one row, and the text that became certain with it. The last text of a row may come without a token."""

    row: int
    token: int | None
    text: str


_Event = _Token | Prefix


@torch.no_grad()
def _decode(
    model: Any,
    prefix: Prefix,
    sampler: Sampler,
    generators: list[torch.Generator],
    texts: list[TextStream | None],
    ends: tuple[int, ...],
    max_new_tokens: int,
    return_state: bool,
) -> Iterator[_Event]:
    """Tokens of the rows that still run, step by step; rows that have ended leave the batch. At the end the Prefix, if asked for."""
    rows = list(range(prefix.logits.shape[0]))
    finished: dict[int, Prefix] = {}
    stepper = _stepper(model)
    for count in range(1, max_new_tokens + 1):
        _check_finite(model, prefix.logits, rows)
        tokens = sampler(prefix.logits, prefix.seen, [generators[row] for row in rows])
        running: list[int] = []
        for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            ended, text = token in ends, texts[row]
            piece = text.push(token) if text is not None and not ended else ""
            ended = ended or count == max_new_tokens or (text is not None and text.stopped)
            yield _Token(row, token, piece + (text.finish() if ended and text is not None else ""))
            if not ended:
                running.append(place)
        if return_state and len(running) < len(rows):
            over = sorted(set(range(len(rows))) - set(running))
            last = _advance(stepper, states.select(prefix, over), tokens[over], own=True)
            finished |= {rows[place]: states.select(last, [i]) for i, place in enumerate(over)}
        if not running:
            break
        if len(running) < len(rows):
            prefix, tokens, rows = states.select(prefix, running), tokens[running], [rows[place] for place in running]
        prefix = _advance(stepper, prefix, tokens, own=count > 1)  # the first is the caller's
    if return_state:
        yield states.concat([finished[row] for row in sorted(finished)])


Stepper = Callable[[Tensor, State, bool], tuple[Tensor, State]]
"""(tokens, state, whether the state may be overwritten) -> logits and state."""


def _stepper(model: Any) -> Stepper:
    """An engine's step where every layer of the model has a native one; else the model's."""
    if isinstance(model, LanguageModel):
        engine = Engine(model)
        if not engine.called:
            return lambda tokens, state, own: engine.step(tokens, state, inplace=own)

    def step(tokens: Tensor, state: State, own: bool) -> tuple[Tensor, State]:
        with _evaluating(model):
            return model.step(tokens, state)

    return step


def _advance(stepper: Stepper, prefix: Prefix, tokens: Tensor, own: bool) -> Prefix:
    """The prefix with one more token (B,) a row; a state of our own is overwritten."""
    logits, state = stepper(tokens, prefix.state, own)
    return Prefix(state, logits, prefix.seen.scatter(1, tokens.unsqueeze(1), True))


@torch.no_grad()
def _read(model: Any, prompt: Prompt, state: State | Prefix | None, chunk_size: int) -> Prefix:
    """Prompt rows of any lengths, left-padded: a chunk at a time through ``scan``; only the last position's logits are kept."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    for i, row in enumerate(prompt.rows):
        if row.numel() == 0:
            where = f" in row {i}" if prompt.batched else ""
            raise ValueError(f"the prompt has no tokens{where}: give at least one (a space or a newline will do)")
    _check_model(model)
    batch, length = len(prompt.rows), max(row.numel() for row in prompt.rows)
    before = state
    state = _check_state(model, before.state if isinstance(before, Prefix) else before, batch)
    device = _device(model)
    ids = torch.zeros(batch, length, dtype=torch.long)
    mask = torch.zeros(batch, length, dtype=torch.bool)
    for i, row in enumerate(prompt.rows):
        ids[i, length - row.numel() :] = row
        mask[i, length - row.numel() :] = True
    _check_vocabulary(model, ids)
    if isinstance(before, Prefix):
        _check_prefix(model, before)
    ids, mask = ids.to(device), mask.to(device)
    timeline = None if bool(mask.all()) else Timeline.padded(mask)
    products = products_of(model) if isinstance(model, nn.Module) else nullcontext()
    logits = None
    for start in range(0, length, chunk_size):
        stop = min(start + chunk_size, length)
        line = None if timeline is None else timeline.slice(start, stop)
        # Rows that have not begun have no last position yet, so chunks before the final one ask for a fixed one and ignore it.
        at = "last" if stop == length else stop - start - 1
        with _evaluating(model), products:
            logits, state = model.scan(ids[:, start:stop], state, line, logits_at=at)
    assert logits is not None
    seen = before.seen.to(device) if isinstance(before, Prefix) else torch.zeros(logits.shape, dtype=torch.bool, device=device)
    new = torch.zeros(batch, logits.shape[1] + 1, dtype=torch.bool, device=device)  # the last column takes the padding
    new = new.scatter(1, torch.where(mask, ids, logits.shape[1]), True)[:, :-1]
    return Prefix(state, logits, seen | new)


def _parse(prompt: Any, tokenizer: Tokenizer | None) -> Prompt:
    def encode(text: str) -> Tensor:
        if tokenizer is None:
            raise ValueError("a text prompt needs a tokenizer, and the model has none: pass tokenizer=..., or a prompt of token ids")
        return torch.tensor(tokenizer.encode(text), dtype=torch.long)

    def numbers(ids: Any) -> Tensor:
        tensor = torch.as_tensor(ids).cpu()
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            raise ValueError(f"token ids must be integers; got {tensor.dtype}")
        return tensor.long()

    if isinstance(prompt, str):
        return Prompt([encode(prompt)], "text", False)
    if isinstance(prompt, (list, tuple)) and not prompt:
        raise ValueError("the prompt is an empty list: give at least one row, or one list of token ids")
    if isinstance(prompt, (list, tuple)) and all(isinstance(row, str) for row in prompt):
        return Prompt([encode(row) for row in prompt], "text", True)
    kind: Kind = "ids" if isinstance(prompt, (list, tuple)) else "tensor"
    if kind == "ids" and all(isinstance(row, (list, tuple)) or (isinstance(row, Tensor) and row.ndim == 1) for row in prompt):
        rows = [numbers(row) for row in prompt]
        if all(row.ndim == 1 for row in rows):
            return Prompt(rows, kind, True)
    elif hasattr(prompt, "__array__") or (kind == "ids" and all(isinstance(token, int) for token in prompt)):
        ids = numbers(prompt)
        if ids.ndim == 1:
            return Prompt([ids], kind, False)
        if ids.ndim == 2 and len(ids):
            return Prompt(list(ids), kind, True)
    raise ValueError(
        "a prompt is a string, token ids (length,) or (batch, length), or a list of strings or of id lists; "
        f"got {tuple(prompt.shape) if isinstance(prompt, Tensor) else repr(prompt)[:80]}"
    )


def _check_state(model: Any, state: State | None, batch: int) -> State:
    """The state on the model's device, or a fresh one; a ValueError if it is not one of this model's."""
    fresh = model.init_state(batch)
    if state is None:
        return fresh
    expected, structure = pytree.tree_flatten_with_path(fresh)
    got = pytree.tree_leaves(state)
    if pytree.tree_structure(state) != structure or [type(leaf) for leaf in got] != [type(leaf) for _, leaf in expected]:
        raise ValueError("the state belongs to another model: its structure differs from this model's init_state")
    for (path, ours), theirs in zip(expected, got, strict=True):
        if not isinstance(ours, Tensor):
            continue
        where = f"state{pytree.keystr(path)}"
        if theirs.shape[1:] != ours.shape[1:]:
            raise ValueError(
                f"the state belongs to another model: {where} has shape {tuple(theirs.shape)}, this model's has {tuple(ours.shape)}"
            )
        if theirs.shape[0] != ours.shape[0]:
            raise ValueError(
                f"the state holds {theirs.shape[0]} rows, the prompt {batch}: repeat or choose rows with statescan.state.select"
            )
    return states.map_tensors(lambda theirs, ours: theirs.to(ours), state, fresh)


def _check_model(model: Any) -> None:
    absent = [name for name in ("scan", "step", "init_state") if not hasattr(model, name)]
    if absent:
        raise ValueError(f"{type(model).__name__} has no {', '.join(absent)}: generation needs a causal model of token ids")


def _check_prefix(model: Any, prefix: Prefix) -> Prefix:
    _check_model(model)
    state = _check_state(model, prefix.state, prefix.logits.shape[0])
    vocabulary = getattr(model, "vocab_size", prefix.logits.shape[-1])
    if prefix.logits.shape[-1] != vocabulary:
        raise ValueError(f"the prefix belongs to another model: it has {prefix.logits.shape[-1]} logits, this model {vocabulary}")
    return Prefix(state, prefix.logits.to(_device(model)), prefix.seen.to(_device(model)))


def _check_vocabulary(model: Any, ids: Tensor) -> None:
    low, high = int(ids.min()), int(ids.max())
    vocabulary = getattr(model, "vocab_size", high + 1)
    if low < 0 or high >= vocabulary:
        raise ValueError(f"token id {low if low < 0 else high} is outside the vocabulary of {vocabulary}: is this the model's tokenizer?")


def _check_finite(model: Any, logits: Tensor, rows: list[int]) -> None:
    """A ValueError that names the row and, where a parameter is at fault, the parameter."""
    good = torch.isfinite(logits.amax(-1))
    if bool(good.all()):
        return
    row = rows[int((~good).nonzero()[0])]
    what = "NaN" if bool(logits.isnan().any()) else "no finite logit or an infinite one"
    parameters = model.named_parameters() if isinstance(model, nn.Module) else ()
    bad = next((name for name, tensor in parameters if not bool(torch.isfinite(tensor).all())), None)
    cause = (
        f"the weight {bad} holds a value that is not finite" if bad else "all weights are finite, so the state or the activations overflow"
    )
    raise ValueError(f"the model's logits hold {what} (row {row}): {cause}")


def _device(model: Any) -> torch.device:
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside the block, for those modules that were training."""
    training = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
