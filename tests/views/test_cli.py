"""The command line: what it prints, what it leaves unchanged, how it ends."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import DEADLINE, run_python, tree, wait_until, waits_for_a_lock
from support_processes import child

from iso_orchestrator import Retry, Workflow, __version__, current_workflow, open_workflow, read_workflow_record
from iso_orchestrator.views.cli import main

REPOSITORY = Path(__file__).parents[2]
HOSTILE = "\x1b]0;owned\x07\x1b[31m<script>alert(1)</script>\r\n\u202e\x9b31mZoë"
SPELLED_OUT = r"\x1b]0;owned\x07\x1b[31m<script>alert(1)</script>\r\n\u202e\x9b31mZoë"


@pytest.fixture
def root(tmp_path):
    """A root with a completed and a failed workflow."""
    root = tmp_path / "root"
    with Workflow("batch", dir=root, initial_state={"applied": 2}) as batch:
        batch.run_step("apply:Acme", lambda: {"outcome": "APPLIED"})
        batch.run_step("apply:Borealis", lambda: None)
        batch.heartbeat("worker", {"at": "Acme"})
        batch.touch_lease("slot", holder="alpha", ttl=30)
        batch.append_event("note", "a message")
    failing = Workflow("broken", dir=root)
    with pytest.raises(OSError, match="no space"), failing:
        failing.run_step("save", _fail)
    return root


def _fail():
    raise OSError("no space")


@pytest.fixture
def run(root, capsys):
    """Run a command on the root; returns its exit code, output and errors."""

    def run(*args, root=root):
        code = main([args[0], "--dir", str(root), *args[1:]])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def start(*args, **options):
    """Run the command line in a process of its own, to its end."""
    return _spawn(*args, **options).communicate(timeout=DEADLINE)


def _spawn(*args, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "iso_orchestrator", *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **{"encoding": "utf-8", **options, "env": _environment(**options.get("env", {}))},
    )


def _environment(**more):
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def times(root):
    """The change time of each file and folder."""
    return {path: path.lstat().st_ctime_ns for path in [root, *root.rglob("*")]}


def test_list_shows_each_workflow_in_a_line(run):
    """`list` shows the id, status, steps and time of each workflow in one line, the one that changed last first."""
    code, out, err = run("list")
    head, broken, batch = out.splitlines()
    assert (code, err) == (0, "")
    assert head.split() == ["workflow", "status", "steps", "took", "updated"]
    assert re.fullmatch(r"batch +✓ completed +2/2 +\d+ ms  \d\d:\d\d:\d\d", batch)
    assert re.fullmatch(r"broken +✕ failed +0/1 +\d+ ms  \d\d:\d\d:\d\d", broken)


def test_list_chooses_by_failures_and_age(run, root):
    """`--failed`, `--running` and `--since` leave out the other workflows, as text and as JSON."""
    with Workflow("collecting", dir=root) as workflow:
        summary = workflow.run_for_each([1, 2], _fail_for, stop_on_error=False, progress=False)
    assert summary.rejected == 2
    assert [line.split()[0] for line in run("list", "--failed")[1].splitlines()[1:]] == ["collecting", "broken"]
    assert "collecting  ✕ completed, 2 failed    0/2" in run("list")[1]
    assert run("list", "--running")[1].startswith("no workflows in ")
    assert len(run("list", "--since", "1d")[1].splitlines()) == 4
    assert run("list", "--since", "0s")[1].startswith("no workflows in ")
    assert [entry["workflowId"] for entry in json.loads(run("list", "--json", "--failed")[1])] == [
        "broken",
        "collecting",
    ]


def _fail_for(number):
    return current_workflow().run_step(f"save:{number}", _fail)


def test_an_error_without_a_message_is_its_name(tmp_path, run):
    """A run that Ctrl-C ended shows the error's class alone, and is interrupted, not failed."""
    workflow = Workflow("stopped", dir=tmp_path)
    with pytest.raises(KeyboardInterrupt), workflow:
        raise KeyboardInterrupt
    assert "† interrupted" in run("list", root=tmp_path)[1].splitlines()[1]
    assert "\nended by KeyboardInterrupt\n" in run("show", "stopped", root=tmp_path)[1]


