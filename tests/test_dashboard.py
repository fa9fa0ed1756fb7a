import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import ROOT, run_script
from small_dashboard import append, held_out, record, served, write_run

from genesis_hf.config import write_text
from genesis_hf.dashboard.board import Board
from genesis_hf.dashboard.columns import Columns, parse_lines
from genesis_hf.dashboard.page import static_content, static_page, watch_static, write_static
from genesis_hf.dashboard.server import DashboardServer
from genesis_hf.errors import UserError
from genesis_hf.training.metrics import MetricsWriter


def looked(board, **asked):
    """The board's views after reading what there is, by name."""
    board.read_all()
    return {view["name"]: view for view in board.view(**asked)}


def steps_of(view, key="loss"):
    return view["tables"][view["curves"][key]["table"]]["step"]


# ------------------------------------------------------------------------------------------------------- reading


def test_a_run_under_way_is_shown_with_all_its_files_say(tmp_path):
    view = looked(Board([write_run(tmp_path / "run")]))["run"]
    status = view["status"]
    assert (status["state"], status["step"], status["last_step"]) == ("running", 50, 100)
    assert status["seconds_left"] == pytest.approx(100)  # 50 steps of two seconds
    assert steps_of(view) == list(range(1, 51))
    assert view["curves"]["loss"]["mean"][3] == 6
    assert "low" not in view["curves"]["loss"]  # each point is one record
    assert view["tables"][0]["hours"][-1] == pytest.approx(100 / 3600, rel=1e-5)
    assert steps_of(view, "held_out/code/bits_per_byte") == [10, 20, 30, 40, 50]
    assert view["curves"]["mixture/code"]["mean"][-1] == 0.75
    assert not [key for key in view["curves"] if key.startswith("records")]
    assert view["checkpoints"] == [40]  # the other one isn't complete
    assert view["events"]["shown"][0]["text"] == "resumed from step 20"
    assert view["samples"]["texts"] == [["the model at step 10", "the model at step 20"]]
    assert view["figures"]["bits_per_byte"] == 2.5
    assert view["phase"] == "pretraining"


def test_only_what_was_added_is_read_and_half_a_line_waits(tmp_path):
    board = Board([write_run(tmp_path / "run", steps=3)])
    before = looked(board)["run"]
    line = json.dumps(record(4)) + "\n"
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write(line[:40])
        file.flush()
        assert looked(board, known={"run": before["version"]})["run"].keys() == {"name", "version", "status", "read"}
        file.write(line[40:])
    assert steps_of(looked(board)["run"]) == [1, 2, 3, 4]


def test_a_resume_that_takes_lines_back_is_followed(tmp_path):
    run = write_run(tmp_path / "run")
    board = Board([run])
    looked(board)
    writer = MetricsWriter(run, is_main=True, resumed_step=15)
    view = looked(board)["run"]
    assert steps_of(view)[-1] == 15
    assert view["samples"]["steps"] == [10]
    for step in range(16, 90):  # further than before: only the bytes tell that it is another file
        writer.write(record(step, loss=1.0))
    view = looked(board)["run"]
    assert steps_of(view) == list(range(1, 90))
    assert view["curves"]["loss"]["mean"][20] == 1.0


def test_a_copy_from_another_machine_is_a_new_file_with_the_old_beginning(tmp_path):
    run = write_run(tmp_path / "run")
    board = Board([run])
    looked(board)
    watched = board.runs[run]
    columns = watched.columns
    text = (run / "metrics.jsonl").read_text() + json.dumps(record(51)) + "\n"
    write_text(run / "metrics.jsonl", text)
    assert steps_of(looked(board)["run"])[-1] == 51
    assert watched.columns is columns  # gone on with, not read again


def test_a_run_that_is_removed_and_started_again(tmp_path):
    run = write_run(tmp_path / "run")
    board = Board([run])
    looked(board)
    (run / "metrics.jsonl").unlink()
    assert looked(board)["run"]["status"]["state"] == "empty"
    append(run / "metrics.jsonl", record(1))
    assert steps_of(looked(board)["run"]) == [1]


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    run = tmp_path / "run"
    append(run / "metrics.jsonl", record(1))
    with open(run / "metrics.jsonl", "a") as file:
        file.write(
            '{"step": 2, "lo\n[1, 2]\n\x00\x00\n{"loss": 3}\n{"step": "two", "loss": 1}\n{"step": 3, "loss": NaN}\n'
        )
    append(run / "metrics.jsonl", record(4, held_out=held_out(1.0)))
    view = looked(Board([run]))["run"]
    assert view["unreadable"] == 5
    assert steps_of(view) == [1, 4]
    assert steps_of(view, "held_out/code/bits_per_byte") == [4]


