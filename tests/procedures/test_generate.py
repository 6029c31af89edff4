from __future__ import annotations

import pytest
import torch

from statescan import create_model
from statescan import state as states
from statescan.procedures.generate import Prefix, Stream, generate, prefill
from statescan.procedures.sampling import Sampler, draw, keep_min_p, keep_top_k, keep_top_p, penalize_repetition, row_generators
from statescan.procedures.text import TextStream
from tests.procedures.generate_toys import Letters, Script, Toy


@pytest.fixture(scope="module")
def model() -> Toy:
    return Toy(tokenizer=Letters()).eval()


def by_hand(model: Toy, ids: list[int], n: int) -> list[int]:
    """Greedy continuation by reading everything again for each token."""
    out: list[int] = []
    with torch.no_grad():
        for _ in range(n):
            logits, _ = model.scan(torch.tensor([ids + out]), model.init_state(1), logits_at="last")
            out.append(int(logits[0].argmax()))
    return out


# -- sampling ---------------------------------------------------------------------------------------------------------------


def test_filters_equal_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    logits = torch.randn(5, 97) * 3
    ids = torch.randint(0, 97, (5, 40))
    seen = torch.zeros(5, 97, dtype=torch.bool).scatter(1, ids, True)
    hf = transformers.generation.logits_process
    for penalty in (0.7, 1.3):
        theirs = hf.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
        assert torch.equal(penalize_repetition(logits, seen, penalty), theirs)
    for k in (1, 3, 96, 500):
        assert torch.equal(keep_top_k(logits, k), hf.TopKLogitsWarper(k)(ids, logits.clone()))
    for p in (0.01, 0.5, 0.9, 0.999):
        assert torch.equal(keep_top_p(logits, p), hf.TopPLogitsWarper(p)(ids, logits.clone()))
    for p in (0.01, 0.3, 1.0):
        assert torch.equal(keep_min_p(logits, p), hf.MinPLogitsWarper(p)(ids, logits.clone()))


def test_filters_are_applied_in_the_order_of_transformers(monkeypatch):
    transformers = pytest.importorskip("transformers")
    import statescan.procedures.sampling as sampling

    torch.manual_seed(1)
    logits, ids = torch.randn(4, 61) * 2, torch.randint(0, 61, (4, 12))
    hf = transformers.generation.logits_process
    theirs = logits.clone()
    chain = [hf.RepetitionPenaltyLogitsProcessor(1.2), hf.TemperatureLogitsWarper(0.7), hf.TopKLogitsWarper(20)]
    for processor in [*chain, hf.TopPLogitsWarper(0.8), hf.MinPLogitsWarper(0.05)]:
        theirs = processor(ids, theirs)
    kept = {}
    monkeypatch.setattr(sampling, "draw", lambda logits, generators: kept.setdefault("logits", logits))
    sampler = Sampler(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.2)
    sampler(logits, torch.zeros(4, 61, dtype=torch.bool).scatter(1, ids, True), [])
    assert torch.equal(kept["logits"], theirs)


def test_draw_follows_the_distribution_and_never_an_excluded_token():
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf"), 2.0, float("-inf")]])
    generators = row_generators(3, 1)
    counts = torch.zeros(6)
    for _ in range(4000):
        counts[draw(logits, generators)] += 1
    expected = logits.softmax(-1)[0] * 4000
    assert counts[expected == 0].sum() == 0
    chi_square = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    assert chi_square < 13.8  # 2 degrees of freedom, p = 0.001


def test_greedy_takes_the_lowest_id_of_equal_logits():
    logits = torch.zeros(2, 300)
    logits[0, 40] = logits[0, 200] = 1.0
    assert Sampler(temperature=0)(logits, torch.zeros(2, 300, dtype=torch.bool), []).tolist() == [40, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"do_sample": True, "temperature": 0}, "contradiction"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "prefill"),
        ({"num_return_sequences": 0}, "num_return_sequences"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"stop_strings": ["a", ""]}, "empty stop string"),
        ({"seed": [1, 2, 3]}, "3 seeds for 1 rows"),
    ],
)
def test_impossible_arguments_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(model, "ab", **arguments)


# -- prompts ----------------------------------------------------------------------------------------------------------------


def test_the_result_has_the_kind_of_the_prompt(model):
    ids = list(b"hello")
    expected = by_hand(model, ids, 6)
    how = {"max_new_tokens": 6, "temperature": 0, "eos_token_id": ()}
    assert generate(model, "hello", **how) == Letters().decode(expected)
    assert generate(model, ["hello"], **how) == [Letters().decode(expected)]
    assert generate(model, ids, **how) == expected
    assert generate(model, [ids, torch.tensor(ids)], **how) == [expected, expected]
    for prompt in (torch.tensor(ids), torch.tensor([ids])):
        out = generate(model, prompt, **how)
        assert out.tolist() == (expected if prompt.ndim == 1 else [expected])


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 1024])
def test_ragged_rows_equal_rows_alone(model, chunk_size):
    prompts = [list(b"a"), list(b"some longer text"), list(b"four"), [7] * 9]
    together = generate(model, prompts, max_new_tokens=8, temperature=0, chunk_size=chunk_size, eos_token_id=())
    assert together == [by_hand(model, ids, 8) for ids in prompts]


