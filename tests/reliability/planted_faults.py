"""Faults of the kinds by which the promises could be broken, each with the test that does not let it pass."""

from __future__ import annotations

import attrs

__all__ = ["FAULTS", "MORE_FAULTS", "Fault"]


@attrs.frozen
class Fault:
    """A fault in one place of the package.

    Attributes:
        name: What is wrong.
        module: The file it is put into, in the package.
        text: What stands there, once.
        instead: What stands there when the fault is planted.
        caught_by: The test that fails then, or at least one of its cases.
        options: What that is run with: where it draws or counts, so that it is sure to fail.
    """

    name: str
    module: str
    text: str
    instead: str
    caught_by: str
    options: tuple[str, ...] = ("--tier", "quick", "--seed", "1")


_SCRIPT = "tests/reliability/test_replay.py::test_no_script_loses_what_was_acknowledged"
_DAMAGE = "tests/reliability/test_replay.py::test_damage_is_told_from_a_torn_tail"
_SLEEPERS = "tests/reliability/test_stopped_holders.py"
_GUARDED = "tests/commands/test_guard.py::test_commands_of_a_killed_runner_are_ended"
_GUARDED_AT_RANDOM = "tests/reliability/test_commands.py::test_commands_of_killed_runners_are_ended"

FAULTS = [
    Fault(
        "no sync on append",
        "store/file/log.py",
        "        self._fs.sync(self._journal.fd)\n",
        "",
        f"{_SCRIPT}[a_run]",
    ),
    Fault(
        "no folder sync after create or rename",
        "store/files.py",
        "        fs.sync_folder(path)\n",
        "        pass\n",
        f"{_SCRIPT}[a_run]",
    ),
    Fault(
        "snapshot renamed before its sync",
        "store/files.py",
        "        sync_file(fs, fd)\n        fs.replace(aside, path)\n",
        "        fs.replace(aside, path)\n        sync_file(fs, fd)\n",
        f"{_SCRIPT}[a_run]",
    ),
    Fault(
        "journal cut before the snapshot is durable",
        "store/file/log.py",
        "        self.record_lock.begin_generation()  # before",
        "        if self._journal is not None:\n"
        "            self._fs.truncate(self._journal.fd, self._journal.header.size)\n"
        "        self.record_lock.begin_generation()  # before",
        f"{_SCRIPT}[a_run]",
    ),
    Fault(
        "checksum not checked",
        "store/file/journal.py",
        'if body and _close(body, start) == line + b"\\n" else None',
        "if body else None",
        "tests/reliability/test_cuts_and_flips.py::test_a_flipped_bit_of_a_journal_is_noticed[new]",
    ),
    Fault(
        "sequence not checked",
        "store/file/journal.py",
        "line is None or line.seq != next_seq",
        "line is None",
        _DAMAGE,
    ),
    Fault(
        "damage before the synced mark taken for a torn tail",
        "store/file/journal.py",
        "found.end < start + len(data) and bad_seq <= found.mark",
        "False",
        _DAMAGE,
    ),
    Fault(
        "a sequence gap accepted",
        "store/file/journal.py",
        "        if line is None or line.seq != next_seq:\n            break\n",
        "        if line is None or line.seq < next_seq:\n            break\n        next_seq = line.seq\n",
        _DAMAGE,
    ),
    Fault(
        "a sync retried after it failed",
        "store/file/group_commit.py",
        'self.failure = f"a sync failed ({error.strerror})"',
        "self._sync_file()",
        "tests/reliability/test_failed_sync.py::test_no_user_is_told_of_what_a_failed_sync_lost[a_run]",
        ("--tier", "full", "--seed", "1"),
    ),
    Fault(
        "acknowledged before the append",  # each call writes what the one before it was given
        "store/file/log.py",
        "        data = encode_lines(",
        '        data, self.late = getattr(self, "late", b""), encode_lines(',
        f"{_SCRIPT}[a_run]",
    ),
    Fault(
        "one lock object shared by threads",
        "runtime/session.py",
        "        self._guard = threading.Lock()\n",
        "        import contextlib\n\n"
        "        self._guard = type('NoLock', (contextlib.nullcontext,), {'locked': lambda _: False})()\n",
        "tests/reliability/test_threads.py::test_no_update_is_lost_between_threads[file]",
    ),
    Fault(
        "lease expiry by wall clock alone on one boot",
        "coordination/lease.py",
        "boot[0] == by_boot.boot_id",
        "False",
        "tests/reliability/test_clocks.py"
        "::test_whatever_the_clock_does_order_is_by_sequence_and_no_lease_ends_early_or_late[machine-0]",
    ),
    Fault(
        "release without an owner check",
        "coordination/lease.py",
        " or latest != held.token or ",
        " or ",
        f"{_SLEEPERS}::test_a_lease_holder_that_slept_past_its_time_records_nothing[0]",
    ),
    Fault(
        "token not checked at append",
        "runtime/session.py",
        "current != fence.token",
        "False",
        "tests/coordination/test_lease.py::test_nothing_is_recorded_under_a_lease_that_was_lost[append_event]",
    ),
    Fault(
        "lease not checked after waiting",
        "coordination/mutex.py",
        "            record_acquired(session, self._runtime.clock, self._key, waiter)\n",
        "            pass\n",
        f"{_SLEEPERS}::test_a_lease_is_looked_at_again_when_the_wait_for_a_mutex_ends[before it is free-mutex]",
    ),
    Fault(
        "lock file unlinked on release",
        "store/mutex.py",
        "            self._file.release()\n",
        "            from iso_orchestrator.store.files import remove\n\n"
        "            self._file.release()\n"
        "            remove(self._fs, self._file.path)\n",
        "tests/reliability/test_mutex_holders.py::test_one_holder_at_a_time[8]",
    ),
    Fault(
        "unlock in a forked child",
        "system/file_lock.py",
        "            os.close(fd)\n",
        "            lock._kernel.flock(fd, lock._kernel.unlock)\n            os.close(fd)\n",
        "tests/reliability/test_fork_storm.py::test_a_forked_child_touches_none_of_its_parents_locks[exits]",
    ),
    Fault(
        "a raw id as a file name",
        "store/names.py",
        'short=f"{stem}-{digest[:8]}"',
        "short=workflow_id",
        # It makes no files: those of a test that does would be anywhere.
        "tests/reliability/test_hostile_names.py::test_generated_names_are_safe_and_apart",
    ),
    Fault(
        "escaping left out of a line",
        "views/terminal.py",
        "        text = escape_terminal(text)\n        if self.is_utf8",
        "        if self.is_utf8",
        "tests/reliability/test_inert_texts.py::test_texts_on_a_terminal_are_texts[0]",
    ),
    Fault(
        "a non-Exception retried or swallowed",
        "steps/call.py",
        "else self._pause_before_retry(error, context)\n",
        "else self._pause_before_retry(error, context) if isinstance(error, Exception) else 0.0\n",
        "tests/steps/test_retry.py::test_what_is_no_exception_is_recorded_and_goes_on",
    ),
    Fault(
        "another process's unsynced result returned",
        "store/file/log.py",
        "self._commits.raise_to(found.mark)",
        "self._commits.raise_to(projection.seq)",
        f"{_SCRIPT}[result_of_another_process]",
    ),
]