def test_whatever_a_file_holds_the_others_and_the_rest_of_it_are_shown(tmp_path):
    deep = '{"step": 51, "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    odd = {
        "metrics.jsonl": (
            '{"step": 51, "x": 9007199254740993}',
            '{"step": 51, "x": 1' + 400 * "0" + "}",
            '{"step": 51, "loss": 1e39, "mixture": {"\\ud83d": 0.5}}',
            '{"step": 1e300, "tokens_seen": 1e306, "tokens_per_second": 1e-300}',
            deep,
        ),
        "samples.jsonl": ('{"step": 30, "samples": [{"prompt": "a", "continuation": "\\ud83d"}]}', deep),
        "events.jsonl": ('{"step": 30, "event": "x", "text": "\\ud83d", "time": NaN}', '{"step": 1, "time": 1e30}'),
        "recipe.yaml": ("num_train_epochs: .inf",),
    }
    for name, lines in odd.items():
        for number, line in enumerate(lines):
            with open(write_run(tmp_path / f"{name}-{number}") / name, "a") as file:
                file.write(line + "\n")
    with served(tmp_path) as server:
        views = json.loads(ask(server, "/data.json")[2], parse_constant=pytest.fail)["runs"]
    assert len(views) == 10
    assert all(steps_of(view)[:50] == list(range(1, 51)) for view in views)
    write_static(Board([tmp_path]), tmp_path / "page.html")


def test_a_run_that_fails_costs_its_own_row_until_it_can_be_read(tmp_path, monkeypatch):
    board = Board([write_run(tmp_path / "good"), write_run(tmp_path / "bad")])
    monkeypatch.setattr(board.runs[tmp_path / "bad"].columns, "add", lambda lines: 1 / 0)
    views = looked(board)
    assert views["bad"] == {"name": "bad", "error": "ZeroDivisionError: division by zero"}
    assert views["good"]["status"]["step"] == 50
    board.search()
    assert looked(board)["bad"]["status"]["step"] == 50


def test_both_ways_of_reading_find_the_same():
    lines = "".join(json.dumps(r) + "\n" for r in (record(1), record(2, loss=None, mfu=0.5, held_out=held_out(1.5))))
    fast, none = parse_lines(lines.encode())
    slow, one = parse_lines(lines.encode() + b"nothing\n")
    assert (none, one) == (0, 1)
    assert {key for key, values in fast.items() if np.isfinite(values).any()} == set(slow)
    for key, values in slow.items():
        np.testing.assert_array_equal(values, fast[key])


def test_a_key_that_changes_its_kind_stops_nothing():
    columns = Columns()
    columns.add(b'{"step": 1, "odd": 1}\n{"step": 2, "odd": "two"}\n{"step": 3, "odd": {"three": 3}}\n')
    columns.add(b'{"step": 4, "odd": 4.5}\n')
    assert columns.read("odd")[1].tolist() == [1, 4.5]
    assert columns.read("odd/three")[1].tolist() == [3]


def test_losses_that_are_not_finite_are_events(tmp_path):
    append(tmp_path / "run/metrics.jsonl", record(1), record(2, loss=None), record(3))
    view = looked(Board([tmp_path / "run"]))["run"]
    assert steps_of(view) == [1, 3]
    assert [(e["step"], e["kind"]) for e in view["events"]["shown"]] == [(2, "not finite")]
    assert view["figures"]["loss"] == pytest.approx(record(3)["loss"])
    append(tmp_path / "run/metrics.jsonl", record(4, loss=None))
    assert looked(Board([tmp_path / "run"]))["run"]["figures"]["loss"] is None  # not that of step 3


def test_a_fork_begins_at_its_parents_tokens(tmp_path):
    write_text(tmp_path / "run/fork.json", json.dumps({"run": "parent", "step": 1000}))
    append(tmp_path / "run/metrics.jsonl", *(record(s) for s in range(1010, 1100, 10)))
    view = looked(Board([tmp_path / "run"]))["run"]
    assert view["tables"][0]["hours"][0] == pytest.approx(20 / 3600, rel=1e-5)  # ten steps of two seconds
    assert view["tables"][0]["tokens"][0] == 1_010_000


