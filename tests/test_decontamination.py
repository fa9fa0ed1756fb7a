import csv
import gzip
import json
import random
import re
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st

from genesis_hf.config import PretrainRecipe, Source, parse_recipe
from genesis_hf.data.contamination import scan as contamination_scan
from genesis_hf.data.contamination.decontaminate import (
    DecontaminateSettings,
    build_report,
    decontaminate,
    write_excluded,
)
from genesis_hf.data.contamination.evaluation_sets import find_sets, read_items
from genesis_hf.data.contamination.ngrams import NgramIndex, split_words
from genesis_hf.data.selection import Selection, document_hash, read_hashes
from genesis_hf.errors import UserError

WORDS = [f"{a}{b}" for a in "bdfgklmnprstvz" for b in ("ala", "eno", "ilu", "omer", "unda", "ash", "ith", "orn")]
ITEM = (
    "A train leaves the northern station at seven, carrying 240 passengers; how many hours pass before it meets "
    "the express that left the coast at nine?"
)


def prose(seed: int, count: int = 60) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choices(WORDS, k=count))


def write_jsonl(path: Path, records: list) -> str:
    lines = [json.dumps({"text": r} if isinstance(r, str) else r, ensure_ascii=False) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def scan(folder: Path, documents: list[str], items: list, recipe: dict | None = None, **given) -> dict:
    """The report about one training source "web" and one evaluation set "quiz"."""
    sources = [Source(name="web", paths=[write_jsonl(folder / "web.jsonl", documents)])]
    write_jsonl(folder / "quiz.jsonl", items)
    return run(folder, sources, recipe, **given)[0]


def run(folder: Path, sources: list[Source], recipe: dict | None = None, **given) -> tuple[dict, list[str]]:
    """The report, and the lines of the removal file."""
    options = {"evaluation_sets": [str(folder / "quiz.jsonl")], "decontamination_dir": str(folder / "out")}
    chosen = DecontaminateSettings(**{**options, "num_proc": 1, **given})
    base = {"output_dir": "none", "model": {}, "tokenizer": "none", "max_steps": 1000}
    recipe = PretrainRecipe(**base, sources=sources, **(recipe or {}))
    result = decontaminate(chosen, recipe)
    files = write_excluded(chosen, recipe, *result)
    return build_report(chosen, *result), Path(files[-1]).read_text().splitlines()


def ngrams_found(items: list[list[str]], text: str, **sizes) -> int:
    index = NgramIndex.build(items, **{"n": 13, "min_words": 8, "max_items": 20, **sizes})
    return len(set(index.find(split_words([text]))[2].tolist()))


# ---------------------------------------------------------------------------------------------------------
# What overlaps
# ---------------------------------------------------------------------------------------------------------


def test_an_item_is_found_whatever_its_case_punctuation_and_spacing():
    words = ITEM.split()
    forms = [ITEM, ITEM.upper(), " ".join(re.findall(r"\w+", ITEM)), " —\n".join(words), ITEM.replace(" ", "\u00a0")]
    fullwidth = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in ITEM)
    for form in [*forms, fullwidth]:
        assert ngrams_found([[ITEM]], f"{prose(1)} {form} {prose(2)}") == len(words) - 12
    assert ngrams_found([["naïve café résumé " * 5]], "NAI\u0308VE cafe\u0301 Re\u0301sume\u0301 " * 5) == 3


def test_one_word_fewer_than_an_ngram_is_no_overlap():
    words = ITEM.split()
    for start in range(len(words) - 12):
        assert ngrams_found([[ITEM]], f"{prose(1)} {' '.join(words[start : start + 12])} {prose(2)}") == 0
        assert ngrams_found([[ITEM]], f"{prose(1)} {' '.join(words[start : start + 13])} {prose(2)}") == 1


def test_an_ngram_does_not_span_two_documents_or_two_texts_of_an_item():
    words = ITEM.split()
    index = NgramIndex.build([[ITEM]], 13, 8, 20)
    assert len(index.find(split_words([" ".join(words[:12]), " ".join(words[12:24])]))[0]) == 0
    assert ngrams_found([[" ".join(words[:12]), " ".join(words[12:24])]], f"so {ITEM}", min_words=13) == 0


