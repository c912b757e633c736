"""What ends a start of a job on a real SLURM, and whether the job is queued again."""

import time

import pytest


def test_notice_saves_and_the_job_queues_itself_again(slurm, jobs):
    """And starting afresh is for the first start: there is an older run, then the job's own."""
    for rank in range(2):
        (jobs.folder / f"run_rank{rank}.txt").write_text("0 of-an-older-run")
    job = jobs.submit("steps=2", "wait=1@0", "--", "--resume=never")
    jobs.wait_for_step(job)
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    assert jobs.wait_for_end(job) == ("COMPLETED", 1)
    for lines in jobs.logs(job).values():
        assert [line[-1] for line in lines if line[0] == "start"] == ["--resume=never", "--resume=auto"]
        assert [line[-1] for line in lines if line[0] == "goes"] == ["1"]
        assert lines.count(["saved", "1"]) == 1 and lines[-1][0] == "done"


def test_a_preempted_job_saves_in_its_grace_and_goes_on(slurm, jobs):
    """SIGTERM goes to the tasks alone, which end with status 0."""
    job = jobs.submit("steps=2", "wait=1@0")
    jobs.wait_for_step(job)
    jobs.submit("--partition=urgent", "--sbatch=--exclusive", "name=urgent")
    assert jobs.wait_for_end(job) == ("COMPLETED", 1)
    assert all(["saved", "1"] in lines and lines[-1][0] == "done" for lines in jobs.logs(job).values())


def test_a_step_longer_than_the_notice_costs_itself_not_the_job(slurm, jobs):
    job = jobs.submit("steps=3", "hang=2@0")
    jobs.wait_for_step(job)
    end = time.strftime("%FT%T", time.localtime(time.time() + 15))
    slurm.run("scontrol", "update", f"JobId={job}", f"EndTime={end}")
    slurm.run("scancel", "--signal=USR1", "--batch", job)
    assert jobs.wait_for_end(job) == ("COMPLETED", 1)
    assert "no checkpoint within the notice" in jobs.script_log(job)
    for lines in jobs.logs(job).values():
        assert ["goes", "on", "after", "step", "1"] in lines and lines[-1][0] == "done"


@pytest.mark.slow
def test_a_time_limit_in_the_middle_of_a_step(jobs):
    """SLURM gives the notice itself; its clock has a grain of half a minute."""
    job = jobs.submit("steps=3", "hang=2@0", "--time=1", "--warn-minutes=0.5")
    assert jobs.wait_for_end(job, 150) == ("COMPLETED", 1)
    assert "no checkpoint within the notice" in jobs.script_log(job)


def test_scancel_ends_the_job(slurm, jobs):
    job = jobs.submit("steps=2", "wait=1")
    jobs.wait_for_step(job)
    slurm.run("scancel", job)
    slurm.wait_for(lambda: "the tasks ended" in jobs.script_log(job), "the script's last words", 20)
    slurm.wait_for(lambda: not slurm.run("squeue", "--noheader").strip(), "an empty queue", 20)
    assert jobs.wait_for_end(job) == ("CANCELLED", 0)
    assert ["saved", "1"] in jobs.logs(job)["rank0"]


def test_failures_are_queued_again_as_often_as_asked_and_stops_do_not_count(slurm, jobs):
    job = jobs.submit("steps=3", "deaf=1@0", "wait=1@0+1", "status=70@2+3", "--max-restarts=1")
    jobs.wait_for_step(job, 1)
    slurm.run("scancel", "--signal=USR1", "--batch", job)  # it is ended by the signal
    jobs.wait_for_step(job, 2)
    slurm.run("scancel", "--signal=TERM", job)  # to the tasks alone, as where a job is preempted
    assert jobs.wait_for_end(job, 90) == ("FAILED", 3)
    (line,) = (jobs.folder / "logs" / job / "failures").read_text().splitlines()
    assert line.endswith("status 70")
    assert jobs.script_log(job).count("failed: queued again, 1 of at most 1 times") == 1
    lines = jobs.logs(job)["rank1"]
    assert ["saved", "1"] not in lines and ["saved", "2"] in lines


@pytest.mark.parametrize(
    "words",
    [
        ["status=2"],  # a user's mistake
        ["status=2", "of=1"],  # of one rank's, where srun ends the other
        ["status=1", "of=1", "deaf=1", "--max-restarts=0"],  # the other does not catch srun's SIGTERM yet
    ],
)
def test_what_is_final(jobs, words):
    assert jobs.wait_for_end(jobs.submit(*words)) == ("FAILED", 0)
