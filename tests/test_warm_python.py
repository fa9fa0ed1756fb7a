"""A program in a fork of a Python that has its imports does what the program does that a user starts."""

import json
from pathlib import Path

import pytest
from conftest import IMPORTED, LIBRARIES, READ_LATER, launch, run_script, user_environment

PROGRAM = (
    "import json, os, signal, sys\n"
    "handlers = [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]\n"
    "print(json.dumps([__name__, sys.argv, sys.path, os.environ['HF_HOME'], os.listdir('/proc/self/fd'), *handlers]))\n"
    "end = sys.argv[1]\n"
    "if end == 'killed': os.kill(os.getpid(), signal.SIGKILL)\n"
    "if end == 'raises': raise KeyError(end)\n"
    "sys.exit({'code': 3, 'words': 'no such file', 'end': None}[end])\n"
)


def test_collecting_the_tests_changes_no_variable_that_programs_would_see() -> None:
    """Else every program gets a Python of its own. What a library sets when it is imported is for SET_BY_IMPORTS."""
    assert {key for key, _ in user_environment().items() ^ IMPORTED.items()} <= READ_LATER


@pytest.mark.parametrize("end", ["end", "code", "words", "raises", "killed"])
def test_what_a_program_is_given_and_how_it_ends(end: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    words = ["-c", PROGRAM] if end == "code" else [tmp_path / "program.py"]
    warm, own = (run_script(*words, end, check=False, warm=modules, HF_HOME="here") for modules in (LIBRARIES, ()))
    assert (warm.returncode, warm.stdout) == (own.returncode, own.stdout)
    assert warm.stderr.splitlines()[-1:] == own.stderr.splitlines()[-1:]


def test_a_module() -> None:
    warm, own = (run_script("-m", "json.tool", "--help", warm=modules) for modules in (LIBRARIES, ()))
    assert warm.stdout == own.stdout


def test_processes_of_a_launch(tmp_path: Path) -> None:
    """Each in a session of its own, with the launcher's variables; one that is killed ends the launch."""
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, signal\n"
        "rank = os.environ['RANK']\n"
        "own_session = os.getsid(0) == os.getpid() != os.getppid()\n"
        "with open(__file__ + rank, 'w') as file: json.dump([os.environ['WORLD_SIZE'], own_session], file)\n"
        "if rank == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "signal.pause()\n"
    )
    ended = launch("ddp_2gpu", program, check=False)
    assert ended.returncode == 1
    assert "exitcode  : -9" in ended.stderr
    assert [json.loads((tmp_path / f"program.py{rank}").read_text()) for rank in "01"] == [["2", True]] * 2