def test_a_short_item_counts_as_a_whole_and_only_from_eight_words_on():
    question = "Which metal is liquid at room temperature today?"
    assert ngrams_found([[question, "mercury"]], f"{prose(1)} {question} {prose(2)}") == 1
    assert ngrams_found([[question, "mercury"]], f"{prose(1)} which metal is liquid at room temperature") == 0
    assert ngrams_found([["Which metal is liquid at room temperature?"]], question) == 0
    assert ngrams_found([[question, ITEM]], f"{prose(1)} {question} {prose(2)}") == 0


def test_scripts_without_spaces_are_compared_by_characters():
    chinese = "春天的早晨我们沿着河岸慢慢走到古老的石桥旁边观看渔夫撒网捕鱼"
    assert ngrams_found([[chinese]], f"前言。{chinese[:13]}，{chinese[13:]}！后记") == len(chinese) - 25
    assert ngrams_found([[chinese]], f"前言{chinese[:25]}后记后记后记后记") == 0
    thai = "ในตอนเช้าของฤดูใบไม้ผลิเราเดินช้าๆไปตามริมฝั่งแม่น้ำจนถึงสะพานหินเก่าแก่เพื่อดูชาวประมงทอดแหจับปลา"
    assert ngrams_found([[thai]], f"คำนำ {thai} จบ") > 0
    assert ngrams_found([[thai]], thai[:77]) == 0
    mixed = "We met at 東京駅 on Monday and took the slow train to the sea past old villages"
    assert ngrams_found([[mixed]], mixed.lower()) > 0


def test_an_ngram_of_many_items_is_boilerplate():
    prompt = "Choose the answer that fits best, and write down one letter only, nothing more:"
    items = [[f"{prompt} {prose(seed, 14)}"] for seed in range(6)]
    assert ngrams_found(items, prompt, max_items=6) > 0
    assert ngrams_found(items, prompt, max_items=5) == 0
    assert ngrams_found(items, items[3][0], max_items=5) > 0


def test_many_short_items_are_found_wherever_they_stand():
    items = [[prose(seed, 8 + seed % 5)] for seed in range(60)]
    order = random.Random(7).sample(range(60), 60)
    words = split_words([" ".join(f"{prose(100 + i, 2000)} {items[i][0]}" for i in order)])
    index = NgramIndex.build(items, 13, 8, 20)
    starts, stops, found = index.find(words)
    assert [words.text(*span) for span in zip(starts, stops, strict=True)] == [items[i][0] for i in order]
    assert index.items_of(found)[1].tolist() == order


def naive(items: list[list[str]], document: str, n: int, min_words: int) -> dict[int, int]:
    """Item → number of its n-grams in the document, without hashes."""
    words = re.findall(r"[a-z]+", document.lower())
    counts = defaultdict(int)
    for number, texts in enumerate(items):
        split = [re.findall(r"[a-z]+", text.lower()) for text in texts]
        grams = {tuple(w[i : i + n]) for w in split for i in range(len(w) - n + 1)}
        grams = grams or {tuple(w) for w in split if len(w) >= min_words}
        counts[number] = sum(any(tuple(words[i : i + len(gram)]) == gram for i in range(len(words))) for gram in grams)
    return {item: count for item, count in counts.items() if count}


def texts(max_size: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(["a", "B", "b,", "cc!", "ddd"]), max_size=max_size).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(
    items=st.lists(st.lists(texts(6), max_size=2), min_size=1, max_size=8),
    documents=st.lists(texts(60), min_size=1, max_size=6),
    n=st.integers(2, 7),
    min_words=st.integers(1, 3),
)
def test_found_is_what_a_comparison_word_by_word_finds(items, documents, n, min_words):
    index = NgramIndex.build(items, n, min_words, max_items=100)
    words = split_words(documents)
    starts, _, found = index.find(words)
    owner = words.text_of_word(starts)
    for number, document in enumerate(documents):
        _, owners = index.items_of(found[owner == number])
        pairs = {(g, i) for g, i in zip(*map(list, index.items_of(found[owner == number])), strict=True)}
        counts = defaultdict(int)
        for _, item in pairs:
            counts[int(item)] += 1
        assert dict(counts) == naive(items, document, n, min(min_words, n))
        assert set(owners.tolist()) == set(counts)


