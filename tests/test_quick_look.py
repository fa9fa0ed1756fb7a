"""The quick look: what a rule calls wrong is wrong, and good text is let be."""

import json
from pathlib import Path

import pytest
from conftest import run_script
from small_models import byte_tokenizer, random_model

from genesis_hf.errors import UserError
from genesis_hf.evaluation.quick_look import CONTINUATIONS, QUESTIONS, Look, Prompt, judge, read_prompts, summary
from genesis_hf.export import write_llama_folder

CAPITAL = CONTINUATIONS[0]
SENTENCE = " Paris, a city of two million people on the river Seine."


@pytest.mark.parametrize(
    ("text", "verdict", "reason"),
    [
        (SENTENCE, "OK", None),
        ("", "FAIL", "empty"),
        ("  \n", "FAIL", "empty"),
        (" the the the the the the the the the the", "FAIL", "loop"),
        (SENTENCE + " People come here for its museums. It is big. It is big. It is big.", "WEAK", "loop"),
        (" Paris xkqwrtz bvvnmk qqqqq zrtplkm wpfgh dkfjgh", "FAIL", "gibberish"),
        (" Paris \ufffd\ufffd and so on and on", "FAIL", "format"),
        (SENTENCE + "<|im_end|>", "FAIL", "format"),
        (" grilled with onions and a little salt", "WEAK", "off-script"),
    ],
)
def test_continuations_are_judged(text: str, verdict: str, reason: str | None) -> None:
    found, reasons = judge(CAPITAL, text, None)
    assert found == verdict
    assert (reasons == []) if reason is None else any(one.startswith(reason) for one in reasons)


def test_answers_must_stop_and_have_the_form_asked_for() -> None:
    fruits = QUESTIONS[1]
    assert judge(fruits, "apple\nbanana\npear", True) == ("OK", [])
    assert judge(fruits, "apple\nbanana\npear", False)[1] == ["format: does not stop"]
    assert judge(fruits, "apple, banana and pear", True)[0] == "WEAK"
    assert judge(fruits, "apple\nbanana\npear\nUser: thanks", True)[0] == "WEAK"
    assert judge(QUESTIONS[4], "19", True) == ("OK", [])  # short, and right


def test_text_of_other_scripts_is_no_gibberish() -> None:
    assert judge(Prompt("Столица Франции"), " это Париж, столица Франции и большой город", None)[0] == "OK"
    assert judge(Prompt("首都"), " 法国的首都是巴黎 这是 一个 大城市 首都", None)[0] == "OK"


def test_summary_counts_and_gives_the_repetition_rates() -> None:
    looks = [Look("p", 0.0, "t", "OK", [], 0.4), Look("p", 0.0, "t", "FAIL", [], 0.6), Look("p", 0.8, "t", "OK")]
    assert summary(looks) == "2 OK, 0 WEAK, 1 FAIL of 3; repetition 0.50 greedy, 0.00 at 0.8"


def test_script_judges_a_model_that_knows_nothing(tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_llama_folder(random_model(tied=True), byte_tokenizer(tmp_path / "tokenizer"), model)
    output = tmp_path / "look.json"
    arguments = (model, "--max_new_tokens", "24", "--output_file", output, "--strict", "true")
    done = run_script("scripts/smoke_generate.py", *arguments, check=False)
    assert done.returncode == 1
    looks = json.loads(output.read_text())["looks"]
    assert len(looks) == 12
    assert {one["temperature"] for one in looks} == {0.0, 0.8}
    assert all(one["verdict"] != "OK" for one in looks)
    assert "FAIL of 12; repetition" in done.stdout


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "One", "expected": ["two"], "pattern": "t.o"}\n\n{"prompt": "Two"}\n')
    assert read_prompts(file) == [Prompt("One", ("two",), "t.o"), Prompt("Two")]
    file.write_text('{"prompt": "One"}\n{"question": "Two"}\n')
    with pytest.raises(UserError, match="line 2: needs `prompt`"):
        read_prompts(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "nowhere.jsonl")