@pytest.mark.slow
def test_a_run_whose_process_died_is_told_from_a_live_one(tmp_path, run):
    """`list` and `show` say that the process of a run is gone, and since when at most; a live run is just running."""
    code = "with workflow:\n    workflow.run_step('ask', lambda: (say('go'), hear()))"
    with child(code, tmp_path) as process:
        assert process.line() == "go"
        assert run("list", root=tmp_path)[1].splitlines()[1].split()[:4] == ["w", "●", "running", "0/1"]
        assert "● running" in run("list", "--running", root=tmp_path)[1]
        assert run("show", "w", root=tmp_path)[1].startswith("w  ● running\n")
        assert run("show", "w", "--exit-status", root=tmp_path)[0] == 12
        assert json.loads(run("list", "--json", root=tmp_path)[1])[0]["isAlive"] is True
        assert json.loads(run("show", "--json", "w", root=tmp_path)[1])["isAlive"] is True
        process.kill()
    assert run("list", root=tmp_path)[1].splitlines()[1].split()[:4] == ["w", "†", "interrupted", "0/1"]
    code, out, _ = run("show", "w", "--exit-status", root=tmp_path)
    assert (code, out.splitlines()[0]) == (11, "w  † interrupted")
    assert "1 run, 1 died" in out
    assert "interrupted; the next run takes it over" in run("show", "w", "--steps", root=tmp_path)[1]
    assert "the next run of the script takes it over" in run("show", "w", "ask", root=tmp_path)[1]
    assert json.loads(run("list", "--json", root=tmp_path)[1])[0]["isAlive"] is False
    assert "isAlive" not in json.loads(run("show", "--json", "w", root=tmp_path)[1])


def test_list_loads_no_other_view(root):
    """A command loads what it needs: all of the views take a sixth of the time to start."""
    code = f"import sys; from iso_orchestrator.views.cli import main; main(['list', '--dir', {str(root)!r}])"
    code += "; print(*sorted({'psutil', 'webbrowser', 'statistics', 'difflib', 'tarfile'} & sys.modules.keys()))"
    code += "; print(*[name for name in sys.modules if '.timeline' in name or '.screen' in name])"
    out = subprocess.run(
        [sys.executable, "-c", code], env=_environment(), check=True, capture_output=True, text=True, timeout=DEADLINE
    ).stdout
    assert out.splitlines()[-2:] == ["", ""]
    assert "batch" in out


def test_list_as_json(run):
    """`list --json` prints the summaries with keys in camelCase."""
    code, out, _ = run("list", "--json")
    batch, broken = json.loads(out)
    assert code == 0
    assert (batch["workflowId"], batch["status"]) == ("batch", "completed")
    assert batch["steps"] == {"running": 0, "completed": 2, "failed": 0, "waiting": 0}
    assert "lastError" not in batch
    assert broken["lastError"]["message"] == "no space"
    assert broken["updatedAt"].endswith("Z")


def test_show_has_all_parts_of_a_record(run, root):
    """`show` has the state, heartbeats, leases and the record's path; steps and events when they are asked for."""
    code, out, err = run("show", "batch")
    assert (code, err) == (0, "")
    assert out.startswith("batch  ✓ completed\n")
    assert '{"applied": 2}' in out
    assert str(Workflow("batch", dir=root).record_path) in "".join(line.strip() for line in out.splitlines())
    assert "2 of 2 steps done, 2 attempts\n" in out
    assert "a message" not in out
    assert re.search(r'^worker +\d\d:\d\d:\d\d  \{"at": "Acme"\}$', out, re.MULTILINE)
    lease = next(line for line in out.splitlines() if line.startswith("slot"))
    assert lease.split()[:4] == ["slot", "active", "alpha", "1"]
    assert re.search(
        r'^✓  1  apply:Acme +1 +\d+ ms  \{"outcome": "APPLIED"\}$', run("show", "batch", "--steps")[1], re.M
    )
    events = run("show", "batch", "--events", "3")[1].partition("\n\n")[2].splitlines()
    assert len(events) == 4
    assert "a message" in "".join(events)
    assert "no event" in run("show", "batch", "--events", "0")[1]


def test_show_tells_why_a_workflow_failed(run):
    """`show` has the errors of the step and of the workflow, and `--exit-status` says that there are any."""
    code, out, _ = run("show", "broken", "--exit-status")
    assert code == 10
    assert out.count("OSError: no space") == 2
    assert run("show", "batch", "--exit-status")[0] == 0