def test_a_rows_samples_do_not_depend_on_its_neighbours(model):
    prompts = ["x", "another one", "third"]
    how = {"max_new_tokens": 12, "top_p": 0.95, "repetition_penalty": 1.1, "stop_strings": "e"}
    together = generate(model, prompts, seed=5, **how)
    assert together == [generate(model, prompt, seed=5 + i, **how) for i, prompt in enumerate(prompts)]
    assert together == generate(model, prompts[::-1], seed=[7, 6, 5], **how)[::-1]
    assert together != generate(model, prompts, seed=6, **how)


def test_no_seed_follows_torchs_own_stream(model):
    texts = []
    for _ in range(2):
        torch.manual_seed(11)
        texts.append(generate(model, "a", max_new_tokens=10))
    assert texts[0] == texts[1] != generate(model, "a", max_new_tokens=10)


def test_memory_of_reading_is_bounded_by_the_chunk(model):
    model.longest = 0
    prefill(model, torch.randint(0, 257, (2, 1000)), chunk_size=64)
    assert model.longest == 64


@pytest.mark.parametrize("prompt", ["", [], [[]], ["a", ""], torch.zeros(0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)])
def test_a_prompt_without_tokens_is_refused(model, prompt):
    with pytest.raises(ValueError, match=r"no tokens|empty list"):
        generate(model, prompt)


@pytest.mark.parametrize("prompt", [{"a": 1}, [[[1]]], torch.zeros(1, 1, 1, dtype=torch.long), torch.rand(4), [1.5], ["a", [1]], None])
def test_a_prompt_of_another_kind_is_refused(model, prompt):
    with pytest.raises(ValueError, match=r"a prompt is|integers|Prefix"):
        generate(model, prompt)


def test_ids_outside_the_vocabulary_are_refused(model):
    for bad in (257, -1):
        with pytest.raises(ValueError, match=f"token id {bad} is outside the vocabulary of 257"):
            generate(model, [1, bad])


def test_a_model_that_generates_nothing_is_refused(model):
    for arguments in ({"prompt": [1]}, {"state": prefill(model, [1])}):
        with pytest.raises(ValueError, match="Linear has no scan, step, init_state: generation needs a causal model of token ids"):
            generate(torch.nn.Linear(2, 2), **arguments)


def test_text_needs_a_tokenizer():
    for arguments in ({"prompt": "a"}, {"prompt": [1], "stop_strings": "x"}):
        with pytest.raises(ValueError, match="tokenizer"):
            generate(Toy(), **arguments)


# -- ends, stop strings, streaming ------------------------------------------------------------------------------------------


def test_rows_end_at_the_end_token_and_the_others_go_on():
    model = Toy(tokenizer=Letters())
    free = generate(model, [[1], [2, 3], [4]], max_new_tokens=10, temperature=0, eos_token_id=())
    end = free[1][2]
    cut = [ids[: ids.index(end) + 1] if end in ids else ids for ids in free]
    assert {len(ids) for ids in cut} == {10, 3}
    assert generate(model, [[1], [2, 3], [4]], max_new_tokens=10, temperature=0, eos_token_id=end) == cut
    tensor = generate(model, torch.tensor([[3], [1]]), max_new_tokens=10, temperature=0, eos_token_id=[end, 999])
    assert tensor.shape[0] == 2


def test_ids_of_a_tensor_prompt_are_filled_with_the_end_token():
    class Two(Script):
        def _say(self, place):  # the second row ends at once
            logits = super()._say(place)
            return torch.stack([logits[0], *(torch.eye(257)[256] for _ in logits[1:])])

    ids = generate(Two(b"abc"), torch.tensor([[1], [2]]), temperature=0)
    assert ids.tolist() == [[97, 98, 99, 256], [256, 256, 256, 256]]