@settings(max_examples=30, deadline=None)
@given(seeds=st.tuples(st.integers(0, 10**6), st.integers(10**6 + 1, 2 * 10**6)), count=st.integers(13, 3000))
def test_random_text_is_not_contaminated(seeds, count):
    assert ngrams_found([[prose(seeds[0], count)]], prose(seeds[1], count)) == 0


def test_a_text_longer_than_a_chunk_is_hashed_like_its_parts():
    """Words at every chunk's border, a word longer than a chunk."""
    long = prose(3, 30_000) + " " + "x" * 200_000 + " " + prose(4, 20_000)
    words = split_words([long])
    whole = [long[a:b] for a, b in zip(words.starts, words.stops, strict=True)]
    assert whole == long.split()
    alone = {word: split_words([word]).hashes[0] for word in set(whole)}
    assert [alone[word] for word in whole] == words.hashes.tolist()


# ---------------------------------------------------------------------------------------------------------
# What is counted
# ---------------------------------------------------------------------------------------------------------


def test_documents_items_and_shares_are_counted(tmp_path):
    items = [{"question": f"{ITEM} {prose(s, 3)}", "choices": ["one", "two"]} for s in range(3)]
    items += [{"question": prose(90, 30), "choices": []}, {"question": "Too short?"}]
    half = " ".join(prose(90, 30).split()[:21])  # 9 of 18 n-grams
    documents = [prose(s) for s in range(10, 18)]
    documents += [f"{prose(20)} {ITEM} {prose(21)}", f"{prose(22)} {half}", f"{prose(23)} {half} end"]
    report = scan(tmp_path, documents, items)
    (source,), (quiz,) = report["sources"], report["evaluation_sets"]
    assert (source["documents"], source["contaminated"], source["share"]) == (11, 3, pytest.approx(3 / 11))
    assert (quiz["items"], quiz["comparable"], quiz["touched"], quiz["documents"]) == (5, 4, 4, 3)
    shared = len(ITEM.split()) - 12
    assert quiz["ngrams_found"] == pytest.approx((3 * shared / (shared + 3) + 0.5) / 4)
    best = quiz["examples"][0]
    assert best["document"].endswith("web.jsonl, document 9")
    assert best["item"].endswith("quiz.jsonl, record 1")
    assert (best["ngrams_found"], best["ngrams"], best["text"]) == (shared, shared + 3, ITEM.rstrip("?"))

    report = scan(tmp_path, documents, items, min_overlap=10)
    assert (report["sources"][0]["contaminated"], report["evaluation_sets"][0]["touched"]) == (1, 3)


def test_held_out_documents_are_found_again_exactly_and_nearly(tmp_path):
    held = [prose(s, 100) for s in range(5)]
    near = " ".join(held[1].split()[:70]) + " " + prose(50)
    far = " ".join(held[2].split()[:40]) + " " + prose(51)
    evaluated = Source(name="news", paths=[write_jsonl(tmp_path / "held.jsonl", held)])
    documents = [prose(60), held[0], near, far, held[3] + "!"]
    report = scan(tmp_path, documents, [{"q": prose(99)}], {"eval_sources": [evaluated]})
    (source,), (row,) = report["sources"], report["held_out"]
    assert (source["identical"], source["near_duplicates"], source["contaminated"]) == (1, 2, 0)
    assert (row["name"], row["items"], row["touched"], row["identical"]) == ("news", 5, 3, 1)


def test_what_the_recipe_holds_out_is_looked_for_and_not_scanned(tmp_path):
    documents = [prose(s, 40) for s in range(200)]
    selection = Selection(0.1)
    held = [text for text in documents if selection.use(text) == "held_out"]
    copies = [next(t for t in (f"{text} {i}" for i in range(99)) if selection.use(t) == "train") for text in held[:4]]
    report = scan(tmp_path, documents + copies, [{"q": prose(999)}], {"held_out_share": 0.1})
    (source,), (row,) = report["sources"], report["held_out"]
    assert (source["held_out"], source["documents"]) == (len(held), 204 - len(held))
    assert (row["items"], row["touched"], source["near_duplicates"]) == (len(held), 4, 4)