_SHARED_SYNC = "tests/reliability/test_sync_schedules.py::test_nobody_is_forgotten_and_nobody_goes_on_too_early"
# The full tier has many more schedules and rounds than it takes to find one of these.
_FEW = ("--tier", "soak", "--soak-factor", "0.001", "--seed", "1")
_FEWER = ("--tier", "soak", "--soak-factor", "0.0001", "--seed", "1")

_RESULTS = "tests/reliability/test_fidelity.py::test_results_come_back_exactly_or_are_refused"
_NAMES = "tests/reliability/test_fidelity.py::test_no_two_different_arguments_share_a_name"

# Faults that were there, or that the code of now could have, and that no row noticed before it was made for their kind.
_STOPPED = "tests/reliability/test_stop_signals.py::test_batches_that_are_stopped_leave_no_process"

MORE_FAULTS = [
    Fault(
        "a backup taken without the lock",
        "store/file/store.py",
        "                with locked_record(self._fs, paths):\n",
        "                if self._fs:\n",
        "tests/store/test_backup.py::test_backup_waits_for_a_process_that_writes",
    ),
    Fault(
        "an older snapshot taken under a newer journal without facts",
        "store/file/snapshot.py",
        "projection.seq < header.base and not pair.foreign",
        "False",
        "tests/reliability/test_mixed_pairs.py::test_files_of_different_moments_lose_nothing_in_silence",
    ),
    Fault(
        "older files taken by a process that has seen newer ones",
        "store/file/log.py",
        "            self._refuse_older(pair, fd)\n",
        "",
        "tests/reliability/test_gone_back.py::test_files_that_go_back_under_a_live_process_are_refused",
    ),
    Fault(
        "a file opened in place of a closed standard stream",
        "system/filesystem.py",
        "    for number in range(3):\n",
        "    for number in range(0):\n",
        "tests/reliability/test_closed_streams.py::test_what_is_printed_to_a_closed_stream_gets_into_no_file",
    ),
    Fault(
        "a sound line that cannot be decoded here taken for a torn one",
        "store/file/journal.py",
        "        raise _unreadable(path, offset, error) from error\n",
        "        return None\n",
        "tests/reliability/test_unreadable_lines.py::test_a_sound_line_that_cannot_be_decoded_here_is_kept",
    ),
    Fault(
        "a mutex in use kept among the free ones",
        "store/mutex.py",
        "            self._file.release()\n",
        "            self._file.release()\n            self.dispose()\n",
        "tests/reliability/test_many_mutexes.py::test_many_mutexes_exclude_as_one_does",
        _FEW,
    ),
    Fault(
        "a sync taken for one of facts that were written after it began",
        "store/file/group_commit.py",
        "            self.raise_to(target)\n",
        "            self.raise_to(self.written)\n",
        _SHARED_SYNC,
        _FEW,
    ),
    Fault(
        "a sync not kept out while the file is replaced",
        "store/file/group_commit.py",
        "        with self._lock:\n            yield\n",
        "        if self._lock:\n            yield\n",
        _SHARED_SYNC,
        _FEW,
    ),
    Fault(
        "a sync after one that failed while its thread waited",
        "store/file/group_commit.py",
        "        if self.failure is not None or self.synced >= seq:\n            return",
        "        if self.synced >= seq:\n            return",
        _SHARED_SYNC,
        _FEW,
    ),
    Fault(
        "a lock that comes when no waiter is left kept",
        "coordination/mutex_queue.py",
        "                is_over = not self.is_locked and not self.waiters\n",
        "                is_over = not self.waiters\n",
        "tests/reliability/test_mutex_schedules.py::test_a_mutex_is_handed_on_to_one_at_a_time_and_to_all",
        _FEWER,
    ),
    Fault(
        "no descriptors kept to end commands with",
        "system/processes.py",
        "    _keep_spare_descriptors()\n    return psutil.Popen(",
        "    return psutil.Popen(",
        "tests/reliability/test_commands.py::test_commands_are_ended_without_descriptors",
    ),
    Fault(
        "errors shown as they came",
        "errors.py",
        "return escape_terminal(self._text())",
        "return self._text()",
        "tests/reliability/test_inert_texts.py::test_errors_and_their_log_records_are_texts[AgentError]",
    ),
    Fault(
        "a missing liveness file taken for a death",
        "store/liveness.py",
        "            return runs_since(int(pid), int(since) / 1000)\n",
        "            return not runs_since\n",
        "tests/reliability/test_lost_locks.py::test_a_step_runs_once_at_a_time_although_locks_are_removed[all locks]",
        ("--tier", "full", "--seed", "1"),
    ),
    Fault(
        "the record's lock not looked at after a write",
        "store/file/log.py",
        "        self._refuse_removed()  # after the write",
        "        pass  # after the write",
        "tests/store/test_cleaners.py::test_nothing_is_acknowledged_that_was_written_without_the_lock",
    ),
    Fault(
        "the file of a held mutex not looked at",
        "store/mutex.py",
        "            mutex.restore_name()\n",
        "            pass\n",
        "tests/reliability/test_lost_locks.py::test_a_mutex_whose_file_is_removed_has_one_holder_or_tells_that_it_had_two",
        ("--tier", "full", "--seed", "1"),
    ),
    Fault(
        "what a process left that cannot write any more taken for durable",
        "store/file/log.py",
        " and not others.has_failed",
        "",
        "tests/store/test_appending.py::test_what_a_failed_sync_left_is_written_anew_by_the_next_that_opens",
    ),
    Fault(
        "a process that cannot write given up while its bodies run",
        "runtime/session.py",
        "            if log is None or self._in_flight:\n",
        "            if log is None:\n",
        "tests/reliability/test_lost_locks.py::test_a_step_runs_once_at_a_time_although_syncs_fail",
        ("--tier", "full", "--seed", "1"),
    ),
    Fault(
        "the locking call left to a variable of portalocker",
        "system/file_lock.py",
        "else lockers.FlockLocker().locker\n",
        "else lockers.LOCKER\n",
        "tests/system/test_file_lock.py::test_locks_do_not_depend_on_what_a_program_sets_in_portalocker[fcntl.lockf]",
    ),
    Fault(
        "results not compared with what comes back",
        "codec/values.py",
        "            check_same(value, back)\n",
        "            pass\n",
        _RESULTS,
    ),
    Fault(
        "attributes not compared",
        "codec/fidelity.py",
        "    for name in attributes_besides(value, fields):\n",
        "    for name in ():\n",
        _RESULTS,
    ),
    Fault(
        "fields that are not in `__init__` dropped",
        "codec/converter.py",
        "for field in dataclasses.fields(cls)}",
        "for field in dataclasses.fields(cls) if field.init}",
        _RESULTS,
        ("--tier", "full", "--seed", "1"),
    ),
    Fault(
        "objects made again by `__init__`",
        "codec/converter.py",
        "        fill(record, vars(read(data, fields)), data)\n        return record\n",
        "        return cls(**vars(read(data, fields)))\n",
        _RESULTS,
    ),
    Fault(
        "the zone left out of a name",
        "steps/rendering.py",
        "{f'[{zone}]' if zone else ''}",
        "",
        _NAMES,
        ("--tier", "full", "--seed", "1"),
    ),
    Fault(
        "the module left out of a class's name",
        "steps/rendering.py",
        'return value.__qualname__ if module == "builtins" else',
        "return value.__qualname__ if module else",
        _NAMES,
    ),
    Fault(
        "attributes besides the fields left out of a name",
        "steps/rendering.py",
        "    if more:\n",
        "    if False:\n",
        _NAMES,
    ),
    Fault(
        "quotes not escaped in a name",
        "steps/rendering.py",
        "    text = encode_basestring(value)\n",
        "    text = f'\"{value}\"'\n",
        _NAMES,
        ("--tier", "full", "--seed", "1"),
    ),
    Fault(
        "a thread with a copied context taken for the owner of a mutex",
        "runtime/context.py",
        "if owner is not None and owner.is_here:",
        "if owner is not None:",
        "tests/reliability/test_copied_contexts.py::test_contexts_that_are_copied_make_no_owner",
    ),
    Fault(
        "an asyncio task taken for the owner of a mutex",
        "runtime/context.py",
        " and self.task is _current_task()",
        "",
        "tests/reliability/test_copied_contexts.py::test_contexts_that_are_copied_make_no_owner",
    ),
    Fault(
        "the step of a thread not known in a new context",
        "runtime/context.py",
        "        return _here.attempts[-1]\n",
        "        return scope.attempt\n",
        "tests/reliability/test_contexts.py::test_no_step_runs_inside_of_itself_or_waits_for_itself",
    ),
    Fault(
        "the thread that runs a step left out of what the step waits for",
        "runtime/context.py",
        "(self.thread, *self.helpers)",
        "tuple(self.helpers)",
        "tests/reliability/test_contexts.py::test_no_step_runs_inside_of_itself_or_waits_for_itself",
        ("--tier", "full", "--seed", "1"),
    ),
    Fault(
        "a body that outlived its timeout still taken for a part of its caller",
        "runtime/threads.py",
        "owner.parent = attempt.parent = None",
        "attempt.parent = None",
        "tests/coordination/test_mutex_owners.py::"
        "test_a_body_that_outlived_its_timeout_enters_nothing_that_its_caller_took_later",
    ),
    Fault(
        "a submitted step taken for a part of the step that submitted it",
        "runtime/runtime.py",
        "owner=None, attempt=None, batch",
        "owner=None, batch",
        "tests/runtime/test_deadlocks.py::test_a_submitted_step_may_call_the_step_that_submitted_it",
    ),
    Fault(
        "a wait with a timeout taken for a deadlock",
        "coordination/mutex.py",
        "answered.is_set() or self._timeout is not None",
        "answered.is_set()",
        "tests/runtime/test_deadlocks.py::test_a_wait_with_a_timeout_is_no_deadlock",
    ),
    Fault(
        "Ctrl-C not told to the threads of a batch",
        "runtime/context.py",
        "    if batch is not None and batch.is_interrupted:\n",
        "    if False:\n",
        _STOPPED,
    ),
    Fault(
        "SIGTERM left to kill the runner alone",
        "system/interrupts.py",
        "            signal(SIGTERM, _terminate)\n",
        "            pass\n",
        _STOPPED,
        ("--tier", "full", "--seed", "1"),
    ),
    Fault(
        "a command without the tag by which the guard finds it",
        "commands/process.py",
        "[guard.runner_tag(), self.tag]",
        "[guard.runner_tag()[:0] or self.tag]",
        _GUARDED_AT_RANDOM,
    ),
    Fault(
        "a guard that does not kill what ignores SIGTERM",
        "system/guard.py",
        "KILL_AFTER = 1.2",
        "KILL_AFTER = 60.0",
        _GUARDED,
    ),
    Fault(
        "a guard that takes a closed pipe for the end of its runner",
        "system/guard.py",
        "    if not death or death[0] in ready:\n",
        "    if True:\n",
        "tests/commands/test_guard.py::test_code_that_closes_the_pipe_ends_no_command",
    ),
    Fault(
        "a forked child that keeps the pipe to the guard open",
        "system/guard.py",
        "unique_name() + unique_name(), threading.Lock()\n    _close_pipe()\n",
        "unique_name() + unique_name(), threading.Lock()\n",
        _GUARDED,
    ),
]
