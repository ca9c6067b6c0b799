"""Jobs: submission, look-up, and failures of the connection, each named by its step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from recipe_dir import RecipeDir

from orchestrator.cli.place import Site, find_job
from orchestrator.cluster.job_server import Server, environment_without_addresses, find_token, server_url
from orchestrator.cluster.ray_jobs import BACKOFF_S, JobRequest, Jobs
from orchestrator.errors import BadInput, ClusterError, RlhfError
from orchestrator.launch.ray import RayLauncher
from orchestrator.launch.targets import RayTarget

Golden = Callable[[str, str], None]
REQUEST = JobRequest(id="rlhf-arith-12345678", entrypoint="rlhf run grpo.yaml")


@dataclass
class FakeDetails:
    """Ray's details of a job."""

    submission_id: str
    status: str = "RUNNING"
    message: str = "Job is currently running."
    entrypoint: str = "rlhf run grpo.yaml"
    metadata: dict[str, str] = field(default_factory=dict)
    job_id: str | None = None
    start_time: int | None = 1_700_000_000_000
    end_time: int | None = None
    driver_exit_code: int | None = None


class FakeJobClient:
    """Ray's client. The next submissions raise the `refusals`."""

    def __init__(self, *jobs: FakeDetails, refusals: tuple[str, ...] = ()) -> None:
        self.jobs = {job.submission_id: job for job in jobs}
        self.refusals = list(refusals)
        self.events: list[Any] = []
        self.log = self.log_error = ""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: Any, metadata: Any) -> str:
        self.events.append(("submit", submission_id, runtime_env))
        if self.refusals:
            raise RuntimeError(f"Request failed with status code 500: Traceback …\n{self.refusals.pop(0)}")
        started = 1_700_000_000_000 + len(self.jobs)
        details = FakeDetails(submission_id, "PENDING", entrypoint=entrypoint, metadata=metadata, start_time=started)
        self.jobs[submission_id] = details
        return submission_id

    def get_job_info(self, id: str) -> FakeDetails:
        if id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {id} does not exist")
        return self.jobs[id]

    def list_jobs(self) -> list[FakeDetails]:
        return [*self.jobs.values(), FakeDetails(submission_id="", job_id="02000000")]

    def get_job_logs(self, id: str) -> str:
        if self.log_error:
            raise RuntimeError(f"Request failed with status code 500: Traceback …\n{self.log_error}")
        return self.log or f"log of {id}\n"

    async def tail_job_logs(self, id: str) -> Any:
        for chunk in ("one\n", "two\nthree\n"):
            yield chunk

    def stop_job(self, id: str) -> bool:
        self.events.append(("stop", id))
        return True


def jobs(client: FakeJobClient) -> Jobs:
    return Jobs(client, "http://head:8265", sleep=lambda seconds: client.events.append(("sleep", seconds)))


def test_a_job_is_submitted_under_its_id() -> None:
    client = FakeJobClient()
    submitted = jobs(client).submit(REQUEST)
    assert (submitted.is_new, submitted.job.id, submitted.job.status) == (True, REQUEST.id, "PENDING")
    assert client.events == [("submit", REQUEST.id, {})]


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "SUCCEEDED"])
def test_f31_an_equal_submission_finds_the_first_job(status: str) -> None:
    client = FakeJobClient(FakeDetails(REQUEST.id, status))
    submitted = jobs(client).submit(REQUEST)
    assert (submitted.is_new, submitted.job.id) == (False, REQUEST.id)
    assert client.events == []


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_job_that_failed_may_be_submitted_again(status: str) -> None:
    client = FakeJobClient(FakeDetails(REQUEST.id, status), FakeDetails(f"{REQUEST.id}-2", status))
    assert jobs(client).submit(REQUEST).job.id == f"{REQUEST.id}-3"


def test_f31_of_two_simultaneous_submissions_the_slower_finds_the_first() -> None:
    class RacingJobClient(FakeJobClient):
        def submit_job(self, **request: Any) -> str:
            self.jobs[request["submission_id"]] = FakeDetails(request["submission_id"])
            raise RuntimeError("Request failed with status code 500: Job with submission_id x already exists.")

    submitted = jobs(RacingJobClient()).submit(REQUEST)
    assert (submitted.is_new, submitted.job.id) == (False, REQUEST.id)


