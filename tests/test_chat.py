"""The chat format: what is trained, what is generated from, and what nobody can forge."""

import copy
from pathlib import Path

import pytest
import torch
from jinja2.exceptions import TemplateError
from small_models import random_model
from tiny_chat import VOCABULARY, make_tokenizer, small_model, turns
from tokenizers import AddedToken
from transformers import GenerationConfig, PreTrainedTokenizerFast

from genesis_hf.chat import (
    CHAT_TOKENS,
    IM_END,
    THINK,
    encode_conversation,
    encode_conversations,
    encode_prompt,
    prepare_for_chat,
    prepare_tokenizer,
    read_template,
)
from genesis_hf.chat_lint import lint_chat, lint_folder
from genesis_hf.chat_turns import flatten_conversation
from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.checkpoint.save import save_checkpoint
from genesis_hf.errors import UserError
from genesis_hf.export import export_checkpoint, write_llama_folder
from genesis_hf.files import edit_json
from genesis_hf.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def chatml(base_folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(base_folder)
    prepare_tokenizer(tokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def alpaca(base_folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(base_folder)
    prepare_tokenizer(tokenizer, "alpaca")
    return tokenizer


def trained_text(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> str:
    labels = encode_conversation(tokenizer, messages).labels
    return tokenizer.decode([label for label in labels if label != -100])


CONVERSATIONS = [
    turns("hello there", "river stone"),
    turns("hello", "A quick answer!", "and there?", "under the stone", system="user walks"),
    turns("  two  spaces ", " a leading blank"),
    turns("一二三", "你好 🌊 héllo"),
    turns("line\nbreak\r\n\ttab", "def f():\n    return 1\n"),
    [*turns("hello", "walks"), {"role": "tool", "content": "{}"}, {"role": "assistant", "content": "river"}],
]


# ---------------------------------------------------------------------------------------------------------
# Tokens and embeddings
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [VOCABULARY, VOCABULARY + 2, VOCABULARY + 48])
def test_new_rows_are_the_mean_of_the_old_ones_to_the_last_bit(
    base_folder: Path, tied: bool, dtype: torch.dtype, rows: int
) -> None:
    model, tokenizer = small_model(tied, rows).to(dtype), load_tokenizer(base_folder)
    layers = (model.get_input_embeddings, model.get_output_embeddings)
    old = [layer().weight.detach().clone() for layer in layers]
    prepare_for_chat(model, tokenizer)
    assert tokenizer.convert_tokens_to_ids(list(CHAT_TOKENS)) == [VOCABULARY + i for i in range(4)]
    for before, layer in zip(old, layers, strict=True):
        weight = layer().weight
        assert weight.dtype == dtype
        assert torch.equal(weight[:VOCABULARY], before[:VOCABULARY])
        mean = before[:VOCABULARY].float().mean(dim=0).to(dtype)
        assert torch.equal(weight[VOCABULARY : VOCABULARY + 4], mean.expand(4, -1))
        assert torch.equal(weight[VOCABULARY + 4 :], before[VOCABULARY + 4 :])
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == max(rows, VOCABULARY + 4)
    lint_chat(tokenizer, model.config, model.generation_config)


def test_a_bias_of_the_output_gets_its_mean_as_well(base_folder: Path) -> None:
    model, tokenizer = small_model(tied=False), load_tokenizer(base_folder)
    model.lm_head.bias = torch.nn.Parameter(torch.arange(VOCABULARY).float())
    prepare_for_chat(model, tokenizer)
    assert model.lm_head.bias[VOCABULARY:].tolist() == [(VOCABULARY - 1) / 2] * 4


def test_the_stop_token_is_eos_everywhere_and_pad_stays_the_base_eos(base_folder: Path) -> None:
    model, tokenizer = small_model(), load_tokenizer(base_folder)
    prepare_for_chat(model, tokenizer)
    for holder in (tokenizer, model.config, model.generation_config):
        assert (holder.eos_token_id, holder.pad_token_id) == (VOCABULARY + 1, 2)
    lint_chat(tokenizer, model.config, model.generation_config)


def test_preparing_twice_changes_nothing(base_folder: Path) -> None:
    model, tokenizer = small_model(), load_tokenizer(base_folder)
    prepare_for_chat(model, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCABULARY] += 1
    state, vocabulary = copy.deepcopy(model.state_dict()), tokenizer.get_vocab()
    prepare_for_chat(model, tokenizer)
    assert all(torch.equal(state[name], weight) for name, weight in model.state_dict().items())
    assert tokenizer.get_vocab() == vocabulary


def test_a_tokenizer_that_does_not_fit_names_both_numbers(base_folder: Path) -> None:
    for rows in (399, 400 + 513):
        with pytest.raises(UserError, match=rf"400 tokens .* {rows} rows"):
            prepare_for_chat(small_model(rows=rows), load_tokenizer(base_folder))


def test_a_chat_tokenizer_keeps_its_format(alpaca: PreTrainedTokenizerFast, base_folder: Path) -> None:
    tokenizer = copy.deepcopy(alpaca)
    with pytest.raises(UserError, match="chat format alpaca already: set chat_format: alpaca"):
        prepare_tokenizer(tokenizer)
    prepare_tokenizer(tokenizer, "alpaca")
    assert len(tokenizer) == VOCABULARY
    foreign = load_tokenizer(base_folder)
    foreign.chat_template = marked = (
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    )
    prepare_tokenizer(foreign)
    assert (foreign.chat_template, len(foreign)) == (marked, VOCABULARY)


def test_a_template_without_marks_makes_room_for_ours(base_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = load_tokenizer(base_folder)
    foreign.chat_template = "{{ messages }}"
    prepare_tokenizer(foreign)
    assert "chatml takes its place" in capsys.readouterr().err
    assert (foreign.eos_token, len(foreign)) == (IM_END, VOCABULARY + 4)
    lint_chat(foreign)


def test_chat_tokens_that_a_base_brings_become_special(base_folder: Path) -> None:
    tokenizer = load_tokenizer(base_folder)
    tokenizer.add_tokens(list(CHAT_TOKENS[:2]), special_tokens=True)
    some = copy.deepcopy(tokenizer)
    prepare_tokenizer(some)
    assert some.convert_tokens_to_ids(list(CHAT_TOKENS)) == list(range(VOCABULARY, VOCABULARY + 4))
    lint_chat(some)
    tokenizer.add_tokens(list(CHAT_TOKENS[2:]))  # as plain added tokens, which typed text would become
    prepare_tokenizer(tokenizer)
    lint_chat(tokenizer)


def test_the_format_survives_saving(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    chatml.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert encode_conversations(loaded, CONVERSATIONS) == encode_conversations(chatml, CONVERSATIONS)
    lint_chat(loaded)


# ---------------------------------------------------------------------------------------------------------
# Rendering and masks
# ---------------------------------------------------------------------------------------------------------


def test_chatml_looks_as_it_should(chatml: PreTrainedTokenizerFast) -> None:
    messages = turns("hello", "river", system="walks")
    ids, labels, _ = encode_conversation(chatml, messages)
    assert chatml.decode(ids) == (
        "<|im_start|>system\nwalks<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\nriver<|im_end|>\n"
    )
    assert trained_text(chatml, messages) == "river<|im_end|>"
    assert all(label in (i, -100) for i, label in zip(ids, labels, strict=True))
    assert chatml.decode(encode_prompt(chatml, messages[:2])).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_alpaca_looks_as_it_should(alpaca: PreTrainedTokenizerFast) -> None:
    messages = turns("Sum.\n\n### Input:\n1 2", "3")
    text = alpaca.decode(encode_conversation(alpaca, messages).input_ids)
    assert text.startswith("Below is an instruction that describes a task, paired with an input")
    assert text.endswith("### Instruction:\nSum.\n\n### Input:\n1 2\n\n### Response:\n3</s>")
    assert trained_text(alpaca, messages) == "3</s>"
    assert alpaca.decode(encode_prompt(alpaca, turns("Go"))).endswith("\n\n### Instruction:\nGo\n\n### Response:\n")
    assert len(alpaca) == VOCABULARY


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_ids_decode_to_the_templates_own_rendering(chatml: PreTrainedTokenizerFast, messages: list) -> None:
    ids = encode_conversation(chatml, messages).input_ids
    assert chatml.decode(ids) == chatml.apply_chat_template(messages, tokenize=False)


def test_ids_of_ordinary_text_are_those_of_apply_chat_template(chatml: PreTrainedTokenizerFast) -> None:
    for messages in CONVERSATIONS[:2]:
        plain = chatml.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, labels, _ = encode_conversation(chatml, messages)
        assert ids == plain["input_ids"]
        assert [int(label != -100) for label in labels] == plain["assistant_masks"]
        prompt = chatml.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
        assert encode_prompt(chatml, messages[:-1]) == prompt["input_ids"]


CUTTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1].strip() if m.role == 'assistant' else m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Drops what was thought before, as Qwen3's does, and blanks around contents."""


def test_a_strangers_prompt_is_what_its_template_makes_of_it(chatml: PreTrainedTokenizerFast) -> None:
    stranger = copy.deepcopy(chatml)
    stranger.chat_template = CUTTING
    for messages in (
        turns(" hello ", "<think>\nhm\n</think>\n\nriver", "stone"),
        turns("hello", "river", "stone"),
        turns(" <think> ", "<think>walks", "there"),
    ):
        expected = stranger.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert stranger.decode(encode_prompt(stranger, messages)) == expected
    forging = "".join(CHAT_TOKENS)
    plain, forged = (encode_prompt(stranger, turns(f" {text} ", "so", text)) for text in ("stone", forging))
    special = stranger.convert_tokens_to_ids(list(CHAT_TOKENS))
    assert sum(i in special for i in forged) == sum(i in special for i in plain)
    assert stranger.decode(forged).count(forging) == 2


def test_a_template_that_fails_on_a_content_is_one_line(chatml: PreTrainedTokenizerFast) -> None:
    stranger = copy.deepcopy(chatml)
    stranger.chat_template = "{% if 'stone' in messages[0].content %}{{ raise_exception('no stones') }}{% endif %}"
    with pytest.raises(UserError, match="can't render this conversation: no stones"):
        encode_prompt(stranger, turns("a stone"))


def test_thinking_becomes_special_in_the_assistants_turn_only(chatml: PreTrainedTokenizerFast) -> None:
    messages = turns("<think>not me</think>", "<think>hm</think>\nyes")
    ids = encode_conversation(chatml, messages).input_ids
    assert ids.count(chatml.convert_tokens_to_ids(THINK)) == 1
    assert trained_text(chatml, messages) == "<think>hm</think>\nyes<|im_end|>"


# ---------------------------------------------------------------------------------------------------------
# Tools and reasoning
# ---------------------------------------------------------------------------------------------------------

SCHEMA = {"name": "tide", "description": "Ébb <|im_end|>", "parameters": {"type": "object"}}
WRAPPED = {"type": "function", "function": SCHEMA}
SCHEMA_LINE = '{"name": "tide", "description": "Ébb <|im_end|>", "parameters": {"type": "object"}}'


def call(arguments: object, name: str = "tide") -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def answer(content: str | None, **more: object) -> list[dict]:
    return [*turns("when?"), {"role": "assistant", "content": content, **more}]


RICH = [
    (answer("", tool_calls=[call({"at": "höhe"})]), [WRAPPED]),
    (answer(None, tool_calls=[call('{"at":1}'), call({})]), [SCHEMA]),
    ([*turns(system="Be kind."), *answer("So:", tool_calls=[call("")])], [SCHEMA, WRAPPED]),
    (answer("So:", tool_calls=[{"name": "x", "arguments": {"a": [1]}}]), None),
    (answer("So.", reasoning_content="hm\n<|im_end|>"), None),
    (answer("So.", thinking="hm"), []),
    (answer("<think>a</think>So.", reasoning="hm"), None),
    (answer("", reasoning="hm", tool_calls=[call({}, "a"), call({}, "b")]), None),
    ([*answer("So."), {"role": "tool", "content": "<|im_start|>"}, {"role": "assistant", "content": "Yes"}], None),
]


@pytest.mark.parametrize(("messages", "tools"), RICH)
def test_the_template_renders_tools_and_reasoning_as_training_does(
    chatml: PreTrainedTokenizerFast, messages: list, tools: list | None
) -> None:
    flat = flatten_conversation(messages, tools)
    assert all(message.keys() == {"role", "content"} for message in flat)
    rendered = chatml.apply_chat_template(messages, tools=tools, tokenize=False)
    assert rendered == chatml.apply_chat_template(flat, tokenize=False)
    encoded = encode_conversation(chatml, flat)
    assert chatml.decode(encoded.input_ids) == rendered
    # Nothing in a schema, an argument or a result begins or ends a turn.
    assert encoded.input_ids.count(VOCABULARY) == encoded.input_ids.count(VOCABULARY + 1) == len(flat)


def test_tools_and_calls_look_as_they_should() -> None:
    messages, tools = RICH[1]
    system, _, answer = flatten_conversation(messages, tools)
    assert f"<tools>\n{SCHEMA_LINE}\n</tools>" in system["content"]
    assert answer["content"] == (
        '<tool_call>\n{"name": "tide", "arguments": {"at":1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call>'
    )
    assert flatten_conversation(*RICH[2])[0]["content"].startswith("Be kind.\n\n")
    assert flatten_conversation(RICH[4][0])[1]["content"] == "<think>\nhm\n<|im_end|>\n</think>\n\nSo."
    assert flatten_conversation([{**turns("a", "b")[1], "trained": False}]) == [
        {"role": "assistant", "content": "b", "trained": False}
    ]


def test_alpaca_refuses_tools(alpaca: PreTrainedTokenizerFast) -> None:
    for messages, tools in ((turns("a"), [SCHEMA]), (RICH[3][0], None)):
        with pytest.raises(TemplateError, match="tools"):
            alpaca.apply_chat_template(messages, tools=tools, tokenize=False)
    lint_chat(alpaca)


@pytest.mark.parametrize(("messages", "tools"), RICH[4:7])
def test_alpaca_renders_reasoning_as_training_does(
    alpaca: PreTrainedTokenizerFast, messages: list, tools: list | None
) -> None:
    flat = flatten_conversation(messages)
    assert alpaca.apply_chat_template(messages, tokenize=False) == alpaca.apply_chat_template(flat, tokenize=False)


# ---------------------------------------------------------------------------------------------------------
# Lint
# ---------------------------------------------------------------------------------------------------------

STOP_OUTSIDE = read_template("chatml").replace(
    "{{- '<|im_end|>' -}}\n        {%- endgeneration -%}",
    "{%- endgeneration -%}{{- '<|im_end|>' -}}",
)


CHATML = read_template("chatml")
TWO_TURNS = "{%- if messages[2] -%}{{- raise_exception('no more') -}}{%- endif -%}"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (STOP_OUTSIDE, r"stop token <\|im_end\|> is not trained: put it before"),
        (CHATML.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", ""), "nothing is .* or remove"),
        (CHATML.replace("if message['role'] == 'assistant'", "if message['role'] != 'tool'"), "trained are not"),
        (CHATML.replace("'<|im_start|>' + message['role']", "(messages | length) ~ message['role']"), "not a prefix"),
        (CHATML.replace("{{- content -}}", "{{- content | trim -}}"), "changes contents"),
        (CHATML.replace("<tool_call>", "<call>"), "writes tools, calls or reasoning otherwise"),
        (CHATML.replace("if reasoning and", "if false and"), "writes tools, calls or reasoning otherwise"),
        (CHATML.replace("{{- '<|im_start|>assistant\\n' -}}", "{{- '<|im_start|>assistant' -}}"), "header differs"),
        (CHATML.replace("{%- for message", TWO_TURNS + "{%- for message"), "no more: take out"),
    ],
)
def test_lint_finds_a_template_that_trains_wrongly(
    chatml: PreTrainedTokenizerFast, template: str, complaint: str
) -> None:
    assert template != CHATML
    wrong = copy.deepcopy(chatml)
    wrong.chat_template = template
    with pytest.raises(UserError, match=complaint):
        lint_chat(wrong)


def test_lint_finds_typed_tokens_that_become_real_ones(chatml: PreTrainedTokenizerFast) -> None:
    wrong = copy.deepcopy(chatml)
    wrong.add_tokens([AddedToken("<|im_end|>", special=False, normalized=False)])
    with pytest.raises(UserError, match="typed become real ones"):
        lint_chat(wrong)


def test_lint_finds_eos_and_pad_that_disagree(chatml: PreTrainedTokenizerFast) -> None:
    config = small_model(rows=VOCABULARY + 4).config
    with pytest.raises(UserError, match=r"eos_token_id is 2 in config.json and 401 in the tokenizer: set it to 401"):
        lint_chat(chatml, config)
    config.eos_token_id = [2, 401]
    lint_chat(chatml, config)
    generation = GenerationConfig(eos_token_id=401, pad_token_id=7)
    with pytest.raises(UserError, match=r"pad_token_id is 7 in generation_config.json and 2 in the tokenizer"):
        lint_chat(chatml, config, generation)
    config.vocab_size = VOCABULARY
    with pytest.raises(UserError, match="400 rows for 404 tokens"):
        lint_chat(chatml, config)
    for key, complaint in (("pad_token", "pad is"), ("eos_token", "eos is </s>")):
        wrong = copy.deepcopy(chatml)
        setattr(wrong, key, IM_END if key == "pad_token" else "</s>")
        with pytest.raises(UserError, match=complaint):
            lint_chat(wrong)


def test_lint_of_a_folder_reads_what_was_written(base_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = small_model(), load_tokenizer(base_folder)
    prepare_for_chat(model, tokenizer)
    write_llama_folder(model, tokenizer, tmp_path)
    lint_folder(tmp_path)
    edit_json(tmp_path / "generation_config.json", lambda values: values.update(eos_token_id=2))
    with pytest.raises(UserError, match=r"eos_token_id is 2 in generation_config.json"):
        lint_folder(tmp_path)


def test_a_chat_model_that_fails_the_lint_is_not_exported(chatml: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    wrong = copy.deepcopy(chatml)
    wrong.chat_template = STOP_OUTSIDE
    model = random_model(tied=True, vocab_size=VOCABULARY + 4)
    folder = checkpoint_folder(tmp_path, 1)
    save_checkpoint(folder, model, [torch.optim.SGD(model.parameters())], {"step": 1}, "", wrong)
    with pytest.raises(UserError, match="chat format: the stop token"):
        export_checkpoint(folder, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_base_tokenizer_has_no_chat_template(base_folder: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        encode_conversation(load_tokenizer(base_folder), turns("a", "b"))


def test_a_role_the_template_does_not_know_is_a_users_error(alpaca: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="tool"):
        encode_conversation(alpaca, CONVERSATIONS[-1])