@pytest.mark.parametrize(
    ("says", "stops", "text"),
    [
        (b"one two three", ["two"], "one "),
        (b"one two three", ["twx", "three"], "one two "),
        (b"aaab", ["aab"], "a"),
        (b"abab!", "ab!", "ab"),
        (b"ends in tw", ["two"], "ends in tw"),
        ("naïve € café".encode(), ["€"], "naïve "),
        ("naïve".encode(), ["ve"], "naï"),
        (b"x", ["x"], ""),
        (b"later first", ["first", "later"], ""),
        (b"\xff\xfe bad \xe2\x82", (), "\ufffd\ufffd bad \ufffd"),
    ],
)
def test_stop_strings_and_streams(says, stops, text):
    model = Script(says)
    assert generate(model, "p", temperature=0, stop_strings=stops) == text
    pieces = list(generate(model, "p", temperature=0, stop_strings=stops, stream=True))
    assert "".join(pieces) == text
    assert all(pieces), "an empty piece was yielded"


def test_a_piece_is_never_part_of_a_character():
    says = "é€😀 plain".encode()
    pieces = list(generate(Script(says), "p", temperature=0, stream=True))
    assert pieces == ["é", "€", "😀", " ", "p", "l", "a", "i", "n"]


def test_text_stream_equals_decoding_everything():
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        ids = torch.randint(0, 256, (30,), generator=generator).tolist() + list("zß水😀".encode())
        stream = TextStream(Letters())
        assert "".join([*(stream.push(token) for token in ids), stream.finish()]) == Letters().decode(ids)


def test_bytes_that_make_no_character_are_let_through_in_time():
    stream = TextStream(Letters())
    pieces = [stream.push(token) for token in [0xFF] * 30]
    assert len("".join(pieces)) == 29
    assert "".join(pieces) + stream.push(0xE2) + stream.push(0x82) + stream.push(0xAC) + stream.finish() == "\ufffd" * 30 + "€"


def test_text_stream_with_a_tokenizer_that_treats_the_first_token_differently():
    class Words:
        words = ("▁the", "▁cat", "s", "▁sat")

        def decode(self, ids):
            return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    ids = [0, 1, 2, 3, 0, 1]
    stream = TextStream(Words())
    assert [stream.push(token) for token in ids] == ["the", " cat", "s", " sat", " the", " cat"]
    assert stream.finish() == ""


@pytest.mark.parametrize("kind", ["ByteLevel", "Metaspace", "ByteFallback"])
def test_text_stream_equals_decoding_everything_with_the_tokenizers_library(kind):
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    text = ["naïve café, 水と火 😀😀 and plain words, words and more words"] * 3
    if kind == "ByteFallback":
        vocabulary = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}, "▁the": 257, "▁cat": 258, "s": 259}
        tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = getattr(pre_tokenizers, kind)()
        tokenizer.decoder = getattr(decoders, kind)()
        alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "ByteLevel" else []
        tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=320, show_progress=False, initial_alphabet=alphabet))
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 25):
        for _ in range(10):
            ids = torch.randint(0, tokenizer.get_vocab_size(), (n,), generator=generator).tolist()
            if kind == "ByteFallback":  # here one byte that fits nowhere changes the text of all bytes beside it: no stream can follow
                ids = [b for i in ids for b in ([1 + byte for byte in "水😀é"[i % 3].encode()] if i % 2 else [257 + i % 3])]
            stream = TextStream(tokenizer)
            assert "".join([*(stream.push(token) for token in ids), stream.finish()]) == tokenizer.decode(ids), ids


def test_streams_of_a_batch_say_which_row():
    model = Toy(tokenizer=Letters())
    how = {"max_new_tokens": 7, "seed": 1}
    whole = generate(model, ["ab", "c"], **how)
    rows = ["", ""]
    for row, piece in generate(model, ["ab", "c"], stream=True, **how):
        rows[row] += piece
    assert rows == whole
    assert list(generate(model, [65, 66], stream=True, **how)) == generate(model, [65, 66], **how)


# -- state ------------------------------------------------------------------------------------------------------------------


def test_a_prompt_read_once_is_continued_many_times(model, tmp_path):
    prefix = prefill(model, "once upon a")
    states.save(prefix, tmp_path / "prefix.safetensors")
    loaded = states.load(tmp_path / "prefix.safetensors")
    assert isinstance(loaded, Prefix)
    how = {"max_new_tokens": 9, "repetition_penalty": 1.5, "seed": 2}
    alone = generate(model, "once upon a", **how)
    assert generate(model, state=loaded, **how) == alone
    assert generate(model, state=prefix, **how) == alone, "the first continuation changed the prefix"
    branches = generate(model, state=states.select(loaded, [0, 0, 0]), **how)
    assert branches[0] == alone
    assert branches == generate(model, "once upon a", num_return_sequences=3, **how)
    assert len(set(branches)) > 1
    texts = generate(model, [" time", " hill"], state=states.select(loaded, [0, 0]), temperature=0, max_new_tokens=5)
    assert texts == generate(model, ["once upon a time", "once upon a hill"], temperature=0, max_new_tokens=5)


