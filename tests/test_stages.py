import os
import signal
import subprocess
import sys

import pytest
import yaml

from genesis_hf.config import split_arguments
from genesis_hf.errors import UserError
from genesis_hf.stages import Stage, Stages, only_one, script_command


def stage(name, folder, program, **extra):
    """A stage that appends its name to `log` and runs a line of Python."""
    line = f"open({str(folder / 'log')!r}, 'a').write({name!r} + ' '); {program}"
    return Stage(name, name, [sys.executable, "-c", line], **extra)


def makes(path, text="made"):
    """A line of Python that writes a file."""
    return f"open({str(path)!r}, 'w').write({text!r})"


def ran(folder):
    return (folder / "log").read_text().split() if (folder / "log").exists() else []


def pipeline(folder, *stages):
    return Stages(list(stages), folder / "stages")


def test_each_stage_runs_once(tmp_path):
    stages = pipeline(tmp_path, *(stage(name, tmp_path, "pass") for name in ("one", "two", "three")))
    assert stages.run_all() is True
    assert stages.run_all() is False
    assert ran(tmp_path) == ["one", "two", "three"]
    assert all(record["seconds"] >= 0 and record["peak_memory_gib"] > 0 for record in stages.finished())


def test_a_failed_stage_stops_what_comes_after_it_and_nothing_else(tmp_path, capsys):
    flag = tmp_path / "mended"
    broken = f"import os, sys; sys.exit(0 if os.path.exists({str(flag)!r}) else 3)"
    stages = pipeline(
        tmp_path,
        stage("root", tmp_path, "pass"),
        stage("left", tmp_path, broken, after=["root"]),
        stage("leaf", tmp_path, "pass", after=["left"]),
        stage("right", tmp_path, "pass", after=["root"]),
    )
    with pytest.raises(UserError, match=r"^left did not finish.*left out, for they come after: leaf"):
        stages.run_all()
    assert "left ended with exit code 3" in capsys.readouterr().err
    assert ran(tmp_path) == ["root", "left", "right"]
    flag.touch()
    assert stages.run_all() is True
    assert ran(tmp_path) == ["root", "left", "right", "left", "leaf"]
    assert stages.run_all() is False


def test_leaving_early_with_exit_code_0_is_not_finished(tmp_path, capsys):
    stages = pipeline(tmp_path, stage("one", tmp_path, "pass", produces=[str(tmp_path / "model")]))
    with pytest.raises(UserError, match="one did not finish"):
        stages.run_all()
    assert "stopped before" in capsys.readouterr().err
    assert stages.finished() == []


@pytest.mark.parametrize("what", ["recipe", "data", "command"])
def test_other_inputs_are_refused_by_name(tmp_path, capsys, what):
    recipe, data = tmp_path / "recipe.yaml", tmp_path / "data"
    recipe.write_text("a: 1")
    data.mkdir()
    (data / "text.jsonl").write_text("before")

    def stages(program="pass"):
        first = stage("one", tmp_path, program, recipe=str(recipe), reads=[str(data)])
        return pipeline(tmp_path, first, stage("two", tmp_path, "pass"))

    stages().run_all()
    recipe.write_text("a: 2" if what == "recipe" else "a: 1")
    (data / "text.jsonl").write_text("after" if what == "data" else "before")
    with pytest.raises(UserError, match="one did not finish"):
        stages("0" if what == "command" else "pass").run_all()
    named = {"recipe": str(recipe), "data": str(data), "command": "command"}[what]
    assert f"one.json: it was finished with other inputs (what changed: {named})" in capsys.readouterr().err
    assert ran(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("record", ['{"inputs": "0123abcd", "command": []}', '{"seconds": 1}'])
def test_a_record_of_another_version_is_refused(tmp_path, capsys, record):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "one.json").write_text(record)
    with pytest.raises(UserError, match="one did not finish"):
        pipeline(tmp_path, stage("one", tmp_path, "pass")).run_all()
    assert "what changed: command" in capsys.readouterr().err
    assert ran(tmp_path) == []