def test_show_of_a_step_has_the_user_s_part_of_the_traceback(run):
    """`show W STEP` has the state, error, and the frames of the user's code; `--failed` shows each failure so."""
    code, out, err = run("show", "broken", "save")
    assert (code, err) == (0, "")
    assert re.match(r"✕ save  #1\n\nstate +failed\n", out)
    assert "\nOSError: no space\n" in out
    assert re.search(r"^traceback \(\d+ frames of libraries left out\)$", out, re.M)
    assert re.search(r'^  File ".*test_cli.py", line \d+, in _fail$', out, re.M)
    assert "\n    raise OSError" in out
    assert "iso_orchestrator/" not in out
    assert out.endswith("it runs again in the next run of the script; reset is not needed\n")
    failed = run("show", "broken", "--failed")[1]
    assert failed.startswith("broken  ✕ failed\n")
    assert failed.endswith(out)
    assert "no step has failed" in run("show", "batch", "--failed")[1]


def test_show_of_a_step_as_json_and_its_result(run):
    """`show W STEP --json` has the step's history, `--result` its whole result; a step without one is an error."""
    shown = json.loads(run("show", "batch", "--json", "#1")[1])
    assert (shown["name"], shown["number"], shown["outcome"]) == ("apply:Acme", 1, "completed")
    assert shown["attempts"][0]["begun"].endswith("Z")
    assert json.loads(run("show", "batch", "apply:A*", "--result")[1]) == {"outcome": "APPLIED"}
    assert json.loads(run("show", "--result", "batch", "apply:B…alis")[1]) is None
    for words in (
        ["broken", "save", "--result"],
        ["batch", "--result"],
        ["batch", "#1", "--attempt", "7"],
        ["batch", "x"],
    ):
        code, out, err = run("show", *words)
        assert (code, out, err.count("\n")) == (1, "", 1)


def test_an_attempt_is_shown_alone(tmp_path, run):
    """`--attempt` shows the error of one attempt; the table of a step has all, and the waits between them."""
    errors = [OSError("first"), OSError("second")]
    with Workflow("flaky", dir=tmp_path) as workflow:
        workflow.run_step("save", lambda: _raise(errors.pop(0)) if errors else "done", retry=Retry(3, wait=0.01))
    out = run("show", "flaky", "save", root=tmp_path)[1]
    assert "state   completed after 3 attempts\n" in out
    table = out.split("\n\n")[2].splitlines()
    assert [line.split()[0] for line in table[1::2]] == ["1", "2", "3"]
    assert all("waits for its next attempt" in line for line in table[2::2])
    assert "OSError" not in out
    out = run("show", "flaky", "save", "--attempt", "2", root=tmp_path)[1]
    assert "OSError: second" in out
    assert "attempt  2, failed, tried again\n" in out


def _raise(error):
    raise error


def test_show_as_json_is_the_npm_package_s_record(run, root):
    """`show --json` prints exactly what the npm package reads in the snapshot."""
    code, out, _ = run("show", "batch", "--json")
    snapshot = json.loads(Path(Workflow("batch", dir=root).record_path).read_bytes())
    del snapshot["isoOrchestrator"]
    assert code == 0
    assert json.loads(out) == snapshot
    assert snapshot["steps"]["apply:Borealis"]["result"] is None


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["show", "batch"], ["show", "nobody"]])
def test_looking_changes_nothing(command, run, root):
    """`list` and `show` leave every file and its times unchanged."""
    before, then = tree(root), times(root)
    run(*command)
    assert tree(root) == before
    assert times(root) == then


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["show", "batch"]])
def test_looking_at_a_missing_root_makes_nothing(command, tmp_path, monkeypatch):
    """`list` and `show` create no root."""
    monkeypatch.chdir(tmp_path)
    main(command)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_root_has_no_workflows(run, tmp_path):
    """A missing root is an empty one."""
    missing = tmp_path / "missing"
    assert run("list", root=missing) == (0, f"no workflows in {missing}\n", "")
    assert run("list", "--json", root=missing)[:2] == (0, "[]\n")


@pytest.mark.slow
def test_looking_waits_for_no_lock(root):
    """`list` and `show` answer while another process holds the records' locks."""
    locks = list(root.glob("locks/*/record.flock"))
    assert len(locks) == 2
    held = [os.open(path, os.O_RDWR) for path in locks]
    try:
        for fd in held:
            fcntl.flock(fd, fcntl.LOCK_EX)
        for command in (["list"], ["show", "batch"]):
            out, err = start(*command, "--dir", root)
            assert "batch" in out
            assert err == ""
    finally:
        for fd in held:
            os.close(fd)