def test_sets_are_read_in_the_forms_they_come_in(tmp_path):
    record = {"question": ITEM, "choices": {"text": ["b", "c"], "label": [0, 1]}}
    folder = tmp_path / "sets"
    (folder / "arc").mkdir(parents=True)
    write_jsonl(folder / "arc" / "dev.jsonl", [record])
    (folder / "arc" / "test.jsonl.gz").write_bytes(gzip.compress(json.dumps(record).encode()))
    (folder / "squad.json").write_text(json.dumps({"version": "1", "data": [record, record]}))
    with open(folder / "mmlu.csv", "w", newline="") as file:
        csv.writer(file).writerow([f'{ITEM}, "quoted"\nand on', "b", "c"])
    (folder / "cola.tsv").write_text(f'id\t"{ITEM}\n')
    (folder / "plain.txt").write_text(f"{ITEM}\n\n{ITEM}\n")
    pq.write_table(pa.Table.from_pylist([record]), folder / "hella.parquet")
    (folder / "labels.lst").write_text("1\n")

    sets, aside = find_sets([str(folder)])
    assert {s.name: len(list(read_items(s))) for s in sets} == {
        "arc": 2, "cola": 1, "hella": 1, "mmlu": 1, "plain": 2, "squad": 2,
    }  # fmt: skip
    assert aside == [str(folder / "labels.lst")]
    for evaluation_set in sets:
        for place, item_texts in read_items(evaluation_set):
            assert any(ITEM in text for text in item_texts), place
    named, _ = find_sets({"mine": [str(folder / "*.csv"), str(folder / "arc")]})
    assert [(s.name, len(s.files)) for s in named] == [("mine", 3)]


# ---------------------------------------------------------------------------------------------------------
# Going on, leaving out, mistakes
# ---------------------------------------------------------------------------------------------------------


def several_files(folder: Path) -> list[Source]:
    rng = random.Random(5)
    for number in range(3):
        documents = [prose(1000 * number + i, 20) for i in range(1500)]
        for place in rng.sample(range(1500), 7):
            documents[place] += f" {ITEM}"
        write_jsonl(folder / f"part{number}.jsonl", documents)
    write_jsonl(folder / "quiz.jsonl", [{"q": ITEM}])
    return [Source(name="web", paths=[str(folder / "part*.jsonl")])]


def test_an_interrupted_scan_goes_on_and_reports_the_same(tmp_path, monkeypatch):
    sources = several_files(tmp_path)
    whole = run(tmp_path, sources, decontamination_dir=str(tmp_path / "whole"))
    assert whole[0]["sources"][0]["contaminated"] == 21

    monkeypatch.setattr(contamination_scan, "SAVE_BYTES", 1)
    monkeypatch.setattr(contamination_scan, "BLOCK_DOCUMENTS", 800)
    real, saved = contamination_scan.write_text, []

    def write_and_interrupt(path, text):
        real(path, text)
        saved.append(path)
        if len(saved) == 3:  # in the middle of the second file
            raise KeyboardInterrupt

    monkeypatch.setattr(contamination_scan, "write_text", write_and_interrupt)
    settings_given = {
        "decontamination_dir": str(tmp_path / "broken"),
        "evaluation_sets": [str(tmp_path / "quiz.jsonl")],
    }
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, sources, **settings_given)
    again = run(tmp_path, sources, **settings_given)
    assert len(saved) == 6  # two blocks a file, none read twice
    for report in (whole[0], again[0]):
        report["settings"].pop("decontamination_dir")
    assert again == whole

    changed = run(tmp_path, sources, **settings_given, min_overlap=5)
    assert len(saved) == 12
    assert changed[0]["sources"][0]["contaminated"] == 21


