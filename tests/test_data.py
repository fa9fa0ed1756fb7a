"""The packed-token stream: each token once, the same rows for everybody, exact wherever it is interrupted."""

import collections
import hashlib
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import WORDS, documents_of, word_tokenizer, write_jsonl

from genesis_hf.config import Source
from genesis_hf.data.order import IndexPermutation
from genesis_hf.data.packing import best_fit
from genesis_hf.data.prefetch import Prefetcher
from genesis_hf.data.selection import Selection, document_hash
from genesis_hf.data.stream import PackedStream
from genesis_hf.errors import UserError
from genesis_hf.modeling import IGNORE_INDEX

LENGTH = 16
EOS = WORDS + 1

lengths_strategy = st.lists(st.integers(1, 60), min_size=1, max_size=30)


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """The tokenizer of `small_data`."""
    return word_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def make_source(tmp_path_factory, words):
    """`make_source(name, texts, prepared=False, **keys)`: a source of these documents, as text or as token shards."""

    def make(name, texts, prepared=False, weight=1.0, **keys):
        folder = tmp_path_factory.mktemp("source")
        path = write_jsonl(folder / f"{name}.jsonl", texts)
        if not prepared:
            return Source(name=name, weight=weight, paths=[path], **keys)
        return Source(name=name, weight=weight, prepared=prepare(folder, name, path, words), **keys)

    return make


def prepare(folder, name, path, tokenizer, **recipe):
    """Token shards of a file, made by the package's own preparation; the folder."""
    from genesis_hf.config import PretrainRecipe
    from genesis_hf.data.preparation.prepare import PrepareSettings
    from genesis_hf.data.preparation.prepare import prepare as prepare_tokens

    tokenizer.save_pretrained(str(folder / "tokenizer"))
    recipe = PretrainRecipe(
        output_dir=str(folder / "run"),
        model={},
        tokenizer=str(folder / "tokenizer"),
        sources=[Source(name=name, paths=[path])],
        max_steps=1,
        warmup_steps=0,
        **recipe,
    )
    prepare_tokens(recipe, PrepareSettings(prepared_dir=str(folder / "prepared"), num_proc=1, shard_tokens=97))
    return str(folder / "prepared" / name)


def stream_of(sources, tokenizer, rows_per_step=4, **keys):
    return PackedStream(sources, tokenizer, LENGTH, rows_per_step, **keys)


def rows_of(stream, steps=None):
    """Every row's ids, in order, over all steps (of this rank)."""
    return [row for batch, _ in itertools.islice(stream, steps) for row in batch.input_ids.tolist()]


def hashes_of(stream, steps):
    return [hashlib.sha256(np.array(row, dtype="<i4").tobytes()).hexdigest() for row in rows_of(stream, steps)]


def tokens_in(batches):
    """How often each token was trained on or read: padding left out, which is EOS at a position 0 without a label."""
    counts = collections.Counter()
    for batch, _ in batches:
        padding = (batch.input_ids == EOS) & (batch.position_ids == 0)
        counts.update(batch.input_ids[~padding].tolist())
    return counts


# ---------------------------------------------------------------------------------------------------------
# Each token once
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(lengths_strategy, min_size=1, max_size=3),
    prepared=st.lists(st.booleans(), min_size=3, max_size=3),
    packing=st.sampled_from(["concatenate", "best_fit"]),
    block=st.sampled_from([0, 3, 1024]),
    rows=st.sampled_from([0, 5, 1024]),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_every_token_of_every_document_appears_exactly_once_an_epoch(
    make_source, words, lengths, prepared, packing, block, rows, epochs, seed
):
    sources, first = [], 0
    for number, part in enumerate(lengths):
        texts = documents_of(part, first)
        sources.append(make_source(f"s{number}", texts, prepared[number], max_epochs=epochs))
        first += sum(part)
    stream = stream_of(
        sources, words, packing=packing, shuffle_block=block, shuffle_rows=rows, seed=seed, when_dry="reweight"
    )
    found = tokens_in(stream)
    ends = epochs * sum(map(len, lengths))
    assert found.pop(EOS, 0) <= ends  # an end that begins a row looks like padding
    assert found == dict.fromkeys(range(first), epochs)
    state = stream.state()
    for source, part in zip(sources, lengths, strict=True):
        assert state["tokens"][source.name] == epochs * (sum(part) + len(part))
        assert state["epochs"][source.name] == epochs - 1