def test_events_by_the_thousand_leave_the_others_visible(tmp_path):
    run = write_run(tmp_path / "run")
    append(run / "events.jsonl", *({"step": s, "event": "bad record", "text": "line"} for s in range(21, 3021)))
    events = looked(Board([run]))["run"]["events"]
    assert events["counts"] == {"resumed": 1, "bad record": 3000}
    assert events["shown"][0]["kind"] == "resumed"
    assert len(events["shown"]) <= 500


def test_long_runs_keep_their_extremes_in_few_points(tmp_path):
    lines = [record(s, loss=50.0 if s == 13_001 else 3.0 + s % 2) for s in range(1, 20_001)]
    append(tmp_path / "run/metrics.jsonl", *lines)
    board = Board([tmp_path / "run"])
    view = looked(board)["run"]
    curve, table = view["curves"]["loss"], view["tables"][view["curves"]["loss"]["table"]]
    assert len(curve["mean"]) < 1200
    assert max(curve["high"]) == 50
    assert table["step"][curve["high"].index(50)] == pytest.approx(13_001, abs=30)
    assert sum(table["records"]) == 20_000
    assert table["records"][:30] == [1] * 30  # a logarithmic axis shows the beginning
    near = looked(board, span=(12_990, 13_010))["run"]
    assert steps_of(near) == list(range(12_989, 13_012))
    assert near["curves"]["loss"]["mean"][12] == 50
    assert "low" not in near["curves"]["loss"]


# -------------------------------------------------------------------------------------------------------- status


def test_states(tmp_path):
    run = write_run(tmp_path / "run")
    old = 1_700_000_000
    os.utime(run / "metrics.jsonl", (old, old))
    assert looked(Board([run]))["run"]["status"]["state"] == "silent"
    write_text(run / "heartbeats/rank_0.json", json.dumps({"time": 4e9, "step": 50}))
    assert looked(Board([run]))["run"]["status"]["state"] == "running"  # a long step, or a save
    (run / "heartbeats/rank_0.json").unlink()
    write_text(run / "checkpoints/step_000000050/manifest.json", "{}")
    assert looked(Board([run]))["run"]["status"]["state"] == "stopped"
    append(run / "metrics.jsonl", *map(record, range(51, 101)))
    status = looked(Board([run]))["run"]["status"]
    assert (status["state"], status["seconds_left"]) == ("finished", 0)


def test_a_copy_of_an_old_run_is_not_running(tmp_path):
    append(tmp_path / "run/metrics.jsonl", *(record(s, time=1.7e9 + 2 * s) for s in range(1, 51)))
    status = looked(Board([tmp_path / "run"]))["run"]["status"]
    assert (status["state"], status["news"]) == ("silent", 1.7e9 + 100)  # though its file is of this second


def test_post_training_is_reckoned_in_epochs(tmp_path):
    run = tmp_path / "dpo"
    write_text(run / "recipe.yaml", "num_train_epochs: 2\nmixture: []\nlength_normalized: true\n")
    lines = [
        {"step": s, "loss": 0.6, "rewards/chosen": 0.1, "rewards/accuracies": 0.7, "epoch": s / 50, "time": 1e9 + 3 * s}
        for s in range(10, 60, 10)
    ]
    append(run / "metrics.jsonl", *lines)
    view = looked(Board([run]))["dpo"]
    assert view["status"]["last_step"] == 100
    assert view["status"]["seconds_left"] == pytest.approx(150)
    assert view["phase"] == "DPO"
    assert view["curves"]["rewards/accuracies"]["mean"] == [0.7] * 5
    write_text(run / "summary.json", json.dumps({"held_out": {"after": {"loss": 2.5}}}))
    view = looked(Board([run]))["dpo"]
    assert view["status"]["state"] == "finished"
    assert view["figures"]["eval_loss"] == 2.5


# ---------------------------------------------------------------------------------------------------------- runs