def test_the_removal_file_keeps_these_documents_out(tmp_path):
    sources = several_files(tmp_path)
    recipe = tmp_path / "pretrain.yaml"
    recipe.write_text(
        json.dumps(
            {"output_dir": "none", "model": {}, "tokenizer": "none", "max_steps": 1000}
            | {"sources": [{"name": "web", "paths": sources[0].paths}]}
        )
    )
    arguments = ["scripts/decontaminate.py", "--config", recipe, "--evaluation_sets", tmp_path / "quiz.jsonl"]
    arguments += ["--decontamination_dir", tmp_path / "out", "--remove", "true", "--num_proc", 2]
    result = run_script(*arguments)
    path = tmp_path / "out" / "excluded_documents.txt"
    assert f'exclude_documents: ["{path}"]' in result.stdout
    report = json.loads((tmp_path / "out" / "decontamination.json").read_text())
    assert report["sources"][0]["contaminated"] == 21

    files = [tmp_path / f"part{n}.jsonl" for n in range(3)]
    documents = [json.loads(line)["text"] for file in files for line in file.read_text().splitlines()]
    selection = Selection(excluded=read_hashes([path]))
    for text in documents:
        assert selection.use(text) == ("excluded" if ITEM in text else "train")
    assert read_hashes([path]) == {document_hash(text) for text in documents if ITEM in text}

    report, lines = run(tmp_path, sources, {"exclude_documents": [str(path)]})
    assert (report["sources"][0]["contaminated"], report["sources"][0]["excluded"]) == (0, 21)
    assert len(lines) == 21  # what is left out now stays in the file


def test_mistakes_are_one_line_and_exit_code_2(tmp_path):
    recipe = tmp_path / "pretrain.yaml"
    path = write_jsonl(tmp_path / "web.jsonl", [prose(1)])
    recipe.write_text(
        json.dumps(
            {"output_dir": "none", "model": {}, "tokenizer": "none", "max_steps": 1000}
            | {"sources": [{"name": "web", "paths": [path]}]}
        )
    )
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text('{"q": "a"}\n{"q": \n')
    write_jsonl(tmp_path / "quiz.jsonl", [{"q": ITEM}])
    cases = [
        ({"evaluation_sets": tmp_path / "absent*.jsonl"}, "nothing matches .*absent"),
        ({"evaluation_sets": tmp_path / "empty.jsonl"}, "empty is empty .*empty.jsonl"),
        ({"evaluation_sets": tmp_path / "broken.jsonl"}, "broken.jsonl, line 2: not valid JSON"),
        ({"evaluation_sets": recipe}, "pretrain.yaml is none of .jsonl"),
        ({"ngram": 0}, "ngram must be at least 1, not 0"),
        ({"near_duplicate_share": 1.5}, "near_duplicate_share must lie above 0"),
        ({"exclude_documents": tmp_path / "web.jsonl"}, "a document hash has 16 hexadecimal digits"),
    ]
    base = {"config": recipe, "evaluation_sets": tmp_path / "quiz.jsonl", "decontamination_dir": tmp_path / "out"}
    for changes, message in cases:
        argv = [part for key, value in {**base, **changes}.items() for part in (f"--{key}", str(value))]
        with pytest.raises(UserError, match=message) as raised:
            decontaminate(*parse_recipe(DecontaminateSettings, PretrainRecipe, argv=argv))
        assert "\n" not in str(raised.value)
    result = run_script("scripts/decontaminate.py", *argv, check=False)
    assert (result.returncode, len(result.stderr.strip().splitlines())) == (2, 1)


def test_prepared_sources_are_named_and_cannot_be_scanned(tmp_path, capsys):
    write_jsonl(tmp_path / "quiz.jsonl", [{"q": ITEM}])
    with pytest.raises(UserError, match="no source holds text"):
        run(tmp_path, [Source(name="tokens", prepared=str(tmp_path))])
    assert "source 'tokens' is prepared tokens" in capsys.readouterr().out


def test_unreadable_records_are_counted_and_named(tmp_path):
    write_jsonl(tmp_path / "quiz.jsonl", [{"q": ITEM}])
    path = tmp_path / "web.jsonl"
    path.write_text(json.dumps({"text": f"{prose(1)} {ITEM}"}) + "\n{oops\n" + json.dumps({"text": ITEM}) + "\n")
    report, lines = run(tmp_path, [Source(name="web", paths=[str(path)])])
    assert (report["sources"][0]["bad"], report["sources"][0]["contaminated"]) == (1, 2)
    assert "web.jsonl, line 2: not valid JSON" in report["bad_records"][0]
    assert len(lines) == 2