@pytest.mark.parametrize("command", [["show"], ["fold"], ["delete"], ["reset"]])
def test_an_unknown_workflow_is_one_helpful_line(command, run, root):
    """A mistyped id ends with 1, says how to find the right one, and creates no record."""
    before = tree(root)
    code, out, err = run(*command, "bacth", *(["*"] if command == ["reset"] else []))
    assert (code, out) == (1, "")
    assert err.startswith("iso-orchestrator: no workflow 'bacth' in ")
    assert "`iso-orchestrator list` shows" in err
    assert err.count("\n") == 1
    assert tree(root) == before


def test_backup_makes_a_file_and_replaces_none(run, root, tmp_path):
    """`backup` says how many facts it has copied; it refuses an existing file, in one line."""
    file = tmp_path / "b.tar"
    facts = json.loads(run("verify", "batch", "--json")[1])["workflows"][0]["facts"]
    code, out, err = run("backup", "batch", str(file))
    assert (code, err) == (0, "")
    assert out == f"{file} has {facts} facts; `tar -xf` in another folder of workflows restores them\n"
    code, out, err = run("backup", "batch", str(file))
    assert (code, out) == (1, "")
    assert err == f"iso-orchestrator: {file} exists: remove it, or give another name\n"


def test_hostile_texts_are_shown_as_text(tmp_path, run, monkeypatch):
    """No recorded text can drive the terminal, in whatever field."""
    with Workflow(HOSTILE, dir=tmp_path, initial_state={HOSTILE: HOSTILE}) as workflow:
        workflow.run_step(HOSTILE, lambda: HOSTILE)
        workflow.heartbeat(HOSTILE, HOSTILE)
        workflow.touch_lease(HOSTILE, holder=HOSTILE, ttl=30, detail=HOSTILE)
        workflow.append_event(HOSTILE, HOSTILE, HOSTILE)
        workflow.set_status("failed", OSError(HOSTILE))
    step = ["show", HOSTILE, HOSTILE]
    for command in (
        *(["list"], ["list", "--json"], ["show", HOSTILE], ["show", HOSTILE, "--json"], ["watch", HOSTILE]),
        *(
            ["show", HOSTILE, "--steps"],
            ["show", HOSTILE, "--events", "9"],
            step,
            [*step, "--json"],
            [*step, "--result"],
        ),
    ):
        code, out, err = run(*command, root=tmp_path)
        assert (code, err) == (0, "")
        assert all(char == "\n" or (char.isprintable()) for char in out), ascii(out)
    monkeypatch.setenv("COLUMNS", "200")
    assert run("show", HOSTILE, root=tmp_path)[1].startswith(f"{SPELLED_OUT}  ✓ completed")
    assert run("list", root=tmp_path)[1].splitlines()[1].startswith(SPELLED_OUT)


def test_hostile_texts_in_errors_are_shown_as_text(run):
    """No error message can drive the terminal, and each is one line."""
    for command in (["show", HOSTILE], ["reset", "batch", HOSTILE]):
        code, _, err = run(*command)
        assert code == 1
        assert err.count("\n") == 1
        assert all(char == "\n" or char.isprintable() for char in err), ascii(err)


def test_a_hostile_root_is_shown_as_text(tmp_path, run):
    """The path of the root cannot drive the terminal."""
    root = tmp_path / "\x1b[31m\n\x9b"
    assert run("list", root=root)[1].endswith("\\x1b[31m\\n\\x9b\n")
    open_workflow("batch", dir=root).close()
    for command in (["show", "batch"], ["fold", "batch"], ["show", "nobody"], ["delete", "nobody"]):
        _, out, err = run(*command, root=root)
        assert all(char == "\n" or char.isprintable() for char in out + err), ascii(out + err)


def test_long_texts_are_cut_in_tables(tmp_path, run):
    """A long result is cut to one line in a table, and whole in JSON."""
    with Workflow("long", dir=tmp_path) as workflow:
        workflow.run_step("say", lambda: "x" * 10_000)
    _, out, _ = run("show", "long", root=tmp_path)
    assert max(map(len, out.splitlines())) < 250
    _, out, _ = run("show", "long", "--json", root=tmp_path)
    assert json.loads(out)["steps"]["say"]["result"] == "x" * 10_000


