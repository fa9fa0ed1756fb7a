"""Which models a playground offers, how they come into memory, and what they are given and write."""

import dataclasses
import shutil
import threading
from pathlib import Path

import pytest
import torch
from conftest import run_script
from hub_upload_server import HubUploadServer, Repository
from safetensors.torch import load_file, save_file
from small_playground import ENDLESS, STEPS, make_models
from tiny_chat import turns

from genesis_hf.config import SampleRecipe
from genesis_hf.errors import UserError
from genesis_hf.exporting.llama import write_llama_folder
from genesis_hf.exporting.source import find_source
from genesis_hf.generate import GrowingText, load_chat, sample_answers, sampling, stream_answer, stream_tokens
from genesis_hf.playground import recipe as recipes
from genesis_hf.playground.catalogue import find_models, trunks
from genesis_hf.playground.loading import Speaker, load_entry, load_named
from genesis_hf.playground.prompts import conversation_prompt, text_prompt
from genesis_hf.playground.recipe import PlaygroundRecipe, read_recipe
from genesis_hf.playground.sampling import Sampling
from genesis_hf.playground.serve import listen
from genesis_hf.playground.shelf import Shelf
from genesis_hf.post_training.models import load_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def chat(models: Path) -> Speaker:
    return load_named(str(models / "chat"))


@pytest.fixture(scope="module")
def base(models: Path) -> Speaker:
    return load_named(str(models / "trunk"))


def files_of(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


# ---------------------------------------------------------------------------------------------------------
# The catalogue
# ---------------------------------------------------------------------------------------------------------


def test_the_catalogue_is_the_tree(models: Path) -> None:
    entries = find_models([models], ["me/x@step-000020", "me/x@step-000010", "me/chat"])
    keys = [entry.key for entry in entries]
    steps = [f"models/trunk/step_{step:09d}" for step in STEPS]
    assert [key for key in keys if "trunk" in key] == steps
    assert keys[-3:] == ["me/x@step-000020", "me/x@step-000010", "me/chat"]
    assert [entry.step for entry in trunks(entries)["models/trunk"]] == list(STEPS)
    assert [entry.key for entry in trunks(entries)["me/x"]] == ["me/x@step-000010", "me/x@step-000020"]
    formats = {entry.key: entry.chat for entry in entries}
    assert formats[steps[0]] is False
    assert formats["models/chat"] is True
    assert formats["me/chat"] is None


@pytest.mark.parametrize("name", ["x", "a/b/c", "../x", "me/x@", "me/..@a", "me/x@a/../b", "/etc/passwd"])
def test_what_is_no_name_of_the_hub_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="owner/name"):
        find_models([], [name])


def test_folders_without_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model below"):
        find_models([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        find_models([tmp_path / "absent"])


# ---------------------------------------------------------------------------------------------------------
# In memory
# ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_what_its_export_is_and_stays_untouched(models: Path, tmp_path: Path) -> None:
    before = files_of(models)
    entry = next(entry for entry in find_models([models]) if entry.step == STEPS[-1])
    speaker = load_entry(entry)
    assert files_of(models) == before
    write_llama_folder(find_source(entry.folder).live(), speaker.tokenizer, tmp_path / "export")
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(speaker.model(ids).logits, load_model(tmp_path / "export")(ids).logits)


def test_a_broken_model_is_one_line_that_names_no_place(models: Path) -> None:
    entry = next(entry for entry in find_models([models]) if entry.key == "models/broken")
    with pytest.raises(UserError, match=r"models/broken: can't be loaded \(.*header") as caught:
        load_entry(entry)
    assert str(models) not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "mend"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), "LoRA adapter .*merge_and_unload"),
        (("config.json", "pytorch_model.bin"), "pickled .* scripts/import_checkpoint.py"),
    ],
)
def test_what_is_no_model_of_safetensors_is_told_its_mend(tmp_path: Path, files: tuple, mend: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    for load in (load_named, load_chat):
        with pytest.raises(UserError, match=mend):
            load(str(tmp_path))


def test_a_model_that_lacks_tensors_is_refused(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "chat", tmp_path / "chat")
    file = tmp_path / "chat" / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors  # tied
    tensors["model.layers.0.mlp.gate.weight"] = tensors.pop("model.layers.0.mlp.gate_proj.weight")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # of old files
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        UserError, match=r"lack model.layers.0.mlp.gate_proj.weight of .* has [\w.]+gate.weight instead"
    ):
        load_named(str(tmp_path / "chat"))
    tensors["model.layers.0.mlp.gate_proj.weight"] = tensors.pop("model.layers.0.mlp.gate.weight")
    save_file(tensors, file, {"format": "pt"})
    assert load_named(str(tmp_path / "chat")).chat


