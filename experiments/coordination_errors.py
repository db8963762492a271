"""Replaces the messages of JAX's coordination service by one line that says which process is lost.

The service ends a process from C++, without a return to Python. hosts.py therefore pipes stderr
through this script, which imports the standard library alone and so starts at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TextIO

# The first line that the service writes before it ends the process.
FIRST_LINE = re.compile(r"[EF]\d{4} .*(coordination_service|the JAX distributed service)")
# The start of the message with which the service ends the process.
FATAL = re.compile(r"^F\d{4} ", re.MULTILINE)
RESUME = "the same command, for all processes, resumes"


def main(lines: Iterable[str], out: TextIO) -> None:
    """Copies lines until the first of the service, and explains those that follow.

    The explanation is written as soon as the process is certain to end, so that it is there when
    the process has ended. The service still collects a stack trace then, which takes 0.1 s.
    """
    ending, explained = "", False
    for line in lines:
        if not ending and not FIRST_LINE.match(line):
            out.write(line)
            out.flush()
            continue
        ending += line
        if not explained and FATAL.search(ending) and (explanation := explain(ending)):
            out.write(explanation)
            out.flush()
            explained = True
    if not explained:
        out.write(explain(ending) or ending)


def explain(words: str) -> str | None:
    """Returns a line that says which process is lost, or None if the words say something else."""
    dead = re.search(r"stopped sending heartbeats\):\s*([\d,\s]+)[^\d,\s]", words)
    if dead:
        numbers = sorted(re.findall(r"\d+", dead[1]), key=int)
        gone = (
            f"process {numbers[0]} is"
            if len(numbers) == 1
            else f"processes {', '.join(numbers)} are"
        )
        return f"error: {gone} gone; {RESUME}\n"
    if "Failed to send RPC to coordination service" in words:
        return (
            "error: process 0 is gone, or ended when it lost another (see its own last line); "
            f"{RESUME}\n"
        )
    if "CoordinationService/RegisterTask" in words:
        return "error: not all processes were there in time\n"
    return None


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