def test_runs_are_found_below_a_folder_and_checkpoints_left_out(tmp_path):
    for name in ("pretrain", "a/sft", "b/sft", ".old"):
        append(tmp_path / name / "metrics.jsonl", record(1))
    append(tmp_path / "pretrain/checkpoints/step_000000001/run/metrics.jsonl", record(1))
    append(tmp_path / "a/sft/checkpoint-5/metrics.jsonl", record(1))
    board = Board([tmp_path, tmp_path / "pretrain"])
    expected = ["pretrain", "a/sft", "b/sft"]
    assert {tuple(name.split("/")[-2:]) for name in looked(board)} >= {("a", "sft"), ("b", "sft")}
    assert sorted(name.removeprefix(tmp_path.name + "/") for name in looked(board)) == sorted(expected)
    append(tmp_path / "dpo/metrics.jsonl", record(1))
    board.search()
    assert len(looked(board)) == 4


def test_links_and_names_like_a_checkpoints_are_found_and_what_is_gone_is_dropped(tmp_path):
    names = {"step_size_3e-4", "checkpoint_every_10", "wandb"}
    for path in (*(tmp_path / "runs" / name for name in names), tmp_path / "elsewhere"):
        append(path / "metrics.jsonl", record(1))
    append(tmp_path / "store/step_000000001/metrics.jsonl", record(1))
    (tmp_path / "runs/link").symlink_to("../elsewhere")
    (tmp_path / "runs/latest").symlink_to("../store/step_000000001")
    (tmp_path / "runs/wandb/round").symlink_to("..")
    board = Board([tmp_path / "runs"])
    assert set(looked(board)) == {*names, "elsewhere"}
    shutil.move(tmp_path / "runs/wandb", tmp_path / "runs/renamed")
    board.search()
    assert set(looked(board)) == {*names - {"wandb"}, "renamed", "elsewhere"}


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Board([tmp_path / "none"])
    write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match="is a file"):
        Board([tmp_path / "file"])
    for arguments, said in (
        ((tmp_path, "--static"), "nothing to show"),
        ((tmp_path, "--watch", 5), "--watch goes with --static"),
        ((tmp_path, "--static", "--watch", 0), "at least 1 second"),
        ((tmp_path, "--port", 70000), "from 0 to 65535"),
        ((tmp_path, "--host", "203.0.113.7"), "--host 203.0.113.7"),
        (("--static", tmp_path), "required: RUN"),
        ((tmp_path, "--static", "/dev/null/page.html", "--watch", 5), "--static /dev/null/page.html: .+; name"),
    ):
        result = run_script("scripts/dashboard.py", *arguments, check=False)
        assert result.returncode == 2
        assert re.search(said, result.stderr.splitlines()[-1])
        assert "Traceback" not in result.stderr


# -------------------------------------------------------------------------------------------------------- server