def test_revisions_of_the_hub_are_models(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path.read_bytes() for path in (models / "chat").iterdir()}
    with HubUploadServer() as hub:
        hub.stand_in(monkeypatch, tmp_path / "cache")
        hub.repositories["me/chat"] = repository = Repository(private=False)
        repository.commit("step-000010", {**files, "checkpoint/x.safetensors": b"", "code.py": b"raise SystemExit"})
        repository.commit("main", {"config.json": files["config.json"], "pytorch_model.bin": b"a pickle"})
        whole, pickled, absent, unknown = find_models([], ["me/chat@step-000010", "me/chat", "me/chat@x", "me/no"])
        assert load_entry(whole).chat
        (folder,) = {path.parent for path in (tmp_path / "cache").rglob("model.safetensors")}
        assert not [name for name in ("code.py", "checkpoint") if (folder / name).exists()]
        for entry, complaint in ((pickled, "no \\*.safetensors"), (absent, "from the Hub"), (unknown, "from the Hub")):
            with pytest.raises(UserError, match=f"{entry.key}: .*{complaint}"):
                load_entry(entry)


def test_the_shelf_holds_no_more_than_its_size(models: Path) -> None:
    entries = find_models([models])
    keys = [entry.key for entry in entries if entry.step]
    shelf = Shelf(entries, 2)
    for key in keys:
        with shelf.borrow(key) as fetch:
            assert fetch(key) is fetch(key)
    assert [shelf.holds(key) for key in keys] == [False, True, True]
    with shelf.borrow(keys[1]) as fetch:
        fetch(keys[1])
        with shelf.borrow(keys[0]) as other:  # the third one goes, though the second was there longer
            other(keys[0])
    assert [shelf.holds(key) for key in keys] == [True, True, False]
    with pytest.raises(UserError, match="3 models at once, where 2 fit"), shelf.borrow(*keys):
        pass
    for unknown in ("models/other", "../x", None, 3, ["models/chat"]):
        with pytest.raises(UserError, match="no such model"), shelf.borrow(unknown):
            pass


def test_pairs_of_models_are_borrowed_without_waiting_for_ever(models: Path) -> None:
    entries = find_models([models])
    keys = [entry.key for entry in entries if entry.step]
    shelf, answered = Shelf(entries, 2), []

    def use(*pair: str) -> None:
        for _ in range(5):
            with shelf.borrow(*pair) as fetch:
                answered.append({fetch(key).name for key in pair} == set(pair))

    pairs = [(keys[0], keys[1]), (keys[1], keys[2]), (keys[2], keys[0]), (keys[0],)]
    users = [threading.Thread(target=use, args=pair, daemon=True) for pair in pairs]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    assert answered == [True] * 20


# ---------------------------------------------------------------------------------------------------------
# Prompts
# ---------------------------------------------------------------------------------------------------------


def test_the_oldest_turns_go_where_a_conversation_is_too_long(chat: Speaker) -> None:
    chat = dataclasses.replace(chat, model=type("", (), {"config": type("", (), {"max_position_embeddings": 60})}))
    chat.model.generation_config = type("", (), {"eos_token_id": [5]})
    messages = turns("river " * 9, "walks", "under " * 9, "hello", "user", system="answer")
    whole = conversation_prompt(chat, messages, 10)
    text = chat.tokenizer.decode(whole.ids)
    assert "river" not in text
    assert "answer" in text  # the system prompt stays
    assert "oldest 2 turns no longer fit the context of 60 tokens" in whole.left_out
    assert whole.max_new_tokens == min(10, 60 - len(whole.ids))
    assert whole.stop_ids == sorted({5, chat.tokenizer.eos_token_id})
    short = conversation_prompt(chat, turns("hello"), 1000)
    assert not short.left_out
    assert short.max_new_tokens == 60 - len(short.ids)
    with pytest.raises(UserError, match=r"room for \d+: shorten"):
        conversation_prompt(chat, turns("stone " * 60), 10)


def test_a_text_begins_where_documents_begin(base: Speaker, chat: Speaker) -> None:
    prompt = text_prompt(base, "hello", 8)
    assert prompt.ids[0] == base.tokenizer.eos_token_id
    assert base.tokenizer.decode(prompt.ids[1:]) == "hello"
    # What ended a document before SFT is a chat model's pad, and ends a text still.
    text = text_prompt(chat, "hello", 8)
    assert text.ids[0] == chat.tokenizer.pad_token_id
    assert set(text.stop_ids) == {chat.tokenizer.pad_token_id, chat.tokenizer.eos_token_id}
    assert text_prompt(base, "", 8).ids == [base.tokenizer.eos_token_id]
    with pytest.raises(UserError, match="room for 56"):
        text_prompt(base, "stone " * 80, 8)


# ---------------------------------------------------------------------------------------------------------
# Sampling and writing
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": "x"}, {"top_k": None}, {"seed": True},
               {"max_new_tokens": 0}, {"repetition_penalty": 9}, {"seed": 2**40}, {"top_k": 2.5}],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused(values: dict) -> None:
    with pytest.raises(UserError, match=f"{next(iter(values))} must be "):
        Sampling(**values)


