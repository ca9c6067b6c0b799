"""Replacement for sbatch, squeue and scancel, by the name it is called by: jobs are lines of a JSON file."""

import fcntl
import json
import os
import sys
from pathlib import Path

COMMAND, HERE = Path(sys.argv[0]).name, Path(os.environ["FAKE_SLURM"])
NEW = {"State": "PENDING", "Reason": "Priority", "RestartCnt": "0", "StartTime": "N/A", "EndTime": "N/A"}
NEW |= {"BatchHost": "n/a", "exit_code": "0"}


def main() -> None:
    """Do what the command would do, one at a time."""
    with (HERE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (HERE / "calls").open("a") as calls:
            calls.write(" ".join([COMMAND, *sys.argv[1:]]) + "\n")
        file = HERE / "jobs.json"
        jobs = json.loads(file.read_text()) if file.exists() else {}
        if COMMAND == "sbatch":
            if why := os.environ.get("FAKE_SLURM_REFUSES"):
                sys.exit(f"sbatch: error: {why}")
            script = Path(sys.argv[-1]).read_text()
            name = next(line for line in script.splitlines() if "--job-name=" in line).partition("=")[2]
            number = str(len(jobs) + 1)
            jobs[number] = {"JobID": number, "Name": name, **NEW}
            print(number)
        elif COMMAND == "scancel" and "--batch" not in sys.argv:
            jobs[sys.argv[-1]]["State"] = "CANCELLED"
        elif COMMAND == "squeue":
            options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:] if "=" in a)
            columns = [column.split(":")[0] for column in options["Format"].split(",")]
            for job in jobs.values():
                if job["Name"] in options["name"].split(","):
                    print("".join(f"{job[column]}|" for column in columns))
        file.write_text(json.dumps(jobs))


main()
