"""Puts deliberate bugs into storage, lease, resume and ending, one at a time, and shows that each makes a quick test fail.

    python tests/faults/mutations.py [NAME …]

The package and its tests are copied to a temporary folder, so this checkout stays as it is. Exit status: 0 if each bug makes a
test fail, 1 if one survives, 2 if nothing can be shown: the tests fail without a bug, or a bug does not fit the code. All bugs
take some minutes, so CI only checks that each of them still fits the code, in `test_mutations.py`.

To add one: a small replacement that a person could write, and the tests that should see it. A bug that survives needs a test.

This file is long because it is a table.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PACKAGE = "prefect_batchflow"
LIMIT_SEC = 300.0
"""For all tests of one bug."""
TEST_LIMIT_SEC = 60
"""For one test with a bug, which can make it wait forever."""
_OUTCOME = re.compile(r"(?:FAILED|ERROR) (.+?)(?: - .*)?$")


@dataclass(frozen=True)
class Mutation:
    """A bug: in a file of the package, the text `old`, which is there once, becomes `new`."""

    why: str
    """How the bug would bite."""
    file: str
    old: str
    new: str
    tests: str
    """Files, separated by spaces, whose quick tests are to see it. The first failure ends the search."""


MUTATIONS: Final = {
    # --- a line is done only once its record is safe ---
    "acknowledge before the write": Mutation(
        "a kill loses lines that Prefect shows as completed",
        "storage/writer.py",
        "        await asyncio.shield(written)\n",
        "        written.done()\n",
        "tests/storage/test_writer.py",
    ),
    "count a line before the write": Mutation(
        "a disk that fills leaves lines that are counted and have no record",
        "storage/writer.py",
        "            await self._records.append(outcomes)\n",
        "            self._kept(outcomes)\n            await self._records.append(outcomes)\n",
        "tests/storage/test_writer.py",
    ),
    "a failed write looks like success": Mutation(
        "the run ends as completed without these records",
        "storage/writer.py",
        "                group.written.set_exception(failure)\n                group.written.exception()",
        "                group.written.set_result(None)\n                group.written.result()",
        "tests/storage/test_writer.py",
    ),
    "do not tell the run of a failed write": Mutation(
        "further lines are paid for, and none of them is kept",
        "storage/writer.py",
        "                self._failed(failure)\n",
        "",
        "tests/storage/test_writer.py",
    ),
    "write half of a segment that is too large": Mutation(
        "the second half is acknowledged, and lost",
        "storage/writer.py",
        "            await self._append(outcomes[middle:])\n",
        "",
        "tests/storage/test_reserve.py",
    ),
    "do not read a record back": Mutation(
        "a torn write is acknowledged",
        "storage/records.py",
        "            await read_sound(self._files, key, check)\n",
        "",
        "tests/contracts/test_storage_contract.py",
    ),
    "leave finished lines of a chunk that ends early": Mutation(
        "a stop loses results that are paid for",
        "line_runner.py",
        "                await asyncio.shield(self._keep())\n",
        "                pass\n",
        "tests/test_storage_gate.py",
    ),
    "begin lines while the storage fails": Mutation(
        "their results cannot be kept",
        "line_runner.py",
        "        self._storage_works.clear()\n",
        "",
        "tests/test_storage_gate.py",
    ),
    # --- files ---
    "do not flush a file to the disk": Mutation(
        "a power failure leaves empty segments that were acknowledged",
        "storage/files.py",
        "            os.fsync(file.fileno())\n",
        "            file.flush()\n",
        "tests/storage/test_files.py",
    ),
    "do not flush the folder to the disk": Mutation(
        "a power failure loses the name of a segment that was acknowledged",
        "storage/files.py",
        "        os.fsync(folder)\n",
        "        pass\n",
        "tests/storage/test_files.py",
    ),
    "write a file in place": Mutation(
        "a reader, or a kill, sees half a file",
        "storage/files.py",
        "            temporary.replace(target)\n    folder",
        "            shutil.copyfile(temporary, target)\n    folder",
        "tests/storage/test_files.py",
    ),
    "create a key that exists": Mutation(
        "two processes get the same lease",
        "storage/files.py",
        "            target.hardlink_to(temporary)\n",
        "            temporary.replace(target)\n",
        "tests/storage/test_files.py",
    ),
    "let a key lead out of the storage": Mutation(
        "a planted name writes anywhere",
        "storage/files.py",
        '    if key.startswith("/") or ".." in key.split("/"):\n',
        '    if key.startswith("/"):\n',
        "tests/storage/test_files.py",
    ),
    "take a short download for the file": Mutation(
        "half an outputs file is read, copied and exported",
        "storage/files.py",
        "            if size is not None and size != found:\n",
        "            if size is None:\n",
        "tests/storage/test_retries.py",
    ),
    "read a missing bucket as an empty one": Mutation(
        "all lines are paid for before the first write fails",
        "storage/files.py",
        "                if exc.__cause__ is not None:\n                    raise\n",
        "",
        "tests/storage/test_files.py",
    ),
    # --- tries ---
    "read a forbidden listing as empty": Mutation(
        "one 403 on a resume pays all lines again",
        "storage/files.py",
        "            except FileNotFoundError as exc:\n                # The error has a cause",
        "            except (FileNotFoundError, PermissionError) as exc:\n                # The error has a cause",
        "tests/storage/test_retries.py",
    ),
    "do not try again": Mutation(
        "one 503 ends the run",
        "storage/retries.py",
        "                    if tries >= most or",
        "                    if tries or",
        "tests/storage/test_retries.py",
    ),
    "try without an end": Mutation(
        "a run on a storage that is gone never ends",
        "storage/retries.py",
        "                    if tries >= most or (tries > 1 and now + delay - began > PASSES_WITHIN_SEC):\n",
        "                    if kind is Kind.LASTS:\n",
        "tests/storage/test_retries.py",
    ),
    "try for longer than the limit": Mutation(
        "slow time-outs add up to minutes without a word",
        "storage/retries.py",
        " or (tries > 1 and now + delay - began > PASSES_WITHIN_SEC):\n",
        ":\n",
        "tests/storage/test_retries.py",
    ),
    "a key that was listed is absent after one look": Mutation(
        "one stale read pays completed lines again",
        "storage/retries.py",
        "            raise UnseenError(",
        "            raise FileNotFoundError(",
        "tests/storage/test_retries.py",
    ),
    "believe one listing": Mutation(
        "one short listing pays completed lines again",
        "storage/retries.py",
        "            if names == before and self._known.get(folder, set()) <= set(names):\n",
        "            if True:\n",
        "tests/storage/test_retries.py",
    ),
    "take the key of another process for one's own": Mutation(
        "two processes get the same lease",
        "storage/retries.py",
        "                if tries == 1 or await self._files.read_path(path) != content:\n",
        "                if tries == 1:\n",
        "tests/storage/test_retries.py",
    ),
    "damage is what one look says": Mutation(
        "one short read makes a sound file damaged",
        "storage/retries.py",
        "            if content == before:\n",
        "            if content != before:\n",
        "tests/storage/test_retries.py",
    ),
    # --- segments and records ---
    "swallow a read error as absent": Mutation(
        "one 403 on a resume pays completed lines again",
        "storage/records.py",
        "            if not isinstance(error, RecordCorruptError):\n                raise error\n"
        "            await self._check_read_whole(name)\n",
        "            assert error is not None, name\n",
        "tests/contracts/test_storage_contract.py",
    ),
    "take a segment that is read in part for damaged": Mutation(
        "a storage that gives only a part each time pays completed lines again",
        "storage/records.py",
        "            await self._check_read_whole(name)\n",
        "",
        "tests/storage/test_records.py",
    ),
    "skip the checksum": Mutation(
        "a flipped bit is an output",
        "storage/segments.py",
        " or _checksum(header, body) != checksum:",
        ":",
        "tests/contracts/test_storage_contract.py tests/storage/test_records.py",
    ),
    "leave the header out of the checksum": Mutation(
        "a receipt with a flipped digit is that of another line",
        "storage/segments.py",
        "    digest = hashlib.sha256(_compact(header))\n",
        "    digest = hashlib.sha256()\n",
        "tests/storage/test_records.py",
    ),
    "do not compare a segment with its name": Mutation(
        "an old segment under a new name wins over newer records",
        "storage/segments.py",
        '        if (header["session"], min(numbers), max(numbers)) != (name.session, name.first, name.last):\n',
        "        if not numbers:\n",
        "tests/contracts/test_storage_contract.py",
    ),
    "call another format damage": Mutation(
        "an older version pays all lines of a newer one again",
        "storage/segments.py",
        '            raise StorageError(\n                f"The records at {place} have format',
        '            raise RecordCorruptError(\n                f"The records at {place} have format',
        "tests/contracts/test_storage_contract.py",
    ),
    "take a segment of another run": Mutation(
        "a copied file brings lines that this run never had",
        "storage/records.py",
        "        if self._run and not is_of_run(",
        "        if not self._run and not is_of_run(",
        "tests/storage/test_records.py",
    ),
    "lose the last segment": Mutation(
        "its lines run again",
        "storage/records.py",
        "        return [segment for segment in segments if segment.session >= self._since], text",
        "        return [segment for segment in segments if segment.session >= self._since][:-1], text",
        "tests/contracts/test_storage_contract.py",
    ),
    "count records of before a full rerun": Mutation(
        "a line that the rerun did not reach keeps an output of the old flow",
        "storage/records.py",
        "        return [segment for segment in segments if segment.session >= self._since], text",
        "        return segments, text",
        "tests/storage/test_records.py",
    ),
    "forget segments that were acknowledged": Mutation(
        "a segment that is deleted meanwhile is missing in the outputs",
        "storage/records.py",
        "in await self.segments()} | self._known\n",
        "in await self.segments()}\n",
        "tests/storage/test_records.py",
    ),
    "leave out a known segment that is damaged": Mutation(
        "outputs silently lack its lines",
        "storage/records.py",
        "        if name.name in self._known:\n",
        "        if not name.name:\n",
        "tests/storage/test_records.py",
    ),
    "look at a damaged segment once": Mutation(
        "one short read runs completed lines again",
        "storage/records.py",
        "        for look in looks():\n            await look\n            looking, unread",
        "        for look in itertools.islice(looks(), 1):\n            await look\n            looking, unread",
        "tests/storage/test_records.py",
    ),
    "forget the listing of the start": Mutation(
        "one stale listing runs completed lines again",
        "storage/records.py",
        "for name in (*listed, *await self.segments()) if",
        "for name in await self.segments() if",
        "tests/storage/test_records.py",
    ),
    "delete damaged segments": Mutation(
        "what a person could still rescue is gone",
        "storage/records.py",
        "                await self._files.move(key, aside)\n",
        "                await self._files.delete_path(key)\n",
        "tests/storage/test_records.py",
    ),
    "the older record of a line counts": Mutation(
        "the outputs have the attempt that failed",
        "storage/records.py",
        "(stored.receipt.line_number, *stored.order, unique, stored, record))\n",
        "(stored.receipt.line_number, *(-part for part in stored.order), unique, stored, record))\n",
        "tests/contracts/test_storage_contract.py",
    ),
    "the index keeps the older record": Mutation(
        "a line that failed before and then completed runs again",
        "storage/index.py",
        "        if known is None or stored.order >= known:\n",
        "        if known is None:\n",
        "tests/contracts/test_storage_contract.py",
    ),
    "ignore the input hash": Mutation(
        "a changed line keeps its old output",
        "storage/index.py",
        " or stored.input_hash != input_hash:",
        ":",
        "tests/contracts/test_storage_contract.py",
    ),
    "a failed line is done": Mutation(
        "a resume leaves failed lines failed",
        "storage/index.py",
        '        return ended if ended is not None and ended.status == "Completed" else None\n',
        "        return ended\n",
        "tests/contracts/test_storage_contract.py",
    ),
    "count starts by the manifest alone": Mutation(
        "a start whose manifest is lost counts from 1, and its records lose against older ones",
        "storage/earlier.py",
        "        return [*known, *[only_records] * (newest - len(known)), this_start]\n",
        "        return [*known, this_start]\n",
        "tests/storage/test_earlier_starts.py",
    ),
    "do not miss a lost manifest": Mutation(
        "a changed flow passes unnoticed",
        "storage/earlier.py",
        "    if manifest is None and not problem and any(name.session for name in segments):\n",
        "    if manifest is None and problem:\n",
        "tests/storage/test_earlier_starts.py",
    ),
    # --- manifest ---
    "skip the manifest's checksum": Mutation(
        "an edited manifest counts",
        "storage/manifest.py",
        '    if (checksum is not None or data.get("identity")) and checksum != _checksum(data):\n',
        "    if checksum is not None and not data:\n",
        "tests/storage/test_manifest.py",
    ),
    "use the oldest kept manifest": Mutation(
        "a resume compares with the wrong start",
        "storage/manifest.py",
        "if _KEPT.fullmatch(name)), reverse=True):\n",
        "if _KEPT.fullmatch(name))):\n",
        "tests/storage/test_manifest.py",
    ),
    "keep no manifest": Mutation(
        "a torn manifest locks people out of their run",
        "storage/manifest.py",
        "    for key in (keys.kept_manifest(len(manifest.sessions)), keys.manifest):\n",
        "    for key in (keys.manifest,):\n",
        "tests/storage/test_manifest.py",
    ),
    "do not read the manifest back": Mutation(
        "a run of many hours cannot be resumed",
        "storage/manifest.py",
        "            if not await _reads_back(files, key, content):\n",
        "            if not content:\n",
        "tests/storage/test_manifest.py",
    ),
    # --- lease ---
    "never refuse a lease": Mutation(
        "two runs of one id pay for each line twice",
        "storage/lease.py",
        "        number = await self._refuse_living()\n",
        "        number = (await self._look()).number\n",
        "tests/storage/test_lease.py",
    ),
    "take over a fresh lease": Mutation(
        "a living run is ended by the next one",
        "storage/lease.py",
        '    return bool(lease["released"]) or lease["owner"] in _gone or is_dead(lease)\n',
        "    return True\n",
        "tests/storage/test_lease.py",
    ),
    "never take over a stale lease": Mutation(
        "after a kill on another machine a person has to unlock the run",
        "storage/lease.py",
        "        self._is_proved_free = False\n        return seen.number\n",
        "        raise self._in_use(seen.lease or {})\n",
        "tests/storage/test_lease.py",
    ),
    "take over a stale lease without a watch": Mutation(
        "two machines with other clocks run one id",
        "storage/lease.py",
        "        for _ in range(WATCH_LOOKS):\n",
        "        for _ in range(0):\n",
        "tests/storage/test_lease.py",
    ),
    "let a late writer write": Mutation(
        "a process that slept writes its outputs over those of its successor",
        "storage/lease.py",
        "        if lost is not None:\n            self._lose(lost)\n            raise lost\n",
        "",
        "tests/storage/test_fencing.py",
    ),
    "fence nothing below the run": Mutation(
        "a process that slept writes its outputs over those of its successor",
        "storage/lease.py",
        '        if key.startswith(f"{self._keys.images}/"):\n',
        '        if key.startswith(f"{self._keys.run_id}/"):\n',
        "tests/storage/test_fencing.py",
    ),
    "fence no uploads of files": Mutation(
        "late outputs replace those of the run's new holder",
        "storage/retries.py",
        "        await self._again(lambda: self._files.put_file(path, source), path)\n",
        "        await self._again(lambda: self._files.put_file(path, source))\n",
        "tests/storage/test_fencing.py",
    ),
    "fence no deletes": Mutation(
        "a late process moves sound segments of its successor away",
        "storage/retries.py",
        "        await self._again(lambda: self._files.delete_path(path), path)\n",
        "        await self._again(lambda: self._files.delete_path(path))\n",
        "tests/storage/test_fencing.py",
    ),
    "fence no moves": Mutation(
        "a late process moves sound segments of its successor away",
        "storage/retries.py",
        "        await self._again(lambda: self._files.move(path, target), path)\n",
        "        await self._again(lambda: self._files.move(path, target))\n",
        "tests/storage/test_fencing.py",
    ),
    "the fencing number stays": Mutation(
        "a late process has the number of its successor",
        "storage/lease.py",
        "        self._number = number + 1\n",
        "        self._number = max(number, 1)\n",
        "tests/storage/test_fencing.py",
    ),
    "do not renew": Mutation(
        "a run of more than a minute is taken over",
        "storage/lease.py",
        "                    self._writing = asyncio.ensure_future(self._write())\n",
        "                    self._writing = asyncio.ensure_future(asyncio.sleep(0))\n",
        "tests/storage/test_lease.py",
    ),
    "a free lock of a removed file proves that nobody runs": Mutation(
        "a removed lock file lets a second run in",
        "storage/lease.py",
        '            return bool(seen.lease.get("lock") in (None, self._lock.inode))\n',
        "            return True\n",
        "tests/storage/test_fencing.py",
    ),
    "lock a file that is no longer there": Mutation(
        "two processes lock two files of one name",
        "storage/file_lock.py",
        "                if not self._is_at_path(fd):\n",
        "                if fd < 0:\n",
        "tests/storage/test_fencing.py tests/storage/test_lease.py",
    ),
    "a lease stays when entry fails": Mutation(
        "the same command is refused by its own process id",
        "storage/lease.py",
        "            # An error can hide that the lease was written.\n            await self._leave()\n",
        "",
        "tests/storage/test_fencing.py",
    ),
    "release nothing": Mutation(
        "the next start waits for the lease to run out",
        "storage/lease.py",
        "                    await self._write(released=True)\n",
        "                    await self._write()\n",
        "tests/storage/test_lease.py",
    ),
    "a torn lease holds the run": Mutation(
        "a person has to unlock the run",
        "storage/lease.py",
        "            return self._lock is not None\n",
        "            return False\n",
        "tests/storage/test_fencing.py",
    ),
    # --- resume ---
    "rerun completed lines": Mutation(
        "a resume pays for all lines again",
        "run/feeding.py",
        "        if ended.error is None or (self._others_stay",
        "        if (self._others_stay",
        "tests/run/test_accounting.py",
    ),
    "rerun of failed lines runs completed ones, too": Mutation(
        "`--only failed` pays for all lines again",
        "run/feeding.py",
        "        if ended.error is None or (self._others_stay",
        "        if (ended.error is None and not self._rerun_lines) or (self._others_stay",
        "tests/run/test_accounting.py",
    ),
    "do not count lines that an earlier start completed": Mutation(
        "a resume ends as failed",
        "run/feeding.py",
        "        self._limits.add_earlier(ended)\n        self._tally.add(ended)\n",
        "        self._limits.add_earlier(ended)\n",
        "tests/run/test_accounting.py",
    ),
    "lines that never ended are no error": Mutation(
        "a run says completed with fewer lines",
        "run/feeding.py",
        "        if not self._state.stop.is_stopped and self._tally.ended_lines != total:\n",
        "        if self._tally.ended_lines > total:\n",
        "tests/run/test_accounting.py",
    ),
    "lose the earlier output of a line that was to run again": Mutation(
        "a stopped rerun takes lines out of the outputs",
        "run/feeding.py",
        "        for receipt in kept.values():\n            self._state.reused_lines += receipt.error is None\n"
        "            self._tally.add(receipt)\n",
        "",
        "tests/run/test_accounting.py",
    ),
    "the record of other inputs counts": Mutation(
        "a changed line that was stopped has the output of its old inputs",
        "run/feeding.py",
        "        return is_in_data and not of_other_inputs and number not in self._canceled\n",
        "        return is_in_data and number not in self._canceled\n",
        "tests/run/test_accounting.py",
    ),
    "lines that are no longer in the data count": Mutation(
        "outputs have rows that the data does not have",
        "run/feeding.py",
        "        return is_in_data and not of_other_inputs",
        "        return not of_other_inputs",
        "tests/run/test_accounting.py",
    ),
    "equal lines are guessed by their number": Mutation(
        "a row inserted above equal rows gives them the wrong outputs",
        "storage/matching.py",
        "        by_occurrence = not own_numbers and len(newest) >= total_before\n",
        "        by_occurrence = False\n",
        "tests/storage/test_matching.py",
    ),
    "equal lines share a record": Mutation(
        "the second of two equal rows is never run",
        "storage/matching.py",
        "    found |= dict(zip(rest, available, strict=False))\n",
        "    found |= dict(zip(rest, (available * len(rest))[: len(rest)], strict=False))\n",
        "tests/storage/test_matching.py",
    ),
    "a record of an earlier epoch is lost": Mutation(
        "a row that was removed and comes back is paid again",
        "storage/matching.py",
        "    for occurrence in range(len(current), max(map(len, in_order.values()))):\n",
        "    for occurrence in range(0):\n",
        "tests/storage/test_matching.py",
    ),
    "count a copy that was cut short": Mutation(
        "lines are found at numbers that they never got",
        "storage/matching.py",
        "        if name.session >= history.since and name.session not in history.unfinished\n",
        "        if name.session >= history.since\n",
        "tests/storage/test_matching.py",
    ),
    "do not see that a copy was cut short": Mutation(
        "lines are found at numbers that they never got",
        "storage/matching.py",
        '            frozenset(number for number, mark in marked if mark == "begun"),\n',
        "            frozenset(),\n",
        "tests/storage/test_matching.py",
    ),
    "copy failed lines of another run as well": Mutation(
        "a new run starts with failures that it never had",
        "storage/matching.py",
        "                if number is None or not wanted(receipt):\n",
        "                if number is None:\n",
        "tests/storage/test_takeover.py",
    ),
    "a moved record keeps its old number": Mutation(
        "outputs have a number twice",
        "storage/matching.py",
        '    record["line_number"] = number\n',
        "",
        "tests/storage/test_takeover.py",
    ),
    "read by number what an unfinished start has copied": Mutation(
        "a start that died over changed rows makes the next one pay for all moved lines",
        "run/resuming.py",
        "        return replace(matches, are_in_place=False) if is_unfinished else matches\n",
        "        return matches\n",
        "tests/run/test_accounting.py",
    ),
    "copies are as new as what their lines have now": Mutation(
        "a failed line that moved and then completed has its old failure, and the run ends without outputs",
        "run/resuming.py",
        "            sessions.append(this_start)\n",
        "",
        "tests/run/test_accounting.py tests/run/test_any_starts.py",
    ),
    "a failed record before an equal completed one": Mutation(
        "a line that completed is paid again, because an equal one that failed was removed",
        "storage/matching.py",
        "        found[number] = one\n    return found\n",
        "        assert one\n    return found\n",
        "tests/storage/test_matching.py",
    ),
    "failed lines stay beside chosen numbers": Mutation(
        "`--only failed --lines 2` runs line 2 only",
        "run/feeding.py",
        "        self._others_stay = bool(self._rerun_lines) and not state.options.rerun\n",
        "        self._others_stay = bool(self._rerun_lines) and not self._rerun\n",
        "tests/run/test_accounting.py",
    ),
    "write the manifest before the copies": Mutation(
        "a start that dies in between has lost the lines it was to take over",
        "run/resuming.py",
        "            await state.stop.unless_stopped(self._take_over(identity))\n",
        "            early = self._manifest(prints, flow, sessions, 0, None)\n"
        "            await write_manifest(self._files, self._keys, early)\n"
        "            await state.stop.unless_stopped(self._take_over(identity))\n",
        "tests/run/test_accounting.py",
    ),
    "do not mark that a copy begins": Mutation(
        "a start that dies in between leaves copies that count",
        "run/resuming.py",
        "        await write_manifest(self._files, self._keys, before.model_copy("
        'update={"sessions": [*before.sessions, begun]}))\n',
        "        assert begun\n",
        "tests/run/test_accounting.py",
    ),
    # --- ending ---
    "count a line twice": Mutation(
        "the result has more lines than the data",
        "results/tally.py",
        "        self._lines[counted_as] += 1\n",
        "        self._lines[counted_as] += 2 if self._lines[counted_as] == 1 else 1\n",
        "tests/results",
    ),
    "leave a line out of the outputs": Mutation(
        "a row is missing, and nobody knows",
        "run/ending.py",
        "+= 1\n                yield record\n",
        "+= 1\n                if stored.receipt.line_number != 1:\n                    yield record\n",
        "tests/run/test_accounting.py",
    ),
    "leave a line out of the outputs file": Mutation(
        "a row is missing, and nobody knows",
        "storage/outputs.py",
        '                    if record["status"] == "Completed":\n',
        '                    if record["status"] == "Completed" and record["line_number"] != 4:\n',
        "tests/storage/test_outputs.py",
    ),
    "write outputs before all records are read": Mutation(
        "outputs lack lines, and the run says completed",
        "run/ending.py",
        "        if not is_right:\n",
        "        if is_right is None:\n",
        "tests/run/test_accounting.py",
    ),
    "more records than counted lines are fine": Mutation(
        "outputs have lines that the result does not count",
        "run/ending.py",
        "            is_right = (completed, failed) == (tally.completed_lines, tally.failed_lines)\n",
        "            is_right = completed >= tally.completed_lines and failed >= tally.failed_lines\n",
        "tests/run/test_accounting.py",
    ),
    "do not read the outputs back": Mutation(
        "half a file is a success",
        "storage/outputs.py",
        "                if await asyncio.to_thread(_digest, back) == digest:\n",
        "                if digest:\n",
        "tests/storage/test_outputs.py",
    ),
    "do not read the output folder back": Mutation(
        "half a file is a success",
        "storage/outputs.py",
        "                if await asyncio.to_thread(_digest, output_dir / name) != await asyncio.to_thread(_digest, source):\n",
        "                if not source:\n",
        "tests/storage/test_outputs.py",
    ),
    "show the result of an earlier start": Mutation(
        "a run that was killed looks completed",
        "storage/outputs.py",
        " if result is not None and result.start_time == manifest.last_started_at else None\n",
        "\n",
        "tests/storage/test_outputs.py",
    ),
    "show a result after the run was taken over": Mutation(
        "the artifacts of a late process replace those of its successor",
        "run/ending.py",
        "        await prepared.files.check_writer()\n",
        "",
        "tests/run/test_accounting.py",
    ),
    "do not look for the manifest at the end": Mutation(
        "a completed run cannot be shown or resumed",
        "run/ending.py",
        "        if await keep_manifest(prepared.files, state.keys, self._opened.manifest):\n",
        "        if not state.keys:\n",
        "tests/run/test_accounting.py",
    ),
    # --- space ---
    "reserve no space": Mutation(
        "a disk that fills pays a chunk's lines again on each try",
        "storage/reserve.py",
        "        try:\n            self._grow(size)\n        except OSError as exc:\n            self.release()",
        "        try:\n            pass\n        except OSError as exc:\n            self.release()",
        "tests/storage/test_reserve.py",
    ),
    "begin lines on a full disk": Mutation(
        "their results cannot be kept",
        "storage/records.py",
        "        if self.reserve is not None and self.reserve.is_used:\n",
        "        if self.reserve is not None and not self.reserve:\n",
        "tests/storage/test_reserve.py",
    ),
    # --- care ---
    "copy skips a segment": Mutation(
        "the copy of a run lacks lines",
        "storage/care.py",
        "            await _copy_file(files, target,",
        "            if name != wanted[-3]:\n                await _copy_file(files, target,",
        "tests/storage/test_care.py",
    ),
    "do not read a copy back": Mutation(
        "people delete the run, and the copy is torn",
        "storage/care.py",
        "    if await asyncio.to_thread(_sha256, here) != await asyncio.to_thread(_sha256, back):\n",
        "    if not here:\n",
        "tests/storage/test_care.py",
    ),
    "copy the manifest first": Mutation(
        "half a copy looks like a run",
        "storage/care.py",
        '    return sorted(found, key=lambda path: (path == "manifest.json", path))\n',
        '    return sorted(found, key=lambda path: (path != "manifest.json", path))\n',
        "tests/storage/test_care.py",
    ),
    "verify ignores a missing record": Mutation(
        "a row of nowhere is proved",
        "storage/care.py",
        "            is_other = row is None or row.status != status\n",
        "            is_other = row is not None and row.status != status\n",
        "tests/storage/test_care.py",
    ),
    "verify ignores a row that is not its record's": Mutation(
        "an edited output is proved",
        "storage/care.py",
        "                is_other = is_other or row.digest != hashlib.sha256(line).digest()\n",
        "                is_other = is_other or not row.digest\n",
        "tests/storage/test_care.py",
    ),
    "verify ignores a record that is not its header's": Mutation(
        "a record of another line is proved",
        "storage/care.py",
        "            if facts != (number, stored.input_hash, receipt.status, receipt.attempt):\n",
        "            if not facts:\n",
        "tests/storage/test_care.py",
    ),
    "compact deletes before it writes": Mutation(
        "a full disk loses all records",
        "storage/care.py",
        "    await records.append(outcomes)\n    for segment in group:\n        key = keys.segment(segment.name.name)\n"
        '        with storage_errors(files, "write", key, "Compact the run again."):\n'
        "            await files.delete_path(key)",
        "    for segment in group:\n        key = keys.segment(segment.name.name)\n"
        '        with storage_errors(files, "write", key, "Compact the run again."):\n'
        "            await files.delete_path(key)\n    await records.append(outcomes)",
        "tests/storage/test_care.py",
    ),
    "care for a run that is running": Mutation(
        "a running run is deleted",
        "storage/care.py",
        "    if await is_held(files, keys):\n",
        "    if not keys:\n",
        "tests/storage/test_care.py",
    ),
    # --- tasks on a cluster ---
    "a superseded task goes on": Mutation(
        "lines run in two starts at once",
        "storage/control.py",
        '        if control and control["session"] > self._session:\n',
        '        if control and control["session"] < 0:\n',
        "tests/storage/test_control.py",
    ),
    "an orphaned task goes on": Mutation(
        "the tasks of a killed run pay for lines that nobody keeps",
        "storage/control.py",
        " or time.monotonic() - self._fresh_at > ORPHANED_AFTER_SEC:\n",
        ":\n",
        "tests/storage/test_control.py",
    ),
    "do not wait for superseded tasks": Mutation(
        "a line runs in both",
        "storage/control.py",
        '    if before.get("order") != "end":\n',
        '    if before.get("order") == "none":\n',
        "tests/storage/test_control.py",
    ),
    # --- secrets and roots ---
    "scrub no base64": Mutation(
        "a key in a header is in the records",
        "execution/written_secrets.py",
        '                alternatives.append(wrap.join(map(_base64_character, core)) + r"[A-Za-z0-9+/_-]?(?:=|%3[dD]){0,2}")\n',
        "",
        "tests/execution/test_scrubbing.py",
    ),
    "scrub no percent escapes": Mutation(
        "a key in an address is in the records",
        "execution/written_secrets.py",
        "    forms = [re.escape(char), percent,",
        "    forms = [re.escape(char), re.escape(percent),",
        "tests/execution/test_scrubbing.py",
    ),
    "scrub no hexadecimal digits": Mutation(
        "a key in a repr of bytes is in the records",
        "execution/written_secrets.py",
        '            alternatives.append(f"(?i:{wrap.join(in_digits)})")\n',
        "",
        "tests/execution/test_scrubbing.py",
    ),
    "check roots on the path before links are followed": Mutation(
        "a link below a root reads any file",
        "run/roots.py",
        "        return not _is_strange(place) and _resolved(path).is_relative_to(_resolved(folder))\n",
        "        return not _is_strange(place) and path.absolute().is_relative_to(folder.absolute())\n",
        "tests/run/test_roots.py",
    ),
    "run what a file imports": Mutation(
        "a parameter runs any command",
        "run/roots.py",
        "            if path is not None and attribute:\n",
        "            if path is None and attribute:\n",
        "tests/run/test_roots.py",
    ),
    "set any environment variable": Mutation(
        "a parameter runs any code",
        "run/roots.py",
        "        if others:\n",
        "        if not others:\n",
        "tests/run/test_roots.py",
    ),
    "keep unfinished files readable for all": Mutation(
        "others on the machine read what users asked a model",
        "storage/private_files.py",
        "    return 0o666 if _is_shared() else 0o600\n",
        "    return 0o666\n",
        "tests/storage/test_private_files.py",
    ),
    "follow a planted link": Mutation(
        "a run overwrites any file of its user",
        "storage/private_files.py",
        "    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC\n"
        '    path = folder / f"{WRITING}{secrets.token_hex(8)}"\n',
        '    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC\n    path = folder / f"{WRITING}output.jsonl"\n',
        "tests/storage/test_private_files.py",
    ),
}


@dataclass(frozen=True)
class Seen:
    """What the tests say."""

    passed: bool
    by: str
    """The first test that failed, or pytest's last line."""
    seconds: float
    text: str
    """All that pytest printed."""