def test_submission_waits_for_the_agent_of_a_new_cluster() -> None:
    client = FakeJobClient(refusals=("No available agent to submit job", "No available agent to submit job"))
    assert jobs(client).submit(REQUEST).is_new
    assert [e for e in client.events if e[0] == "sleep"] == [("sleep", BACKOFF_S[0]), ("sleep", BACKOFF_S[1])]


def test_submission_gives_up_on_a_cluster_without_agents(golden: Golden) -> None:
    client = FakeJobClient(refusals=("No available agent to submit job",) * 20)
    with pytest.raises(ClusterError) as caught:
        jobs(client).submit(REQUEST)
    golden("jobs-no-agent", f"{caught.value}\n")
    assert len([e for e in client.events if e[0] == "sleep"]) == len(BACKOFF_S)


def test_b61_unknown_and_finished_jobs(golden: Golden) -> None:
    client = FakeJobClient(FakeDetails("rlhf-arith-grpo-1", "SUCCEEDED"), FakeDetails("rlhf-other-2"))
    messages = []
    for action in (Jobs.get, Jobs.logs, Jobs.stop, lambda j, id: list(Jobs.follow(j, id))):
        with pytest.raises(BadInput) as caught:
            action(jobs(client), "rlhf-arith-gpro-1")
        messages.append(str(caught.value))
    with pytest.raises(BadInput) as caught:
        jobs(client).stop("rlhf-arith-grpo-1")
    assert len(set(messages)) == 1
    golden("b61-unknown-and-finished", f"{messages[0]}\n{caught.value}\n")


def test_errors_on_a_cluster_without_jobs(golden: Golden) -> None:
    with pytest.raises(BadInput) as unknown:
        jobs(FakeJobClient()).get("x")
    launcher = RayLauncher(RayTarget(engine="ray", address="http://head:8265"), jobs=jobs(FakeJobClient()))
    with pytest.raises(BadInput) as none:
        find_job(launcher, None, Site(cluster="http://head:8265"))
    golden("b61-no-jobs", f"{unknown.value}\n{none.value}\n")


def test_jobs_are_listed_newest_first_and_followed() -> None:
    client = FakeJobClient(
        FakeDetails("rlhf-a-1", start_time=1000), FakeDetails("rlhf-b-2", start_time=3000), FakeDetails("raysubmit_x")
    )
    assert [job.id for job in jobs(client).list()] == ["raysubmit_x", "rlhf-b-2", "rlhf-a-1"]
    assert list(jobs(client).follow("rlhf-a-1")) == ["one\n", "two\nthree\n"]
    assert jobs(client).logs("rlhf-a-1") == "log of rlhf-a-1\n"


def test_b60_another_ray_on_the_cluster_is_reported_with_both_versions() -> None:
    import ray

    assert jobs(FakeJobClient()).other_ray == ""
    other = Jobs(FakeJobClient(), "x", ray_version="2.58.0").other_ray
    assert other == f"the cluster runs ray 2.58.0, here is ray {ray.__version__}: the job uses the cluster's"


@pytest.mark.parametrize("error", [ConnectionError("reset"), TimeoutError("slow")])
def test_a_connection_that_breaks_is_a_cluster_error(error: Exception) -> None:
    class Broken(FakeJobClient):
        def list_jobs(self) -> list[FakeDetails]:
            raise error

    with pytest.raises(ClusterError, match="the connection broke"):
        jobs(Broken()).list()


