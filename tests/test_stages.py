import os
import signal
import subprocess
import sys

import pytest

from genesis_hf.errors import UserError
from genesis_hf.stages import Stage, finished_stages, run_stages


def stage(name, folder, program, **extra):
    """A stage that appends its name to `log` and runs a line of Python."""
    line = f"open({str(folder / 'log')!r}, 'a').write({name!r} + ' '); {program}"
    return Stage(name, name, [sys.executable, "-c", line], **extra)


def ran(folder):
    return (folder / "log").read_text().split() if (folder / "log").exists() else []


def test_each_stage_runs_once(tmp_path):
    stages = [stage(name, tmp_path, "pass") for name in ("one", "two", "three")]
    assert run_stages(stages, tmp_path / "stages") is True
    assert run_stages(stages, tmp_path / "stages") is False
    assert ran(tmp_path) == ["one", "two", "three"]
    records = finished_stages(stages, tmp_path / "stages")
    assert all(record["seconds"] >= 0 and record["peak_memory_gib"] > 0 for record in records)


def test_a_failed_stage_is_where_the_next_run_goes_on(tmp_path):
    flag = tmp_path / "mended"
    broken = f"import os, sys; sys.exit(0 if os.path.exists({str(flag)!r}) else 3)"
    stages = [stage("one", tmp_path, "pass"), stage("two", tmp_path, broken), stage("three", tmp_path, "pass")]
    with pytest.raises(UserError, match="two ended with exit code 3"):
        run_stages(stages, tmp_path / "stages")
    flag.touch()
    run_stages(stages, tmp_path / "stages")
    assert ran(tmp_path) == ["one", "two", "two", "three"]


def test_leaving_early_with_exit_code_0_is_not_finished(tmp_path):
    stages = [stage("one", tmp_path, "pass", produces=[str(tmp_path / "model")])]
    with pytest.raises(UserError, match="stopped before"):
        run_stages(stages, tmp_path / "stages")
    assert finished_stages(stages, tmp_path / "stages") == []


def test_other_inputs_are_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("a: 1")
    stages = [stage("one", tmp_path, "pass", recipe=str(recipe)), stage("two", tmp_path, "pass")]
    run_stages(stages, tmp_path / "stages")
    recipe.write_text("a: 2")
    with pytest.raises(UserError, match=r"one\.json: this stage was finished with another command"):
        run_stages(stages, tmp_path / "stages")
    assert ran(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_lets_the_command_end_and_records_nothing(tmp_path, name):
    # The command stands for a training that saves on a signal and leaves with 0. A terminal's Ctrl-C reaches both
    # processes, SIGTERM only the one it is sent to.
    both = "os.kill(os.getpid(), signal.SIGINT)" if name == "SIGINT" else "pass"
    command = (
        "import os, signal, time\n"
        f"signal.signal(signal.{name}, lambda *_: (open('saved', 'w').close(), os._exit(0)))\n"
        f"os.kill(os.getppid(), signal.{name}); {both}; signal.pause()"
    )
    program = (
        "import sys; from genesis_hf.stages import *; from genesis_hf.errors import report_user_errors\n"
        f"with report_user_errors(): run_stages([Stage('one', 'one', [sys.executable, '-c', {command!r}])], 'stages')"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "stages" / "one.json").exists()


def test_a_command_that_outlives_its_run_is_waited_for(tmp_path):
    """A run killed with SIGKILL leaves its command behind; the next run must not write beside it."""
    command = "import sys; print('begun', flush=True); sys.stdin.readline(); open('done', 'w').close()"
    program = (
        "import sys; from genesis_hf.stages import *\n"
        f"with only_one('.'): run_stages([Stage('one', 'one', [sys.executable, '-c', {command!r}])], 'stages')"
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