class BrokenTestsError(Exception):
    """The tests could not be run."""


def copied(folder: str) -> Path:
    """A copy of what the tests need."""
    copy = Path(folder) / "checkout"
    for name in (PACKAGE, "tests", "flows", "deployments", "benchmarks", "docs", ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy2(file, copy)
    return copy


def prepare(copy: Path) -> None:
    """Import what the package imports, but not the package: each bug is tried in a fork, which takes a second less so."""
    os.environ |= {
        "PREFECT_HOME": str(copy / "home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(copy),
    }
    os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
    code = f"import sys, {PACKAGE}.engine; print({PACKAGE}.__file__, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True)
    place, *modules = done.stdout.split()
    if not place.startswith(str(copy)):
        raise BrokenTestsError(f"The tests would import {place} instead of the copy.")
    for name in (*modules, "prefect.testing.utilities", "pytest", "hypothesis.strategies"):
        if not f"{name}.".startswith((f"{PACKAGE}.", "__main__.")):
            with contextlib.suppress(ImportError):  # some are made by others
                importlib.import_module(name)
    if threading.active_count() > 1:
        raise BrokenTestsError("A fork would lose threads.")


def run_tests(copy: Path, tests: str, limit_sec: float, test_limit_sec: float) -> Seen:
    """Run quick tests of a copy in a fork, until the first one fails."""
    began = time.monotonic()
    printed = copy / "printed"
    if not (process := os.fork()):
        _run_pytest(copy, printed, [f"--timeout={test_limit_sec}", *tests.split()])
    while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0):
        if time.monotonic() - began > limit_sec:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise BrokenTestsError(f"{tests} took over {limit_sec:.0f} s")
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # a bug can leave processes behind
    text = printed.read_text(errors="replace")
    failed = [found[1] for found in map(_OUTCOME.match, text.splitlines()) if found]
    status = os.waitstatus_to_exitcode(ended[1])
    # A test that waits forever outside of Python ends its process; pytest-timeout has printed where it was.
    if status not in (0, 1) or (status and not failed and "Timeout" not in text):
        raise BrokenTestsError(f"pytest {tests} ended with status {status}:\n{text[-3000:]}")
    return Seen(not status, (failed or text.splitlines()[-1:] or [""])[0], time.monotonic() - began, text)


def _run_pytest(copy: Path, printed: Path, options: list[str]) -> NoReturn:
    """Be the process of the tests."""
    status = 70
    try:
        os.setsid()
        descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        options += ["-q", "-x", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        status = pytest.main([*options, "-W", "ignore::pytest.PytestAssertRewriteWarning"])
        sys.stdout.flush()
    finally:
        os._exit(status)


def mutated(text: str, mutation: Mutation) -> str:
    """A source with the bug.

    Raises:
        BrokenTestsError: The bug does not fit.
    """
    if text.count(mutation.old) != 1 or mutation.new == mutation.old:
        raise BrokenTestsError(f"{mutation.file} has this {text.count(mutation.old)} times:\n{mutation.old}")
    return text.replace(mutation.old, mutation.new)


@contextlib.contextmanager
def bug(copy: Path, mutation: Mutation) -> Iterator[None]:
    """Put a bug into a copy for a while."""
    file = copy / PACKAGE / mutation.file
    text = file.read_text()
    file.write_text(mutated(text, mutation))
    # Compiled code is told from its source by size and second only.
    for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
        compiled.unlink()
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = False
        file.write_text(text)


def show(names: list[str], copy: Path) -> list[str]:
    """Try each bug, print a table, and return the names of those that survive."""
    places = dict.fromkeys(place for name in names for place in MUTATIONS[name].tests.split())
    seen = run_tests(copy, " ".join(places), LIMIT_SEC, 2 * TEST_LIMIT_SEC)
    print(f"without a bug: {seen.by} ({seen.seconds:.0f} s)", flush=True)
    if not seen.passed:
        raise BrokenTestsError(f"The tests fail without a bug:\n{seen.text[-3000:]}")
    survived = []
    for name in names:
        mutation = MUTATIONS[name]
        with bug(copy, mutation):
            seen = run_tests(copy, mutation.tests, LIMIT_SEC, TEST_LIMIT_SEC)
        by = "SURVIVED" if seen.passed else seen.by
        how = " (waits forever)" if "from pytest-timeout" in seen.text else ""
        print(f"| {name} | {by}{how} | {seen.seconds:.1f} s |", flush=True)
        survived += [name] if seen.passed else []
    return survived


def main() -> int:
    """Try each bug, or those that are named, and print which test each of them fails."""
    names = sys.argv[1:] or list(MUTATIONS)
    if unknown := [name for name in names if name not in MUTATIONS]:
        print(f"There is no bug called {unknown[0]!r}; there are: {', '.join(MUTATIONS)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="batchflow-mutations-") as folder:
            copy = copied(folder)
            prepare(copy)
            survived = show(names, copy)
    except BrokenTestsError as exc:
        print(exc, file=sys.stderr)
        return 2
    print(f"{len(names) - len(survived)} of {len(names)} bugs make a test fail ({time.monotonic() - began:.0f} s)")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