def test_ray_gets_an_archive_and_the_time_that_a_stopped_job_has(tmp_path: Path) -> None:
    client = FakeJobClient()
    request = JobRequest(id="rlhf-x", entrypoint="x", archive=tmp_path / "package.zip", grace_s=90.5)
    jobs(client).submit(request)
    runtime_env = {"working_dir": f"{tmp_path}/package.zip", "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "91"}}
    assert client.events == [("submit", "rlhf-x", runtime_env)]


# --------------------------------------------------------------------------------------- the connection


class FakeDashboard:
    """HTTP server that answers GET by path: (status without the token, status with it, body)."""

    def __init__(self, answers: Mapping[str, tuple[int, int, str]], token: str = "right") -> None:
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = self.headers.get("Authorization")
                outer.requests.append((self.path, given))
                without, with_token, body = answers.get(self.path, (404, 404, "no such page"))
                self.send_response(with_token if given == f"Bearer {token}" else without)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def dashboard(recipe_dir: RecipeDir) -> Iterator[Callable[..., FakeDashboard]]:
    started: list[FakeDashboard] = []

    def start(jobs: tuple[int, int], version: str = '{"ray_version": "2.60.0"}', status: int = 200) -> FakeDashboard:
        answers = {"/api/jobs/": (*jobs, "[]"), "/api/version": (jobs[0], status, version)}
        started.append(FakeDashboard(answers))
        return started[-1]

    yield start
    for fake in started:
        fake.close()


def failure(address: str, **options: Any) -> str:
    with pytest.raises(RlhfError) as caught:
        Server.at(address, **options).check()
    return str(caught.value).replace(address.partition("://")[2] or address, "ADDRESS").replace(address[10:], "PORT")


def test_b59_which_step_failed(
    dashboard: Callable[..., FakeDashboard], golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cluster.job_server.TIMEOUT_S", 2.0)
    closed = dashboard((401, 200))
    closed.close()
    protected = dashboard((401, 200))
    messages = {
        "nobody there": failure(closed.address),
        "https against http": failure(f"https://{protected.address}"),
        "no token": failure(protected.address),
    }
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    messages["wrong token"] = failure(dashboard((401, 401), status=403).address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    messages["not ray"] = failure(dashboard((404, 404), version="<html>", status=200).address)
    messages["old ray"] = failure(dashboard((401, 200), version='{"ray_version": "2.40.1"}').address)
    golden("b59-connection", "".join(f"# {name}\n{text}\n" for name, text in messages.items()))
    assert Server.at(protected.address).check() == "2.60.0"
    assert ("/api/jobs/", None) in protected.requests  # the first request has no token: is the cluster open?


def test_s1_an_open_cluster_is_refused_unless_it_is_this_machine(
    dashboard: Callable[..., FakeDashboard], golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = dashboard((200, 200))
    assert Server.at(fake.address, open_is_allowed=False).check() == "2.60.0"
    monkeypatch.setattr("orchestrator.cluster.job_server.is_loopback", lambda url: False)
    golden("s1-open-cluster", failure(fake.address, open_is_allowed=False) + "\n")
    assert Server.at(fake.address).check() == "2.60.0"


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("head", "http://head:8265"),
        ("head:1234", "http://head:1234"),
        ("http://head", "http://head:8265"),
        ("https://head/ray/", "https://head/ray"),
        ("[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_addresses_as_people_write_them(address: str, url: str) -> None:
    assert server_url(address) == url


def test_invalid_addresses(golden: Golden) -> None:
    messages = []
    for address in ("ray://head:10001", "ftp://head", "http://", "http://me:s3cret@head:8265", "http://head:port"):
        with pytest.raises(BadInput) as caught:
            server_url(address)
        messages.append(str(caught.value))
    assert "s3cret" not in "".join(messages)
    golden("b59-addresses", "\n".join(messages) + "\n")


def test_the_token_comes_from_a_file_or_the_environment(
    recipe_dir: RecipeDir, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_token() is None
    (recipe_dir.path / ".ray").mkdir()
    (recipe_dir.path / ".ray" / "auth_token").write_text("default\n")
    assert find_token() == "default"
    Path("token").write_text("named")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "token")
    assert find_token() == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "direct")
    assert find_token() == "direct"
    assert find_token(Path("token")) == "named"
    with pytest.raises(BadInput) as caught:
        find_token(Path("nowhere"))
    golden("jobs-no-token-file", f"{caught.value}\n")


def test_further_headers_and_a_token_that_is_not_shown(recipe_dir: RecipeDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"X-Team": "a"}')
    server = Server.at("head")
    assert server.headers == {"X-Team": "a", "Authorization": "Bearer s3cret"}
    assert "s3cret" not in repr(server)
    monkeypatch.setenv("RAY_JOB_HEADERS", "x")
    with pytest.raises(BadInput, match="RAY_JOB_HEADERS is not a JSON object"):
        Server.at("head")


def test_the_written_address_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    with environment_without_addresses():
        assert "RAY_ADDRESS" not in os.environ
    assert os.environ["RAY_ADDRESS"] == "elsewhere"