def test_a_record_cut_short_counts_for_nothing(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "one.json").write_text('{"inputs": {')
    assert pipeline(tmp_path, stage("one", tmp_path, "pass")).run_all() is True


def test_another_product_makes_what_comes_after_it_stale(tmp_path, capsys):
    path = tmp_path / "product"

    def stages(text):
        first = stage("one", tmp_path, makes(path, text), produces=[str(path)])
        return pipeline(tmp_path, first, stage("two", tmp_path, "pass", after=["one"]))

    stages("first").run_all()
    (tmp_path / "stages" / "one.json").unlink()
    with pytest.raises(UserError, match="two did not finish"):
        stages("second").run_all()
    assert "what changed: stage one" in capsys.readouterr().err
    (tmp_path / "stages" / "one.json").unlink()
    stages("first").run_all()  # the same product again: what came after it stands
    assert ran(tmp_path) == ["one", "two", "one", "one"]


def test_a_lasting_product_stands_whatever_its_command_says_by_now(tmp_path):
    path = tmp_path / "checkpoint"

    def stages(program):
        first = stage("trunk", tmp_path, program, produces=[str(path)], lasting=True)
        return pipeline(tmp_path, first, stage("branch", tmp_path, "pass", after=["trunk"]))

    stages(makes(path)).run_all()
    assert stages("raise SystemExit(1)").run_all() is False
    path.unlink()  # what came of it stands without it
    assert stages("raise SystemExit(1)").run_all() is False
    assert ran(tmp_path) == ["trunk", "branch"]


def test_a_product_that_is_gone_is_made_again(tmp_path):
    path = tmp_path / "product"
    stages = pipeline(tmp_path, stage("one", tmp_path, makes(path), produces=[str(path)]))
    stages.run_all()
    path.unlink()
    assert stages.run_all() is True
    assert path.exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_lets_the_command_end_and_records_nothing(tmp_path, name):
    # The command stands for a training that saves on a signal and leaves with 0. The signal reaches only the process
    # that it is sent to: there is no terminal that would send Ctrl-C to both.
    command = (
        "import os, signal; both = {signal.SIGINT, signal.SIGTERM}; signal.pthread_sigmask(signal.SIG_BLOCK, both)\n"
        f"os.kill(os.getppid(), signal.{name}); signal.sigwait(both); open('saved', 'w').close()"
    )
    program = (
        "import sys; from genesis_hf.stages import *; from genesis_hf.errors import report_user_errors\n"
        f"stage = Stage('one', 'one', [sys.executable, '-c', {command!r}])\n"
        "with report_user_errors(): Stages([stage], 'stages').run_all()"
    )
    result = run_alone(program, tmp_path)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "stages" / "one.json").exists()


def test_what_was_finished_all_the_same_is_recorded(tmp_path):
    command = (
        "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open('model', 'w').close(); os.kill(os.getppid(), signal.SIGINT)"
    )
    program = (
        "import sys; from genesis_hf.stages import *; from genesis_hf.errors import report_user_errors\n"
        f"stage = Stage('one', 'one', [sys.executable, '-c', {command!r}], produces=['model'])\n"
        "with report_user_errors(): Stages([stage], 'stages').run_all()"
    )
    assert run_alone(program, tmp_path).returncode == 130
    assert (tmp_path / "stages" / "one.json").exists()