def ask(server, path, host=None, method="GET", **headers):
    """(status, headers, body) of a request whose path and Host are sent as they are."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in {"Host": host or f"127.0.0.1:{port}", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_run(folder / "run")
    with served(folder) as server:
        yield server


def test_only_known_addresses_are_answered(server):
    status, headers, body = ask(server, "/data.json")
    assert status == 200
    assert json.loads(body)["runs"][0]["name"] == "run"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for path in (
        "/run/metrics.jsonl",
        "/metrics.jsonl",
        "/../../etc/passwd",
        "/%2e%2e/recipe.yaml",
        "//etc/passwd",
        "x",
    ):
        assert ask(server, path)[0] in (400, 404)
    for query in ("axis=loss", "known=[]", "known={", "from=1&to=nan", f"known={'[' * 20_000}"):
        assert ask(server, f"/data.json?{query}")[0] == 400
    assert ask(server, "/data.json", method="POST")[0] == 501
    assert ask(server, "/", method="HEAD")[::2] == (200, b"")


def test_names_that_others_may_own_are_refused(server):
    port = server.server_address[1]
    for host in (f"evil.example:{port}", "evil.example", "127.0.0.1.evil.example", "[", ""):
        assert ask(server, "/data.json", host=host or " ")[0] == 403
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "192.0.2.7:80"):
        assert ask(server, "/data.json", host=host)[0] == 200


def test_what_is_known_is_not_sent_again(server):
    version = json.loads(ask(server, "/data.json")[2])["runs"][0]["version"]
    known = ask(server, f"/data.json?known=%7B%22run%22:{version}%7D")[2]
    assert "curves" not in json.loads(known)["runs"][0]
    anew = Board(server.board.folders)  # a server that is started again
    assert "curves" in looked(anew, known={"run": version})["run"]
    zipped = ask(server, "/data.json", **{"Accept-Encoding": "gzip"})
    assert zipped[1]["Content-Encoding"] == "gzip"


def test_a_taken_port_means_the_next_one(server, tmp_path):
    taken = server.server_address[1]
    other = DashboardServer(Board([tmp_path]), port=taken)
    assert taken < other.server_address[1] <= taken + 19
    assert urlsplit(other.url).port == other.server_address[1]
    other.server_close()


def test_the_script_serves_until_it_is_interrupted(tmp_path):
    command = [sys.executable, "scripts/dashboard.py", str(write_run(tmp_path / "run")), "--port", "0"]
    script = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = script.stdout.readline()
    assert said.startswith("1 run at http://127.0.0.1:")
    with socket.create_connection(("127.0.0.1", urlsplit(said.split()[3]).port), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(100)
    script.send_signal(signal.SIGINT)
    assert script.communicate(timeout=60) == ("", "")
    assert script.returncode == 0


# --------------------------------------------------------------------------------------------------- static page


def test_the_static_page_has_everything_inside_and_nothing_of_a_run_as_html(tmp_path):
    run = write_run(tmp_path / "<b>run")
    append(
        run / "events.jsonl", {"step": 1, "event": "</script><script>alert(1)", "text": "<img src=x onerror=alert(1)>"}
    )
    write_static(Board([tmp_path]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<img src=x" not in page
    assert page.count("</script>") == page.count("<script")
    assert "src=" not in page.split("<script", 1)[0]
    inside = page.split('type="application/json">', 1)[1].split("</script>", 1)[0]
    content = json.loads(inside)
    assert content["runs"][0]["latest"] == "%3Cb%3Erun/latest.json"
    assert content["runs"][0]["name"] == "<b>run"
    assert content["refresh_seconds"] is None


def test_the_script_writes_beside_latest_json(tmp_path):
    run = write_run(tmp_path / "run")
    run_script("scripts/dashboard.py", run, "--static")
    assert sorted(path.name for path in run.glob("dashboard*")) == ["dashboard.html"]
    assert 'name": "run"' in (run / "dashboard.html").read_text()


def test_watching_rewrites_the_data_and_ends_with_the_whole_page(tmp_path):
    run = write_run(tmp_path / "run")
    data, seen = tmp_path / "page.data.js", []

    def wait(seconds):
        seen.append((seconds, json.loads(data.read_text().removeprefix("dashboardData(").removesuffix(");\n"))))
        if len(seen) == 2:
            raise KeyboardInterrupt
        append(run / "metrics.jsonl", record(51))

    with pytest.raises(KeyboardInterrupt):
        watch_static(Board([run]), tmp_path / "page.html", 7, wait)
    assert [content["runs"][0]["status"]["step"] for _, content in seen] == [50, 51]
    assert seen[0][0] == seen[0][1]["refresh_seconds"] == 7
    assert not data.exists()
    assert '"refresh_seconds": null' in (tmp_path / "page.html").read_text()


def test_a_job_that_is_ended_leaves_a_whole_page(tmp_path):
    run = write_run(tmp_path / "run")
    write_text(
        tmp_path / "ended.py",
        "import os, runpy, signal, sys, threading\n"
        "def end():\n"
        "    while not os.path.exists(os.path.join(sys.argv[1], 'dashboard.data.js')): pass\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=end, daemon=True).start()\n"
        "sys.path.insert(0, 'scripts')\n"
        "runpy.run_path('scripts/dashboard.py', run_name='__main__')\n",
    )
    assert run_script(tmp_path / "ended.py", run, "--static", "--watch", 600).stderr == ""
    assert [path.name for path in run.glob("dashboard*")] == ["dashboard.html"]
    assert '"refresh_seconds": null' in (run / "dashboard.html").read_text()


def test_a_static_page_in_another_folder_finds_the_runs(tmp_path):
    board = Board([write_run(tmp_path / "runs/one")])
    board.read_all()
    content = static_content(board, tmp_path / "pages/page.html", None)
    assert content["runs"][0]["latest"] == "../runs/one/latest.json"
    assert static_page(content).startswith("<!doctype html>")


def test_the_recipe_stays_where_it_is(tmp_path):
    run = write_run(tmp_path / "run")
    with open(run / "recipe.yaml", "a") as file:
        file.write("env: {SECRET_TOKEN: swordfish}\n")
    write_static(Board([run]), tmp_path / "page.html")
    assert "swordfish" not in (tmp_path / "page.html").read_text()
