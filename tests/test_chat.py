"""The chat format: what is trained, what is generated from, and what nobody can forge."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_chat import VOCABULARY, make_tokenizer, small_model, turns
from transformers import PreTrainedTokenizerFast

from genesis_hf.chat import (
    CHAT_TOKENS,
    IM_END,
    THINK,
    encode_conversation,
    encode_conversations,
    encode_prompt,
    lint_chat,
    prepare_for_chat,
    read_template,
)
from genesis_hf.errors import UserError
from genesis_hf.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def chatml(base_folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(base_folder)
    prepare_for_chat(small_model(), tokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def alpaca(base_folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(base_folder)
    prepare_for_chat(small_model(), tokenizer, "alpaca")
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
def test_new_rows_are_the_mean_of_the_old_ones_to_the_last_bit(base_folder: Path, tied: bool) -> None:
    model, tokenizer = small_model(tied), load_tokenizer(base_folder)
    layers = (model.get_input_embeddings, model.get_output_embeddings)
    old = [layer().weight.detach().clone() for layer in layers]
    prepare_for_chat(model, tokenizer)
    assert tokenizer.convert_tokens_to_ids(list(CHAT_TOKENS)) == [VOCABULARY + i for i in range(4)]
    for before, layer in zip(old, layers, strict=True):
        weight = layer().weight
        assert torch.equal(weight[:VOCABULARY], before)
        assert torch.equal(weight[VOCABULARY:], before.mean(dim=0).expand(4, -1))
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert model.config.vocab_size == VOCABULARY + 4


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
    with pytest.raises(UserError, match=r"400 tokens .* 600 rows"):
        prepare_for_chat(small_model(rows=600), load_tokenizer(base_folder))


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
    ids, labels = encode_conversation(chatml, messages)
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
        ids, labels = encode_conversation(chatml, messages)
        assert ids == plain["input_ids"]
        assert [int(label != -100) for label in labels] == plain["assistant_masks"]
        prompt = chatml.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)
        assert encode_prompt(chatml, messages[:-1]) == prompt["input_ids"]


def test_thinking_becomes_special_in_the_assistants_turn_only(chatml: PreTrainedTokenizerFast) -> None:
    messages = turns("<think>not me</think>", "<think>hm</think>\nyes")
    ids = encode_conversation(chatml, messages).input_ids
    assert ids.count(chatml.convert_tokens_to_ids(THINK)) == 1
    assert trained_text(chatml, messages) == "<think>hm</think>\nyes<|im_end|>"


contents = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1, max_size=30)
pieces = st.sampled_from([*CHAT_TOKENS, "</s>", "<unk>", "assistant\n", "\n\n### Response:\n", " "])
nasty = st.lists(contents | pieces, min_size=1, max_size=4).map("".join)
conversations = st.tuples(st.none() | nasty, st.lists(st.tuples(nasty, nasty), min_size=1, max_size=3)).map(
    lambda drawn: turns(*(text for pair in drawn[1] for text in pair), system=drawn[0])
)
relaxed = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(conversations)
def test_trained_is_what_the_assistant_says_and_the_stop_token(
    chatml: PreTrainedTokenizerFast, alpaca: PreTrainedTokenizerFast, messages: list
) -> None:
    for tokenizer in (chatml, alpaca):
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        assert trained_text(tokenizer, messages) == "".join(answer + tokenizer.eos_token for answer in answers)


@relaxed
@given(conversations)
def test_nothing_typed_becomes_a_turns_end(chatml: PreTrainedTokenizerFast, messages: list) -> None:
    ids = encode_conversation(chatml, messages).input_ids
    assert ids.count(VOCABULARY) == ids.count(VOCABULARY + 1) == len(messages)
    assert chatml.eos_token == IM_END
    assert not {0, 1, 2} & set(ids)


@relaxed
@given(conversations)
def test_what_is_generated_from_is_a_prefix_of_what_was_trained(
    chatml: PreTrainedTokenizerFast, alpaca: PreTrainedTokenizerFast, messages: list
) -> None:
    for tokenizer in (chatml, alpaca):
        whole = encode_conversation(tokenizer, messages)
        prompt = encode_prompt(tokenizer, messages[:-1])
        assert whole.input_ids[: len(prompt)] == prompt
        assert whole.labels[len(prompt)] != -100


# ---------------------------------------------------------------------------------------------------------
# Lint
# ---------------------------------------------------------------------------------------------------------

STOP_OUTSIDE = read_template("chatml").replace(
    "{{- message['content'] + '<|im_end|>' -}}\n        {%- endgeneration -%}",
    "{{- message['content'] -}}\n        {%- endgeneration -%}{{- '<|im_end|>' -}}",
)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (STOP_OUTSIDE, r"<\|im_end\|> is not trained"),
        (read_template("chatml").replace("{%- generation -%}", "").replace("{%- endgeneration -%}", ""), "nothing is"),
        (read_template("chatml").replace("== 'assistant' -%}", "!= 'tool' -%}"), "trained are"),
        ("{{- messages | length -}}" + read_template("chatml"), "not a prefix"),
    ],
)
def test_lint_finds_a_template_that_trains_wrongly(
    chatml: PreTrainedTokenizerFast, template: str, complaint: str
) -> None:
    wrong = copy.deepcopy(chatml)
    wrong.chat_template = template
    with pytest.raises(UserError, match=complaint):
        lint_chat(wrong)


def test_lint_finds_eos_and_pad_that_disagree(chatml: PreTrainedTokenizerFast) -> None:
    config = small_model(rows=VOCABULARY + 4).config
    with pytest.raises(UserError, match=r"eos_token_id is 2 in config.json and 401 in the tokenizer"):
        lint_chat(chatml, config)
    wrong = copy.deepcopy(chatml)
    wrong.pad_token = IM_END
    with pytest.raises(UserError, match="pad is"):
        lint_chat(wrong)


def test_a_base_tokenizer_has_no_chat_template(base_folder: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        encode_conversation(load_tokenizer(base_folder), turns("a", "b"))


def test_a_role_the_template_does_not_know_is_a_users_error(alpaca: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="tool"):
        encode_conversation(alpaca, CONVERSATIONS[-1])