def test_tokens_carry_the_models_own_probabilities(base: Speaker) -> None:
    prompt = text_prompt(base, "hello there", 6)
    settings = Sampling(temperature=1.5, top_k=3, max_new_tokens=6).settings(prompt.stop_ids)
    tokens = list(stream_tokens(base.model, base.tokenizer, prompt.ids, settings, seed=1, alternatives=3))
    ids = list(prompt.ids)
    for token in tokens:
        expected = base.model(torch.tensor([ids])).logits.detach()[0, -1].softmax(-1)
        values, likeliest = expected.topk(3)
        assert token.probability == pytest.approx(float(expected[token.id]), rel=1e-4)
        assert token.id in likeliest  # top_k
        assert [name for name, _ in token.alternatives] == [base.tokenizer.decode([i]) for i in likeliest.tolist()]
        assert [p for _, p in token.alternatives] == pytest.approx(values.tolist(), rel=1e-4)
        ids.append(token.id)


def test_a_seed_draws_what_sampling_a_file_of_answers_draws(chat: Speaker) -> None:
    recipe = SampleRecipe(model="", output_file="", max_new_tokens=20, temperature=5.0, top_p=0.9)
    settings = sampling(chat.tokenizer, recipe)
    chat.model.config.max_position_embeddings = 128
    (answer,) = sample_answers(chat.model, chat.tokenizer, [turns("hello")], settings, seed=7)
    ids = conversation_prompt(chat, turns("hello"), 20).ids
    assert "".join(stream_answer(chat.model, chat.tokenizer, ids, settings, seed=7)) == answer.answer
    chat.model.config.max_position_embeddings = ENDLESS
    several = {"".join(stream_answer(chat.model, chat.tokenizer, ids, settings)) for _ in range(4)}
    assert len(several) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_diverged_is_refused(chat: Speaker, models: Path, temperature: float) -> None:
    diverged = load_named(str(models / "chat")).model
    with torch.no_grad():
        diverged.model.norm.weight.fill_(torch.nan)
    recipe = SampleRecipe(model="", output_file="", max_new_tokens=4, temperature=temperature)
    settings = sampling(chat.tokenizer, recipe)
    diverged.config.max_position_embeddings = 128
    with pytest.raises(UserError, match="diverged"):
        sample_answers(diverged, chat.tokenizer, [turns("hello")], settings)
    with pytest.raises(UserError, match="diverged"):
        next(stream_tokens(diverged, chat.tokenizer, [5, 6], settings, seed=1))


def test_text_grows_by_whole_characters(base: Speaker) -> None:
    tokenizer = base.tokenizer
    text = "stone é 🙂 river"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    growing = GrowingText(tokenizer, [])
    pieces = [growing.add(i) for i in ids]
    assert "".join(pieces) == text
    assert "" in pieces  # bytes of a character
    cut = GrowingText(tokenizer, [])
    pieces = [cut.add(i) for i in tokenizer("🙂", add_special_tokens=False)["input_ids"][:-1]]
    assert "".join(pieces) == ""
    assert "\ufffd" in cut.rest()
    bytes_of_nothing = [i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i) == "<0xFF>"] * 9
    noise = GrowingText(tokenizer, [])
    assert "\ufffd" in "".join(noise.add(i) for i in bytes_of_nothing)


# ---------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------


def test_a_space_reads_its_environment(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(recipes.ON_SPACE, "me/playground")
    monkeypatch.setenv(recipes.MODELS, f"{models} me/genesis@step-000010 --hub_model me/chat --concurrency 1")
    space = read_recipe([])
    assert space.host == "0.0.0.0"
    assert space.roots == [str(models)]
    assert space.hub_models == ["me/genesis@step-000010", "me/chat"]
    assert space.concurrency == 1
    assert read_recipe([str(models), "--host", "127.0.0.1"]).host == "127.0.0.1"
    monkeypatch.delenv(recipes.ON_SPACE)
    assert read_recipe([str(models)]).host == "127.0.0.1"


def test_settings_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(recipes.MODELS, raising=False)
    with pytest.raises(UserError, match="no models"):
        read_recipe([])
    monkeypatch.setenv(recipes.MODELS, "'unclosed")
    with pytest.raises(UserError, match=f"{recipes.MODELS}: No closing quotation"):
        read_recipe([])
    with pytest.raises(UserError, match="concurrency must be above 0"):
        PlaygroundRecipe(models=["a"], concurrency=0)
    with pytest.raises(UserError, match="port must be"):
        PlaygroundRecipe(models=["a"], port=70000)


def test_what_cannot_start_ends_with_one_line() -> None:
    with pytest.raises(UserError, match="can't be listened on"):
        listen("203.0.113.7", 0)
    for arguments, complaint in ((["runs_that_are_not_here"], "no such folder"), ([], "no models")):
        ended = run_script("scripts/playground.py", *arguments, check=False)
        assert ended.returncode == 2
        assert complaint in ended.stderr
        assert "Traceback" not in ended.stderr


def test_without_gradio_the_mend_is_named(models: Path, tmp_path: Path) -> None:
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError(name='gradio')")
    path = f"{tmp_path}:{Path(__file__).parents[1]}"
    ended = run_script("scripts/playground.py", models, check=False, warm=(), PYTHONPATH=path)
    assert ended.returncode == 2
    assert "gradio is not installed: pip install -e .[playground]" in ended.stderr
    assert "Traceback" not in ended.stderr