@settings(max_examples=20, deadline=None)
@given(lengths=lengths_strategy, prepared=st.booleans())
def test_without_shuffling_rows_are_the_documents_joined_and_cut(make_source, words, lengths, prepared):
    source = make_source("x", documents_of(lengths), prepared)
    stream = stream_of([source], words, 1, shuffle_block=0, shuffle_rows=0)
    first, joined = 0, []
    for length in lengths:
        joined += [*range(first, first + length), EOS]
        first += length
    expected = [token for token, _ in zip(itertools.cycle(joined), range(3 * len(joined) + LENGTH), strict=False)]
    steps = len(expected) // LENGTH
    assert list(itertools.chain(*rows_of(stream, steps))) == expected[: steps * LENGTH]


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 5000), key=st.integers(0, 3))
def test_a_computed_permutation_is_one(size, key):
    values = IndexPermutation(size, key)(np.arange(size))
    assert sorted(values.tolist()) == list(range(size))
    some = np.arange(size)[:: max(1, size // 7)]
    assert (IndexPermutation(size, key)(some) == values[some]).all()


def test_computed_permutations_look_random():
    values = IndexPermutation(10_000, "a")(np.arange(10_000))
    other = IndexPermutation(10_000, "b")(np.arange(10_000))
    assert abs(np.corrcoef(values, np.arange(10_000))[0, 1]) < 0.05
    assert (values == other).mean() < 0.01
    steps = np.abs(np.diff(values))
    assert 3000 < steps.mean() < 3667  # a third of the size, for a random order


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=40), capacity=st.integers(1, 20))
def test_best_fit_rows_hold_each_token_once_and_cut_no_document_that_fits(lengths, capacity):
    rows = best_fit(lengths, capacity)
    pieces = collections.defaultdict(list)
    for row in rows:
        assert 0 < sum(stop - start for _, start, stop in row) <= capacity
        for document, start, stop in row:
            pieces[document].append((start, stop))
    for document, length in enumerate(lengths):
        spans = sorted(pieces[document])
        assert len(spans) == -(-length // capacity)
        assert [token for start, stop in spans for token in range(start, stop)] == list(range(length))


@pytest.mark.parametrize("prepared", [False, True])
def test_best_fit_reports_padding_and_truncation(make_source, words, prepared):
    lengths = [9, 20, 5, 5, 40, 3, 2, 2, 11, 30] * 4
    source = make_source("x", documents_of(lengths), prepared, max_epochs=1)
    batches = list(stream_of([source], words, packing="best_fit", when_dry="stop"))
    counts = batches[-1][1]["records"]["x"]
    assert counts["truncated"] == sum(length + 1 > LENGTH for length in lengths)
    assert counts["padding"] == counts["rows"] * LENGTH - sum(length + 1 for length in lengths)
    assert counts["padding"] / counts["rows"] / LENGTH < 0.1


# ---------------------------------------------------------------------------------------------------------
# The same rows for everybody
# ---------------------------------------------------------------------------------------------------------


def mixed(make_source, lengths, prepared, weights):
    return [
        make_source(f"s{i}", documents_of(part, 1500 * i), prepared[i], weights[i]) for i, part in enumerate(lengths)
    ]


mixtures = {
    "lengths": st.lists(lengths_strategy, min_size=3, max_size=3),
    "prepared": st.lists(st.booleans(), min_size=3, max_size=3),
    "weights": st.lists(st.integers(1, 20), min_size=3, max_size=3),
    "packing": st.sampled_from(["concatenate", "best_fit"]),
    "block": st.sampled_from([0, 7, 1024]),
    "seed": st.integers(0, 3),
}


@settings(max_examples=12, deadline=None)
@given(**mixtures)
def test_rows_do_not_depend_on_processes_or_workers(
    make_source, words, lengths, prepared, weights, packing, block, seed
):
    sources = mixed(make_source, lengths, prepared, weights)
    keys = {"packing": packing, "shuffle_block": block, "shuffle_rows": block, "seed": seed}
    whole = hashes_of(stream_of(sources, words, **keys), 10)
    assert len(whole) == 40
    for world in (2, 4):
        ranks = [hashes_of(stream_of(sources, words, rank=r, world_size=world, **keys), 10) for r in range(world)]
        assert [h for together in zip(*ranks, strict=True) for h in together] == whole
    for workers, depth in ((1, 1), (3, 4)):
        stream = stream_of(sources, words, num_workers=workers, **keys)
        prefetcher = Prefetcher(stream, depth)
        found = [row for _ in range(10) for row in prefetcher.take()[0].input_ids.tolist()]
        prefetcher.close()
        assert [hashlib.sha256(np.array(row, dtype="<i4").tobytes()).hexdigest() for row in found] == whole


@settings(max_examples=25, deadline=None)
@given(**mixtures, cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_interruptions_and_other_world_sizes_give_the_same_rows(
    make_source, words, lengths, prepared, weights, packing, block, seed, cuts
):
    sources = mixed(make_source, lengths, prepared, weights)
    keys = {"packing": packing, "shuffle_block": block, "shuffle_rows": block, "seed": seed}
    uninterrupted = stream_of(sources, words, **keys)
    whole = rows_of(uninterrupted, sum(cuts))
    state, parts = None, []
    for number, steps in enumerate(cuts):
        world = [1, 2, 4][number % 3]
        ranks = [
            stream_of(sources, words, rank=r, world_size=world, state=state, num_workers=number % 2, **keys)
            for r in range(world)
        ]
        for _ in range(steps):
            outs = [next(stream) for stream in ranks]
            for together in zip(*(batch.input_ids.tolist() for batch, _ in outs), strict=True):
                parts += together
            assert len({json.dumps(s) for _, s in outs}) == 1
            assert len({batch.num_items for batch, _ in outs}) == 1
            labels = sum(int((batch.labels[:, 1:] != IGNORE_INDEX).sum()) for batch, _ in outs)
            assert labels == outs[0][0].num_items
            state = json.loads(json.dumps(outs[0][1]))
    assert parts == whole
    assert json.dumps(state) == json.dumps(uninterrupted.state())


def test_sixty_four_ranks_of_prepared_tokens_share_every_row(make_source, words):
    source = make_source("x", documents_of([7, 30, 3, 55, 12] * 50), True)
    whole = hashes_of(stream_of([source], words, 64), 4)
    ranks = [hashes_of(stream_of([source], words, 64, rank=r, world_size=64), 4) for r in range(64)]
    assert [h for together in zip(*ranks, strict=True) for h in together] == whole
    assert len(set(whole)) == min(len(whole), -(-(107 * 50 + 250) // LENGTH))


@settings(max_examples=20, deadline=None)
@given(
    lengths=lengths_strategy,
    prepared=st.booleans(),
    block=st.sampled_from([0, 3, 1024]),
    rows=st.sampled_from([0, 5, 1024]),
    seed=st.integers(0, 3),
)
def test_nothing_comes_a_second_time_before_everything_has_come(
    make_source, words, lengths, prepared, block, rows, seed
):
    source = make_source("x", documents_of(lengths), prepared)
    stream = stream_of([source], words, 1, shuffle_block=block, shuffle_rows=rows, seed=seed)
    total = sum(lengths) + len(lengths)
    for epoch in range(1, 4):
        found = list(itertools.chain(*rows_of(stream, -(-epoch * total // LENGTH) - stream.rows_taken)))
        if epoch == 1:
            assert sorted(found[:total]) == sorted([*range(sum(lengths)), *[EOS] * len(lengths)])
        assert stream.state()["epochs"]["x"] == (stream.rows_taken * LENGTH - 1) // total


def test_skipped_rows_are_the_ones_that_would_have_come(make_source, words):
    sources = mixed(make_source, [[9, 40, 3]] * 3, [True, False, True], [3, 2, 1])
    whole = rows_of(stream_of(sources, words), 8)
    stream = stream_of(sources, words)
    stream.take(12)
    assert rows_of(stream, 5) == whole[12:]


# ---------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_positions_restart_and_boundaries_carry_no_label(make_source, words, packing, prepared):
    source = make_source("x", documents_of([3, 8, 25, 1, 13] * 20), prepared)
    batch, _ = next(stream_of([source], words, 8, packing=packing))
    ids, positions, labels = batch.input_ids, batch.position_ids, batch.labels
    for row, column in itertools.product(range(8), range(LENGTH - 1)):
        if ids[row, column] == EOS:
            assert positions[row, column + 1] == 0
            assert labels[row, column + 1] == IGNORE_INDEX
        else:
            assert positions[row, column + 1] == positions[row, column] + 1
            assert ids[row, column + 1] in (ids[row, column] + 1, EOS)
    assert (positions[:, 0] == 0).all()
    kept = labels != IGNORE_INDEX
    assert (kept == (positions > 0)).all()
    assert (labels[kept] == ids[kept]).all()
    assert batch.num_items == kept.sum()

    batch, _ = next(stream_of([source], words, 8, packing=packing, reset_positions=False))
    assert batch.position_ids is None
    assert (batch.labels == labels).all()
    batch, _ = next(stream_of([source], words, 8, packing=packing, mask_boundaries=False))
    assert (batch.position_ids == positions).all()
    assert batch.num_items == (batch.labels[:, 1:] != IGNORE_INDEX).sum()
    if packing == "concatenate":
        assert (batch.labels == batch.input_ids).all()


def test_the_last_step_is_filled_with_padding_that_counts_for_nothing(make_source, words):
    source = make_source("x", documents_of([20, 5]), max_epochs=1)
    batches = list(stream_of([source], words, 4))
    assert len(batches) == 1
    batch = batches[0][0]
    assert batch.input_ids.shape == (4, LENGTH)
    assert batch.num_items == 27 - 3  # one label less for each document begun in a row: 16 + 5, then 6
    assert (batch.labels[:, 1:] != IGNORE_INDEX).sum() == batch.num_items
    assert batch.tokens_by_source == {"x": 27}


# ---------------------------------------------------------------------------------------------------------
# Mixture
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    weights=st.lists(st.integers(1, 50), min_size=2, max_size=4), packing=st.sampled_from(["concatenate", "best_fit"])
)
def test_shares_are_of_tokens_and_off_by_less_than_a_row_each(make_source, words, weights, packing):
    lengths = [[3] * 40, [55] * 20, [14, 2, 30] * 9, [7] * 30]
    sources = [
        make_source(f"s{i}", documents_of(lengths[i], 1300 * i), False, weight) for i, weight in enumerate(weights)
    ]
    stream = stream_of(sources, words, shuffle_rows=0, packing=packing)
    for _ in range(30):
        _, state = next(stream)
    total = sum(state["tokens"].values())
    for source in sources:
        assert abs(state["tokens"][source.name] - total * source.weight / sum(weights)) <= LENGTH * len(weights)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_dry_source_stops_repeats_or_leaves_the_rest_to_others(make_source, words, prepared):
    small = make_source("small", documents_of([15] * 4), prepared)  # four rows
    large = make_source("large", documents_of([15] * 100, 2000), prepared)
    keys = {"shuffle_rows": 0}
    stopped = list(stream_of([small, large], words, 2, when_dry="stop", **keys))
    assert stopped[-1][1]["tokens"] == {"small": 64, "large": 64}
    going_on = list(stream_of([small, large], words, 2, when_dry="reweight", **keys))
    assert going_on[-1][1]["tokens"] == {"small": 64, "large": 1600}
    twice = list(stream_of([small, large], words, 2, when_dry="repeat", max_epochs=2, **keys))
    assert twice[-1][1]["tokens"] == {"small": 128, "large": 128}
    assert [state["epochs"]["small"] for _, state in twice] == [0] * 4 + [1] * 4
    for_ever = stream_of([small, large], words, 2, when_dry="repeat", **keys)
    assert len(rows_of(for_ever, 300)) == 600
    # the same, resumed in the middle
    state = json.loads(json.dumps(going_on[5][1]))
    rest = list(stream_of([small, large], words, 2, when_dry="reweight", state=state, **keys))
    assert [b.input_ids.tolist() for b, _ in rest] == [b.input_ids.tolist() for b, _ in going_on[6:]]


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(
    ("caps", "documents"), [({"max_documents": 3}, 3), ({"max_tokens": 35}, 3), ({"max_tokens": 32}, 2)]
)
def test_caps_end_the_epoch_with_the_first_documents(make_source, words, prepared, caps, documents):
    source = make_source("x", documents_of([15] * 10), prepared, max_epochs=2, **caps)
    found = tokens_in(stream_of([source], words))
    found.pop(EOS)
    assert found == dict.fromkeys(range(15 * documents), 2)


def test_new_weights_and_seed_from_a_step_on(make_source, words):
    sources = mixed(make_source, [[9, 40, 3] * 5] * 3, [True, False, False], [1, 1, 1])
    trunk = stream_of(sources, words, 8, shuffle_rows=16)
    states = [json.loads(json.dumps(next(trunk)[1])) for _ in range(12)]
    change = (6 * 8, {"s0": 8, "s1": 1, "s2": 1}, 99)
    keys = {"shuffle_rows": 16, "changes": [change]}
    branch = rows_of(stream_of(sources, words, 8, **keys), 20)
    assert branch[:48] == rows_of(stream_of(sources, words, 8, shuffle_rows=16), 6)
    # a branch that leaves the trunk anywhere before the change has the same rows
    for step in (2, 3, 6):
        assert rows_of(stream_of(sources, words, 8, state=states[step - 1], **keys), 20 - step) == branch[8 * step :]
    with pytest.raises(UserError, match="data_changes before row"):
        stream_of(sources, words, 8, state=states[8], **keys)
    stream = stream_of(sources, words, 8, **keys)
    stream.take(48)
    before = dict(stream.tokens)
    stream.take(80)
    gained = {name: stream.tokens[name] - before[name] for name in before}
    assert gained == {"s0": 64 * LENGTH, "s1": 8 * LENGTH, "s2": 8 * LENGTH}


# ---------------------------------------------------------------------------------------------------------
# Held out, excluded, unreadable
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(share=st.floats(0.05, 0.9), excluded=st.sets(st.integers(0, 39), max_size=5))
def test_held_out_and_excluded_documents_are_never_trained_on(make_source, words, share, excluded):
    texts = documents_of([9] * 40)
    selection = Selection(share, frozenset(document_hash(texts[i]) for i in excluded))
    kept = [i for i, text in enumerate(texts) if selection.use(text) == "train"]
    stream = stream_of([make_source("x", texts, max_epochs=1)], words, selection=selection)
    if not kept:
        with pytest.raises(UserError, match="no document to train on"):
            list(stream)
        return
    found = tokens_in(stream)
    found.pop(EOS, None)
    assert found == dict.fromkeys([token for i in kept for token in range(9 * i, 9 * i + 9)], 1)
    counts = stream.state()["records"]["x"]
    assert counts["documents"] + counts["held_out"] + counts["excluded"] == 40


def test_unreadable_records_are_left_out_counted_and_reported_up_to_the_limit(tmp_path, words):
    lines = [json.dumps({"text": text}) for text in documents_of([9] * 6)]
    lines[2:2] = ["{broken", '{"text": 7}', '{"other": "x"}', '{"text": ""}']
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines) + "\n")
    source = Source(name="x", paths=[str(path)], max_epochs=1)
    stream = stream_of([source], words, max_bad_records=3)
    found = tokens_in(stream)
    found.pop(EOS)
    assert found == dict.fromkeys(range(54), 1)
    assert [record.where for _, record in stream.bad_records] == [f"{path}, line {n}" for n in (3, 4, 5)]
    assert stream.state()["records"]["x"] == {
        "documents": 6, "empty": 1, "filtered": 0, "held_out": 0, "excluded": 0, "bad": 3
    }  # fmt: skip
    with pytest.raises(UserError, match=r"x\.jsonl, line 5: .*unreadable records: 3, max_bad_records: 2"):
        list(stream_of([source], words, max_bad_records=2))


# ---------------------------------------------------------------------------------------------------------
# State
# ---------------------------------------------------------------------------------------------------------


def test_a_state_is_small(make_source, words):
    shards = make_source("shards", documents_of([5, 9]), True).prepared
    sources = [make_source(f"s{i}", documents_of([5, 9], 14 * i)) for i in range(32)]
    sources += [Source(name=f"p{i}", prepared=shards) for i in range(32)]
    _, state = next(stream_of(sources, words, 64))
    assert len(json.dumps(state)) < 100_000


@pytest.mark.parametrize(
    ("change", "words_of_refusal"),
    [
        ({"seed": 1}, "seed was 42, is 1"),
        ({"weight": 2.0}, r"source mine: weight was 1\.0, is 2\.0"),
        ({"texts": ["w1", "w2"] * 49 + ["w1", "w3"]}, "source mine has other files"),
        ({"when_dry": "stop"}, "when_dry was repeat, is stop"),
        ({"selection": Selection(0.1)}, "other documents are held out"),
        ({"name": "other"}, "source mine is gone; source other is new"),
        ({"shuffle_rows": 8}, "another shuffle_rows"),
        ({"packing": "best_fit"}, "another packing"),
    ],
)
def test_other_data_is_refused_with_the_difference(make_source, words, change, words_of_refusal):
    texts, name, weight = ["w1", "w2"] * 50, "mine", 1.0
    _, state = next(stream_of([make_source(name, texts, weight=weight)], words))
    texts, name = change.pop("texts", texts), change.pop("name", name)
    source = make_source(name, texts, weight=change.pop("weight", weight))
    with pytest.raises(UserError, match=words_of_refusal):
        stream_of([source], words, state=state, **change)
    if "another" not in words_of_refusal:
        stream = stream_of([source], words, state=state, accept_data_change=True, **change)
        assert stream.accepted
        next(stream)


def test_a_place_in_text_is_none_in_token_shards(make_source, words):
    texts = documents_of([9, 40, 3])
    _, state = next(stream_of([make_source("x", texts)], words))
    with pytest.raises(UserError, match="place is one in text, and the recipe names token shards"):
        stream_of([make_source("x", texts, True)], words, state=state, accept_data_change=True)


def test_accepted_weights_hold_from_the_next_block_on_and_lose_nothing(make_source, words):
    lengths = [[9, 40, 3] * 5] * 2
    before = mixed(make_source, lengths, [True, False], [1, 1])
    after = [Source(**{**vars(source), "weight": weight}) for source, weight in zip(before, (3, 1), strict=True)]
    trunk = rows_of(stream_of(before, words, 4, shuffle_rows=16), 4)
    stream = stream_of(before, words, 4, shuffle_rows=16)
    _, state = next(stream)
    changed = stream_of(after, words, 4, shuffle_rows=16, state=json.loads(json.dumps(state)), accept_data_change=True)
    assert rows_of(changed, 3) == trunk[4:]
    tokens = dict(changed.tokens)
    changed.take(32)
    assert changed.tokens["s0"] - tokens["s0"] == 24 * LENGTH


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("lengths", [[3] * 30, [3], [3] * 7 + [50]])
def test_a_place_beyond_the_end_of_accepted_data_ends_there(make_source, words, prepared, packing, lengths):
    keys = {"packing": packing, "shuffle_block": 4, "shuffle_rows": 0, "max_epochs": 2}
    before = stream_of([make_source("x", documents_of([45, 50, 55] * 4), prepared)], words, 1, **keys)
    after = make_source("x", documents_of(lengths), prepared)
    for _, state in itertools.islice(before, 40):  # of about 80
        state = json.loads(json.dumps(state))
        stream = stream_of([after], words, 1, state=state, accept_data_change=True, **keys)
        assert len(rows_of(stream, 100)) <= 2 * sum(lengths)
        lower = keys | {"max_epochs": 1}
        assert len(rows_of(stream_of([after], words, 1, state=state, accept_data_change=True, **lower), 100)) < 100


def test_a_prefetcher_keeps_order_and_passes_errors_on():
    def items():
        yield from range(5)
        raise UserError("broken at 5")

    for depth in (0, 2):
        prefetcher = Prefetcher(items(), depth)
        assert [prefetcher.take() for _ in range(6)] == [0, 1, 2, 3, 4, None]
        assert "broken at 5" in str(prefetcher.error)
    endless = Prefetcher(iter(range(10**9)))
    endless.take()
    endless.close()
    assert not endless._thread.is_alive()
    with pytest.raises(ZeroDivisionError):
        Prefetcher(iter(lambda: 1 // 0, 1)).take()