@pytest.mark.slow
def test_a_terminal_without_unicode_shows_what_it_can(tmp_path):
    """Characters of an id that the output encoding lacks are escaped."""
    open_workflow("Zoë", dir=tmp_path).close()
    out, err = start("list", "--dir", tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert r"Zo\xeb" in out
    assert err == ""


def test_a_damaged_record_hides_no_other(run, root):
    """`list` shows the sound workflows, names the damaged file, and ends with 1."""
    path = Path(Workflow("broken", dir=root).record_path)
    path.write_bytes(b"{")
    code, out, err = run("list")
    assert code == 1
    assert "batch" in out
    assert str(path) in err
    assert err.count("\n") == 1
    assert run("show", "broken")[0] == 1


def test_a_root_that_is_a_file_is_an_error(run, tmp_path):
    """A root that is a file ends with 1 and one line that names it."""
    path = tmp_path / "file"
    path.write_text("not a folder")
    for command in (["list"], ["show", "batch"], ["delete", "batch"]):
        code, _, err = run(*command, root=path)
        assert code == 1
        assert str(path) in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["frobnicate"],
        ["list", "--since", "soon"],
        ["--store", "memory://x", "demo"],
        ["show", " "],
        ["show", "\udcff"],
        ["reset", "batch"],
        ["demo", "--pace", "nan"],
        ["demo", "--pace", "-1"],
        ["demo", "--pace", "soon"],
    ],
)
def test_wrong_usage_ends_with_2(args, capsys, tmp_path, monkeypatch):
    """Wrong arguments end with 2, and nothing is done."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: iso-orchestrator")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_fold_lets_other_programs_see_what_a_killed_process_did(tmp_path, run):
    """After a kill `fold` writes all acknowledged steps into the snapshot."""
    with run_python(
        "import sys; from iso_orchestrator import Workflow\n"
        "workflow = Workflow('batch', dir=sys.argv[1]); workflow.run_step('apply', lambda: 'done')\n"
        "print('acknowledged'); input()",
        tmp_path,
    ) as child:
        assert child.line() == "acknowledged"
        child.kill()
    path = Path(Workflow("batch", dir=tmp_path).record_path)
    assert "apply" not in json.loads(path.read_bytes())["steps"]
    code, out, err = run("fold", "batch", root=tmp_path)
    assert (code, err) == (0, "")
    assert str(path) in out
    assert json.loads(path.read_bytes())["steps"]["apply"]["result"] == "done"


@pytest.mark.slow
def test_fold_says_that_others_are_still_at_it(tmp_path, run):
    """While another process uses the workflow, `fold` ends with 1: the snapshot is not complete."""
    with run_python(
        "import sys; from iso_orchestrator import Workflow\n"
        "workflow = Workflow('batch', dir=sys.argv[1]); workflow.run_step('apply', lambda: 'done')\n"
        "print('acknowledged'); input()",
        tmp_path,
    ) as child:
        assert child.line() == "acknowledged"
        code, out, err = run("fold", "batch", root=tmp_path)
        assert (code, out) == (1, "")
        assert "other processes" in err
        child.say()
        child.end()
    assert run("fold", "batch", root=tmp_path)[0] == 0


def test_reset_lets_a_step_run_again(run, root):
    """`reset` forgets a step, and no other."""
    assert run("reset", "batch", "apply:Acme") == (0, "reset apply:Acme\n", "")
    assert list(read_workflow_record("batch", dir=root).steps) == ["apply:Borealis"]


def test_reset_takes_a_pattern(run, root):
    """`reset` with a pattern forgets all steps that match."""
    code, out, _ = run("reset", "batch", "apply:*")
    assert code == 0
    assert sorted(out.splitlines()) == ["reset apply:Acme", "reset apply:Borealis"]
    assert not read_workflow_record("batch", dir=root).steps


def test_reset_takes_a_name_as_show_cut_it(run, root):
    """The middle of a long name is cut out on a terminal; a text that could be several steps resets none."""
    with Workflow("batch", dir=root) as workflow:
        for name in ("apply:the first of two long names", "apply:the other of two long names"):
            workflow.run_step(name, lambda: 1)
    code, out, err = run("reset", "ba…h", "apply:the…long names")
    assert (code, out) == (1, "")
    assert "could be 2 steps" in err
    assert run("reset", "ba…h", "apply:the fi…ng names") == (0, "reset apply:the first of two long names\n", "")


def test_reset_of_nothing_ends_with_1(run, root):
    """`reset` of a name that no step has ends with 1, and forgets nothing."""
    code, out, err = run("reset", "batch", "aply")
    assert (code, out) == (1, "")
    assert "'aply'" in err
    assert len(read_workflow_record("batch", dir=root).steps) == 2


def test_delete_removes_a_workflow(run, root):
    """`delete` removes a workflow, and no other."""
    assert run("delete", "batch") == (0, "deleted batch\n", "")
    assert [entry["workflowId"] for entry in json.loads(run("list", "--json")[1])] == ["broken"]


@pytest.mark.slow
def test_delete_is_refused_while_the_workflow_is_in_use(run, root):
    """`delete` keeps a workflow that a process uses, and names the process."""
    with run_python(
        "import sys; from iso_orchestrator import open_workflow\n"
        "workflow = open_workflow('batch', dir=sys.argv[1]); print('open'); input()",
        root,
    ) as child:
        assert child.line() == "open"
        code, out, err = run("delete", "batch")
        assert (code, out) == (1, "")
        assert f"process {child.pid} " in err
        child.say()
        child.end()
    assert run("show", "batch")[0] == 0


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """`show ... | head -1` ends without an error message."""
    with Workflow("large", dir=tmp_path) as workflow:
        workflow.update_state(["x" * 90] * 3000)
    process = _spawn("show", "large", "--json", "--dir", tmp_path)
    assert process.stdout.readline() == "{\n"
    process.stdout.close()
    assert process.wait(DEADLINE) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs /proc to see that the command waits")
def test_ctrl_c_ends_a_waiting_command_with_130(root):
    """Ctrl-C ends a command with 130 and one line, without a traceback."""
    (lock,) = root.glob("locks/batch-*/record.flock")
    with lock.open("rb+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = _spawn("fold", "batch", "--dir", root)
        wait_until(lambda: waits_for_a_lock(process.pid), what="the command's wait for the lock")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (130, "", "iso-orchestrator: interrupted\n")


def test_the_version_is_the_package_s(capsys):
    """`--version` prints the version of the package."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"iso-orchestrator {__version__}\n"


