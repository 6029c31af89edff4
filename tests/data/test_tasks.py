"""The generated tasks: what they promise about their rows, checked against oracles."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from statescan.data.tasks import (
    MQAR,
    TASKS,
    UNASKED,
    Copy,
    Delay,
    Examples,
    InContextLanguage,
    InductionHeads,
    JointRecall,
    Needle,
    Parity,
    Permutation,
    SelectiveCopying,
    random_automaton,
)
from statescan.data.tasks.base import ClassTask
from statescan.spec import Spec


def answers(task, rows: int = 64) -> tuple[np.ndarray, np.ndarray]:
    found = task.sample(rows, 3)
    return found.ids.numpy(), found.targets.numpy()


@pytest.mark.parametrize("cls", TASKS)
def test_rows_repeat_by_seed_and_keep_to_the_vocabulary(cls):
    task = cls()
    assert Spec.from_dict(Spec(cls).to_dict())() == task
    one, again, other, longer = task.sample(8, 1, 2), task.sample(8, 1, 2), task.sample(8, 1, 3), task.sample(3, 2)
    a_class = isinstance(task, ClassTask)
    assert torch.equal(one.ids, again.ids)
    right, repeated = (found.labels if a_class else found.targets for found in (one, again))
    assert torch.equal(right, repeated)
    assert not torch.equal(one.ids, other.ids)
    for found in (one, longer):
        right = found.labels if a_class else found.targets
        assert found.ids.dtype == right.dtype == torch.int64
        assert right.shape == (found.ids.shape[:1] if a_class else found.ids.shape)
        asked = right[right != UNASKED]
        assert len(asked) > 0
        for values, choices in ((found.ids, task.vocab_size), (asked, task.num_classes if a_class else task.vocab_size)):
            assert int(values.min()) >= 0
            assert int(values.max()) < choices
    assert 0 < task.chance <= 0.5
    for test in task.tests().values():
        assert test.vocab_size == task.vocab_size
        assert test.chance == task.chance


def test_right_answers_are_counted_where_they_are_asked_for():
    found = Examples(torch.zeros(1, 4, dtype=torch.long), torch.tensor([[2, UNASKED, 1, 0]]))
    assert found.right(torch.tensor([[2, 0, 1, 1]])) == (2, 3)
    allowed = torch.zeros(1, 4, 3, dtype=torch.bool)
    allowed[0, 0, 1] = allowed[0, 1] = allowed[0, 3, 2] = True
    assert found._replace(allowed=allowed).right(torch.tensor([[1, 0, 1, 2]])) == (2, 3)


# -- recall -------------------------------------------------------------------------------------------------------------------


def test_mqar_asks_for_the_value_that_stood_behind_the_key():
    task = MQAR(vocab_size=64, length=80, pairs=10)
    ids, targets = answers(task)
    for row, target in zip(ids, targets, strict=True):
        keys, values = row[0:20:2], row[1:20:2]
        assert len(set(keys)) == len(set(values)) == 10
        assert keys.min() > 0
        assert keys.max() < 32 <= values.min()
        asked = np.flatnonzero(target != UNASKED)
        assert len(asked) == 10
        assert asked.min() >= 20
        assert (asked % 2 == 0).all()
        stored = dict(zip(keys, values, strict=True))
        assert [stored[k] for k in row[asked]] == list(target[asked])
        assert set(row[asked]) == set(keys)


def test_mqar_without_noise_is_the_same_with_zeros_between_the_questions():
    task = MQAR(vocab_size=64, length=80, pairs=10, noise=False)
    ids, targets = answers(task)
    loud, asked = answers(replace(task, noise=True))
    assert (targets == asked).all()
    said = targets != UNASKED
    said[:, :20] = True
    assert (ids[said] == loud[said]).all()
    assert (ids[~said] == 0).all()
    assert (loud[~said] != 0).any()


def test_mqar_gaps_follow_their_power_law():
    near = MQAR(vocab_size=16, length=204, pairs=2, power=0.01)
    places = np.concatenate([np.flatnonzero(row != UNASKED) for row in answers(near, 2000)[1]])
    gaps = (places - 4) // 2 + 1
    # weights g^-0.99 over 100 gaps: the first ten hold 56 %; two draws without replacement spread a little
    assert 0.48 < np.mean(gaps <= 10) < 0.60
    flat = np.concatenate([np.flatnonzero(row != UNASKED) for row in answers(replace(near, power=1.0), 2000)[1]])
    assert abs(np.mean((flat - 4) // 2 + 1) - 50.5) < 2


def test_joint_recall_needs_context_and_key():
    task = JointRecall(contexts=6, keys=7)
    ids, targets = answers(task, 300)
    assert ids.shape[1] == 2 + 2 * 6 * (1 + 2 * 7)
    half = ids.shape[1] // 2
    by_key_alone = total = 0
    for row, target in zip(ids, targets, strict=True):
        assert row[0] == 1
        assert row[half] == 4
        table, by_key, context = {}, {}, None
        for token, following in itertools.pairwise(row[1:half]):
            if token >= 42:
                context = token
            elif token >= 26:
                table[context, token] = following
                by_key.setdefault(token, following)
        assert len(table) == 42
        seen = []
        for t in range(half + 1, len(row)):
            if row[t] >= 42:
                context = row[t]
            elif row[t] >= 26:
                seen.append((context, row[t]))
                assert target[t] == table[context, row[t]] == row[t + 1]
                by_key_alone += by_key[row[t]] == target[t]
                total += 1
            else:
                assert target[t] == UNASKED
        assert sorted(seen) == sorted(table)
        assert seen != list(table)
        assert (target[: half + 1] == UNASKED).all()
    expected = 1 / 6 + (1 - 1 / 6) / 16
    assert abs(by_key_alone / total - expected) < 0.02


def test_induction_heads_asks_for_what_followed_the_special_token():
    task = InductionHeads(length=40, test_lengths=(90,))
    for test, length in zip(task.tests().values(), (40, 90), strict=True):
        ids, targets = answers(test)
        assert ids.shape[1] == length
        for row, target in zip(ids, targets, strict=True):
            place, end = np.flatnonzero(row == 0)
            assert end == length - 1
            assert target[end] == row[place + 1] != 0
            assert (target[:end] == UNASKED).all()
    # every place occurs
    assert len({int(np.flatnonzero(row == 0)[0]) for row in answers(task, 2000)[0]}) == 38


def test_needles_hold_what_is_asked_for_and_do_not_touch():
    task = Needle(length=60, needles=4, digits=3, test_lengths=(120,))
    for test in task.tests().values():
        ids, targets = answers(test, 300)
        for row, target in zip(ids, targets, strict=True):
            marks = np.flatnonzero(row == 0)
            assert len(marks) == 5
            assert (np.diff(marks) >= 5).all()
            assert marks[-1] == len(row) - 5
            stored = {row[m + 1]: row[m + 2 : m + 5] for m in marks[:-1]}
            assert len(stored) == 4
            key = row[-4]
            assert (target[-4:-1] == stored[key]).all()
            assert (target[:-4] == UNASKED).all()
            assert target[-1] == UNASKED
            assert (row >= 27).sum() == len(row) - 25
    firsts = np.array([np.flatnonzero(row == 0)[0] for row in answers(replace(task, needles=1), 4000)[0]])
    assert firsts.min() == 0
    assert firsts.max() == 60 - 10
    tight = Needle(length=10, needles=1, digits=3, test_lengths=(10,))
    assert (answers(tight)[0][:, [0, 5]] == 0).all()


# -- copying ------------------------------------------------------------------------------------------------------------------


def test_selective_copying_asks_for_the_data_in_order():
    ids, targets = answers(SelectiveCopying(length=50, tokens=6), 200)
    for row, target in zip(ids, targets, strict=True):
        assert list(row[row >= 2]) == list(target[50:])
        assert (row[50:] == 1).all()
        assert (row[:50] != 1).all()
        assert (target[:50] == UNASKED).all()
    spread = np.mean(np.nonzero(ids[:, :50])[1])
    assert abs(spread - 24.5) < 1.5


def test_copy_and_delay():
    task = Copy(length=9, test_lengths=(20,))
    for test in task.tests().values():
        ids, targets = answers(test)
        n = test.length
        assert (ids[:, 0] == 0).all()
        assert (ids[:, n + 1] == 1).all()
        assert (targets[:, n + 1 :] == ids[:, 1 : n + 1]).all()
        assert (targets[:, n + 1 : -1] == ids[:, n + 2 :]).all()  # the next id, as in language modelling
        assert (targets[:, : n + 1] == UNASKED).all()
    ids, targets = answers(Delay(length=30, delay=7))
    assert (targets[:, 7:] == ids[:, :-7]).all()
    assert (targets[:, :7] == UNASKED).all()
    ids, targets = answers(Delay(length=30, delay=0))
    assert (targets == ids).all()


# -- state tracking -----------------------------------------------------------------------------------------------------------


def test_parity_is_the_number_of_ones():
    ids, targets = answers(Parity(length=30, test_lengths=(50,)))
    assert (targets == ids.cumsum(1) % 2).all()
    assert abs(ids.mean() - 0.5) < 0.03


@pytest.mark.parametrize("items", [3, 5])
def test_permutations_are_composed_in_order(items):
    task = Permutation(items=items, length=12, test_lengths=(16,))
    permutations = list(itertools.permutations(range(items)))
    assert task.vocab_size == len(permutations)
    ids, targets = answers(task, 8)
    for row, target in zip(ids, targets, strict=True):
        things = tuple(range(items))
        for letter, answer in zip(row, target, strict=True):
            things = tuple(permutations[letter][i] for i in things)  # first what was, then the letter
            assert permutations[answer] == things


@pytest.mark.parametrize("task", [Parity(length=10, test_lengths=(25, 40)), Permutation(length=10, test_lengths=(25, 40))])
def test_longer_words_count_beyond_the_trained_length_only(task):
    tests = task.tests()
    assert list(tests) == ["length 10", "positions 11-25", "positions 11-40"]
    longest = tests["positions 11-40"].sample(5, 0)
    assert longest.ids.shape == (5, 40)
    assert (longest.targets[:, :10] == UNASKED).all()
    assert (longest.targets[:, 10:] != UNASKED).all()


# -- languages ----------------------------------------------------------------------------------------------------------------


def test_automata_are_minimal_and_their_edges_differ():
    rng = np.random.default_rng(0)
    for _ in range(200):
        edges = random_automaton(rng, 18).edges
        states = len(edges)
        assert states <= 12
        out = (edges >= 0).sum(1)
        assert out.min() >= 1
        assert out.max() <= 3
        # reachable, and no two states alike: some word tells every pair apart
        reached = {0}
        for _ in range(states):
            reached |= {int(t) for s in reached for t in edges[s] if t >= 0}
        assert reached == set(range(states))
        apart = {(a, b) for a in range(states) for b in range(states) if ((edges[a] >= 0) != (edges[b] >= 0)).any()}
        for _ in range(states):
            apart |= {
                (a, b)
                for a in range(states)
                for b in range(states)
                if any(x >= 0 and y >= 0 and (x, y) in apart for x, y in zip(edges[a], edges[b], strict=True))
            }
        assert len(apart) == states * (states - 1)


def test_languages_in_context_accept_their_words(monkeypatch):
    from statescan.data.tasks import language

    made = []
    original = language.random_automaton
    monkeypatch.setattr(language, "random_automaton", lambda rng, letters: made.append(original(rng, letters)) or made[-1])
    task = InContextLanguage(length=200, longest=20)
    found = task.sample(40, 5)
    assert found.allowed is not None
    lengths = []
    for automaton, row, target, allowed in zip(made, found.ids.tolist(), found.targets.tolist(), found.allowed.numpy(), strict=True):
        words = "".join(chr(i) for i in row).split(chr(0))
        assert words[0] == ""  # the separator comes first
        assert all(words[1:-1])
        assert all(automaton.accepts([ord(c) - 1 for c in word]) for word in words)
        lengths += [len(word) for word in words[1:-1]]
        state = 0
        for t, letter in enumerate(row):
            state = int(automaton.edges[state, letter - 1]) if letter else 0
            assert set(np.flatnonzero(allowed[t])) == {1 + i for i in np.flatnonzero(automaton.edges[state] >= 0)}
            if t + 1 < len(row):
                assert target[t] == (row[t + 1] or UNASKED)
    assert max(lengths) <= 20
    assert not automaton.accepts([int(np.flatnonzero(automaton.edges[0] < 0)[0])])
    # what was predicted need not be what came, as long as it could have
    best = found.allowed.float().argmax(-1)
    right, asked = found.right(best)
    assert right == asked
    assert int((best == found.targets).sum()) < 0.8 * asked


def test_impossible_tasks_say_why():
    for make, words in (
        (lambda: MQAR(length=30, pairs=8), "4 \\* pairs"),
        (lambda: MQAR(vocab_size=16, pairs=8), "at least 18"),
        (lambda: JointRecall(keys=17), "1 to 16"),
        (lambda: InductionHeads(length=2), "3 or more"),
        (lambda: Needle(length=11), "12 places"),
        (lambda: SelectiveCopying(length=8, tokens=9), "1..length"),
        (lambda: Delay(length=8, delay=8), "0..length-1"),
        (lambda: Parity(length=40, test_lengths=(40,)), "longer than"),
        (lambda: Permutation(items=7), "2..6"),
        (lambda: InContextLanguage(letters=3), "4 or more"),
        (lambda: Copy(length=0), "positive"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