def test_the_returned_state_has_read_prompt_and_continuation(model):
    prompts = [list(b"ab"), list(b"cdefg"), list(b"h")]
    free = generate(model, prompts, max_new_tokens=12, temperature=0, eos_token_id=())
    end = next(token for token in free[0][2:9] if token not in free[0][:2])
    out, prefix = generate(model, prompts, max_new_tokens=12, temperature=0, eos_token_id=end, return_state=True)
    assert len({len(ids) for ids in out}) > 1
    again = prefill(model, [a + b for a, b in zip(prompts, out, strict=True)])
    torch.testing.assert_close(prefix.state.h, again.state.h)
    torch.testing.assert_close(prefix.logits, again.logits)
    assert torch.equal(prefix.seen, again.seen)


def test_a_stream_has_the_state_at_its_end(model):
    stream = generate(model, "ab", max_new_tokens=4, seed=0, stream=True, return_state=True)
    assert isinstance(stream, Stream)
    assert stream.state is None
    text = "".join(stream)
    expected_text, expected = generate(model, "ab", max_new_tokens=4, seed=0, return_state=True)
    assert text == expected_text
    assert torch.equal(stream.state.state.h, expected.state.h)


def test_a_state_of_another_model_is_refused(model):
    other = Toy(d=16, tokenizer=Letters())
    with pytest.raises(ValueError, match=r"another model: state.*shape \(1, 16\), this model's has \(1, 24\)"):
        generate(model, "a", state=other.init_state(1))
    with pytest.raises(ValueError, match="another model: its structure"):
        generate(model, "a", state=(other.init_state(1),))
    with pytest.raises(ValueError, match="the state holds 2 rows, the prompt 1"):
        generate(model, "a", state=model.init_state(2))
    small = Toy(vocab_size=100)
    with pytest.raises(ValueError, match="another model: it has 100 logits"):
        generate(model, state=prefill(small, [1]))
    with pytest.raises(ValueError, match="Prefix"):
        generate(model, state=model.init_state(1))


# -- the library's own models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mamba-tiny", "mamba2-tiny"])
def test_language_models(name, tmp_path):
    torch.manual_seed(3)
    model = create_model(name).double()
    prompts = [[5], list(range(40, 57)), [1, 2, 3]]
    how = {"max_new_tokens": 8, "temperature": 0}
    expected = []
    for ids in prompts:
        ids = list(ids)
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids]), logits_at="last").argmax()))
        expected.append(ids[-8:])
    for chunk_size in (3, 1024):
        out, prefix = generate(model, prompts, chunk_size=chunk_size, return_state=True, **how)
        assert out == expected
        again = prefill(model, [a + b for a, b in zip(prompts, out, strict=True)])
        torch.testing.assert_close(states.tensors(prefix), states.tensors(again))
    states.save(prefill(model, prompts, chunk_size=2), tmp_path / "prefix")
    assert generate(model, state=states.load(tmp_path / "prefix"), **how) == expected
    other = create_model("mamba2-tiny" if name == "mamba-tiny" else "mamba-tiny")
    with pytest.raises(ValueError, match="another model"):
        generate(model, [1], state=other.init_state(1))


@pytest.mark.parametrize("name", ["mamba-tiny", "mamba2-tiny"])
def test_greedy_equals_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    from statescan.interop import export_pretrained

    torch.manual_seed(8)
    model = create_model(name)
    export_pretrained(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(0, 61, (3, 7))
    how = {"max_new_tokens": 12, "repetition_penalty": 1.3}
    expected = theirs.generate(ids, do_sample=False, eos_token_id=None, pad_token_id=0, **how)[:, 7:]
    assert generate(model, ids, do_sample=False, **how).tolist() == expected.tolist()


# -- the model is left as it was --------------------------------------------------------------------------------------------


def test_training_mode_comes_back_and_dropout_is_off_meanwhile():
    model = Toy(tokenizer=Letters())
    model.recurrent.eval()
    modes = [module.training for module in model.modules()]
    expected = by_hand(Toy().eval(), list(b"ab"), 5)
    assert generate(model, list(b"ab"), max_new_tokens=5, temperature=0, eos_token_id=()) == expected
    assert [module.training for module in model.modules()] == modes
    for _ in generate(model, "ab", max_new_tokens=5, stream=True):
        assert [module.training for module in model.modules()] == modes
        assert torch.is_grad_enabled()
    assert not prefill(model, "ab").logits.requires_grad


def test_nan_in_a_weight_is_named():
    model = Toy(tokenizer=Letters())
    with torch.no_grad():
        model.recurrent.weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"logits hold NaN \(row 0\): the weight recurrent.weight"):
        generate(model, "ab")
    clean = Toy(tokenizer=Letters())
    prefix = prefill(clean, "a")
    with pytest.raises(ValueError, match="all weights are finite"):
        generate(clean, state=prefix._replace(logits=prefix.logits * float("nan")))