def test_the_console_script_is_this_one():
    """The installed command is `iso_orchestrator.views.cli:main`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["iso-orchestrator"] == f"{main.__module__}:{main.__name__}"


def test_the_command_line_works_on_any_store(root, capsys, tmp_path):
    """With --store a command is about that store, be it a folder's URL or one in memory, which has nothing to show."""

    def run(*args):
        code = main(list(args))
        return code, *capsys.readouterr()

    by_dir = run("show", "--dir", str(root), "batch")
    assert run("--dir", str(root), "show", "batch") == by_dir
    assert run("--store", f"file://{root}", "show", "batch") == by_dir
    assert run("show", "--store", f"file://{root}", "batch") == by_dir
    assert run("fold", "--store", f"file://{root}", "batch")[0] == 0
    empty = "memory://command-line"
    assert run("list", "--store", empty) == (0, f"no workflows in {empty}\n", "")
    assert run("verify", "--store", empty) == (0, f"no workflows in {empty}\n", "")
    assert run("top", "--store", empty)[0] == 0
    for command in (
        ["show", "w"],
        ["fold", "w"],
        ["reset", "w", "step"],
        ["delete", "w"],
        ["logs", "w", "step"],
        ["repair", "w"],
        ["verify", "w"],
        ["top", "w"],
    ):
        code, out, err = run(command[0], "--store", empty, *command[1:])
        assert (code in (1, 3), out) == (True, "")
        assert err.startswith(f"iso-orchestrator: no workflow 'w' in {empty}: ")
    assert run("list", "--store", "nowhere:///x")[0] == 1


def test_every_command_has_a_word_for_a_workflow_in_memory(capsys):
    """A store in memory has records to show, and neither files nor damage."""
    store = "memory://command-line-with-work"
    with Workflow("w", store=store) as workflow:
        workflow.run_step("step", lambda: 1)

    def run(*args):
        code = main([args[0], "--store", store, *args[1:]])
        return code, *capsys.readouterr()

    assert run("list")[1].splitlines()[1].startswith("w")
    assert "memory:w" in run("show", "w")[1]
    assert run("show")[1] == run("show", "w")[1]
    assert run("fold", "w") == (0, "the snapshot is complete: memory:w\n", "")
    assert run("verify")[1].splitlines()[-1] == f"1 sound in {store}"
    assert "nothing is damaged" in run("repair", "w")[1]
    assert "no command" in run("logs", "w", "step")[2]
    assert run("reset", "w", "step")[1] == "reset step\n"
    assert run("delete", "w")[1] == "deleted w\n"