def run_alone(program, folder):
    """Python without a terminal."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, start_new_session=True
    )


def test_one_stage_never_runs_twice_at_once(tmp_path):
    """The second run, of a cycle or of a job, waits for the first, and finds the stage finished."""
    command = "import sys; open('log', 'a').write('ran '); print('begun', flush=True); sys.stdin.readline()"
    program = (
        "import sys; from genesis_hf.stages import *\n"
        f"stages = Stages([Stage('one', 'one', [sys.executable, '-c', {command!r}])], 'stages')\n"
        "stages.run(stages.all['one'])"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, **pipes) for _ in range(2)]
    first_words = {run.stdout.readline().split()[0]: run for run in runs}
    assert sorted(first_words) == ["begun", "waiting"]
    first_words["begun"].communicate("\n")
    first_words["waiting"].communicate("\n")
    assert [run.returncode for run in runs] == [0, 0]
    assert ran(tmp_path) == ["ran"]


@pytest.mark.parametrize("gone", [True, False])
def test_a_model_without_its_weights_is_made_again_and_another_refused(tmp_path, capsys, gone):
    model = tmp_path / "final"
    program = f"import os; os.makedirs({str(model)!r}, exist_ok=True); {makes(model / 'config.json')}; "
    first = stage("one", tmp_path, program + makes(model / "model.safetensors"), produces=[str(model)])
    stages = pipeline(tmp_path, first)
    stages.run_all()
    (model / "evaluation.json").write_text("scores beside a model are no part of it")
    assert stages.run_all() is False
    if gone:
        (model / "model.safetensors").unlink()
        assert stages.run_all() is True
        assert (model / "model.safetensors").exists()
    else:
        (model / "model.safetensors").write_text("another")
        with pytest.raises(UserError, match="one did not finish"):
            stages.run_all()
        assert "changed since it was made; restore it, or remove that file and" in capsys.readouterr().err


def test_a_comment_changes_no_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("a: 1\nb: 2")
    stages = pipeline(tmp_path, stage("one", tmp_path, "pass", recipe=str(recipe)))
    stages.run_all()
    recipe.write_text("b: 2  # as before\na: 1")
    assert stages.run_all() is False


@pytest.mark.parametrize("beside", ["manifest.json", "config.json"])
def test_every_file_of_a_folder_of_data_counts(tmp_path, beside):
    data = tmp_path / "data[v1]"
    data.mkdir()
    (data / beside).write_text("{}")
    (data / "text.jsonl").write_text("before")
    stages = pipeline(tmp_path, stage("one", tmp_path, "pass", reads=[str(data)]))
    stages.run_all()
    assert stages.run_all() is False
    (data / "text.jsonl").write_text("after")
    with pytest.raises(UserError, match="one did not finish"):
        stages.run_all()


def test_another_number_of_devices_makes_nothing_stale(tmp_path):
    command = script_command("true", None, {}, accelerate_config="two.yaml")
    stages = pipeline(tmp_path, Stage("one", "one", command))
    alone = pipeline(tmp_path, Stage("one", "one", script_command("true", None, {})))
    assert stages.inputs(stages.all["one"]) == alone.inputs(alone.all["one"])


def test_what_settings_say_is_what_a_script_reads(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("same: 1\n")
    settings = {"same": 1, "absent": None, "text": "--x", "texts": ["hi 😀"]}
    _, (*_, absent, text, texts) = split_arguments(script_command("x", str(recipe), settings)[2:])
    assert absent == ("absent", "null")
    assert text == ("text", "--x")
    assert yaml.safe_load(texts[1]) == ["hi 😀"]


def test_stages_of_one_name_or_one_product_are_refused(tmp_path):
    with pytest.raises(UserError, match="two stages are called one"):
        pipeline(tmp_path, stage("one", tmp_path, "pass"), stage("one", tmp_path, "0"))
    with pytest.raises(UserError, match="two stages make model"):
        pipeline(tmp_path, *(stage(name, tmp_path, "pass", produces=["model"]) for name in ("one", "two")))


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "stages").touch()
    with pytest.raises(UserError, match="stages: can't be written"), only_one(tmp_path / "stages"):
        pass


def test_a_command_that_outlives_its_run_is_waited_for(tmp_path):
    """A run killed with SIGKILL leaves its command behind; the next run must not write beside it."""
    command = "import sys; print('begun', flush=True); sys.stdin.readline(); open('done', 'w').close()"
    program = (
        "import sys; from genesis_hf.stages import *\n"
        f"with only_one('.'): Stages([Stage('one', 'one', [sys.executable, '-c', {command!r}])], 'stages').run_all()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while run.stdout.readline() != "begun\n":
        pass
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    program = "from genesis_hf.stages import only_one; import os\nwith only_one('.'): print(os.path.exists('done'))"
    second = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert second.stdout.readline().startswith("waiting")
    run.stdin.write("\n")
    run.stdin.close()
    assert second.stdout.read().strip() == "True"
    assert second.wait() == 0
