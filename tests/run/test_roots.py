"""What a deployment's run may name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefect_batchflow.exceptions import InvalidOptionError, InvalidUserData, UserErrorException
from prefect_batchflow.inputs.readers import open_source
from prefect_batchflow.run.roots import Roots, check_roots
from prefect_batchflow.settings import PARAMETERS, BatchRequest, RunOptions, default_storage_url

if TYPE_CHECKING:
    from pathlib import Path

URL_ROOT = "s3://bucket/data"
FLOW = """
import os, random, subprocess as sp
from subprocess import getoutput
alias = getoutput

try:
    async def run(q): ...
except ImportError:
    def fallback(q): ...

def _private(q): ...

class Class:
    import os
    other = getoutput
    def method(self, q): ...
    class Inner:
        def __call__(self, q): ...
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a link out of it, as the working directory."""
    root = tmp_path / "root"
    (root / "flows").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    (root / "flows" / "a.py").write_text(FLOW)
    (root / "rows.jsonl").write_text('{"q": 1}\n')
    (tmp_path / "outside.jsonl").write_text('{"q": 2}\n')
    monkeypatch.chdir(root)
    monkeypatch.setenv("ROOT_OF_TEST", str(root))
    monkeypatch.setenv("HOME_OF_TEST", str(tmp_path))
    return root


def _request(**more: Any) -> BatchRequest:
    return BatchRequest(**{"flow": "flows/a", "run_id": "r", "storage": default_storage_url(), **more})


@pytest.mark.parametrize(
    "named",
    [
        {"flow": "flows/a/flow.dag.yaml"},
        {"flow": "flows/a.py:Class.method"},
        {"flow": "a.py:run", "working_dir": "flows"},
        {"data": "rows.jsonl", "more_data": {"more": f"{URL_ROOT}/rows.jsonl"}},
        {"data": URL_ROOT},
        {"data": "rows-*.jsonl", "more_data": {"more": f"{URL_ROOT}/rows-*.jsonl"}},
        {"data": "$ROOT_OF_TEST/rows.jsonl"},
        {"output_dir": "flows/../outputs"},
        {"storage": "batchflow-run-storage/nightly"},
        {"storage": f"{URL_ROOT}/runs"},
        {"options": RunOptions(task_runner="dask", task_runner_address="tcp://10.0.0.5:8786")},
        {"options": RunOptions(task_runner="ray", task_runner_address="auto")},
    ],
    ids=str,
)
def test_what_lies_below_a_root_may_be_named(root: Path, named: dict[str, Any]) -> None:
    check_roots(_request(**named), f"{root}, {URL_ROOT}/, tcp://10.0.0.5:8786")


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"flow": "subprocess:getoutput"}, "flow 'subprocess:getoutput'"),
        ({"flow": "../a.py:run"}, "flow '../a.py'"),
        ({"flow": "out/a"}, "flow 'out/a'"),
        ({"flow": "a.py:run", "working_dir": "out"}, "working_dir 'out'"),
        ({"data": "/etc/hosts"}, "data '/etc/hosts'"),
        ({"data": "file:///etc/hosts"}, "data 'file:///etc/hosts'"),
        ({"data": "$HOME_OF_TEST/rows.jsonl"}, "data '$HOME_OF_TEST/rows.jsonl'"),
        ({"data": "${HOME_OF_TEST}/*.jsonl"}, "data '${HOME_OF_TEST}/*.jsonl'"),
        ({"data": "out/*.jsonl"}, "data 'out/*.jsonl'"),
        ({"data": "*/../../rows.jsonl"}, "data '*/../../rows.jsonl'"),
        ({"more_data": {"more": f"{URL_ROOT}-of-others/rows.jsonl"}}, f"more '{URL_ROOT}-of-others/rows.jsonl'"),
        ({"data": f"{URL_ROOT}/%2e%2e/rows.jsonl"}, "%2e%2e"),
        ({"data": f"simplecache::{URL_ROOT}/rows.jsonl"}, "simplecache::"),
        ({"output_dir": "~"}, "output_dir '~'"),
        ({"storage": "memory://runs"}, "storage 'memory://runs'"),
        (
            {"options": RunOptions(task_runner="dask", task_runner_address="tcp://10.0.0.5:87865")},
            "task_runner_address 'tcp://10.0.0.5:87865'",
        ),
        (
            {"options": RunOptions(task_runner="ray", task_runner_address="10.0.0.6:6379")},
            "task_runner_address '10.0.0.6",
        ),
        (
            {"options": RunOptions(task_runner="dask", task_runner_address="their-host.example:8786")},
            "task_runner_address 'their-host",
        ),
    ],
    ids=str,
)
def test_what_leads_out_of_the_roots_is_refused_by_name(root: Path, named: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        check_roots(_request(**named), f"{root},{URL_ROOT},tcp://10.0.0.5:8786")

    assert told in str(caught.value)


def test_without_roots_there_is_no_limit() -> None:
    Roots.of("").check(_request(flow="subprocess:getoutput", data="/etc/hosts", environment_variables={"PATH": "/"}))


def test_roots_count_for_runs_of_deployments_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFLOW_ROOTS", "/data")
    monkeypatch.setenv("BATCHFLOW_ALLOWED_VARIABLES", "MY_*, LEVEL")

    assert Roots.of_flow_run(None) == Roots()
    assert Roots.of_flow_run("an-id") == Roots(("/data",), ("MY_*", "LEVEL"))


@pytest.mark.parametrize("given", ["", "  ", ",", " , ,"], ids=repr)
def test_roots_that_list_nothing_allow_nothing(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """An empty variable in the operator's text must not lift the limit."""
    monkeypatch.setenv("BATCHFLOW_ROOTS", given)

    with pytest.raises(InvalidOptionError, match="BATCHFLOW_ROOTS is set on this worker, but names no place"):
        Roots.of_flow_run("an-id")


def test_roots_count_for_a_batch_run_inside_a_flow_of_a_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHFLOW_ROOTS", "/data")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "9f3c")

    assert Roots.of_flow_run(None) == Roots(("/data",))


@pytest.mark.parametrize("given", ["run_id", "run", "resume_from"])
@pytest.mark.parametrize("inner", ["r", "r/records", "r/outputs.jsonl", "r/images/a.png", "r/records/damaged"])
def test_no_link_in_a_run_leads_out_of_a_given_storage(root: Path, tmp_path: Path, given: str, inner: str) -> None:
    link = root / "runs" / inner
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside.jsonl")

    with pytest.raises(InvalidOptionError, match=rf"storage 'runs': .*{inner} is a link that leads out of"):
        Roots.of(str(root)).check(_request(**{"storage": "runs", "run_id": "new", given: "r"}))


def test_links_that_stay_inside_and_other_runs_are_no_reason(root: Path, tmp_path: Path) -> None:
    (root / "runs" / "r").mkdir(parents=True)
    (root / "runs" / "r" / "images").symlink_to(root / "flows")
    (root / "runs" / "other").symlink_to(tmp_path)

    Roots.of(str(root)).check(_request(storage="runs", run="r", run_id="new"))


@pytest.mark.parametrize("place", ["\0", "{root}/x\0", "{root}/x\0/../../y", "\ud800\0"], ids=ascii)
@pytest.mark.parametrize("name", ["data", "output_dir", "storage", "working_dir", "image_roots", "connections", "flow"])
def test_a_place_with_a_nul_is_refused_with_words(root: Path, name: str, place: str) -> None:
    with pytest.raises(UserErrorException):
        Roots.of(str(root)).check(_request(**_given(name, place.format(root=root))))


def test_one_more_source_is_held_to_the_roots_as_well(root: Path) -> None:
    roots = Roots.of(str(root))
    roots.check_source("run.inputs", str(root / "rows.jsonl"))
    for url in ("/etc/passwd", "file://etc/passwd", f"file://{root}/x?/../../../etc/passwd"):
        with pytest.raises(InvalidOptionError, match=r"run\.inputs '.*passwd': not below"):
            roots.check_source("run.inputs", url)


@pytest.mark.parametrize("attribute", ["run", "fallback", "Class", "Class.method", "Class.Inner"], ids=str)
def test_a_function_or_class_that_the_file_defines_may_be_named(root: Path, attribute: str) -> None:
    Roots.of(str(root)).check(_request(flow=f"flows/a.py:{attribute}"))


@pytest.mark.parametrize(
    "attribute",
    [
        "random._os.system", "os.system", "sp.getoutput", "getoutput", "alias", "_private", "Class.os.system", "Class.other",
        "Class.__init__", "Class.method.__globals__", "run.__globals__", "Class.__class__", "Class.mro", "absent",
        "__builtins__", "random.Random", "__loader__.load_module", "Class.Inner.__call__.__func__",
    ],
    ids=str,
)  # fmt: skip
def test_what_a_file_imports_assigns_or_hides_is_no_flow(root: Path, attribute: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"does not define '\w+'\. This worker runs only public functions"):
        Roots.of(str(root)).check(_request(flow=f"flows/a.py:{attribute}"))


def test_a_file_of_that_name_is_a_file_and_wins_over_the_attribute(root: Path, tmp_path: Path) -> None:
    (root / "flows" / "a.py:run").symlink_to(tmp_path / "outside.py")
    (tmp_path / "outside.py").write_text("")

    with pytest.raises(InvalidOptionError, match=r"flow 'flows/a\.py:run'"):
        Roots.of(str(root)).check(_request(flow="flows/a.py:run"))


VARIABLES = [
    "NODE_OPTIONS", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PATH", "HOME",
    "TMPDIR", "PREFECT_API_URL", "PREFECT_HOME", "BATCHFLOW_ROOTS", "BATCHFLOW_ALLOWED_VARIABLES", "BATCHFLOW_IMAGE_HOSTS",
    "BATCHFLOW_STORAGE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "OPENAI_BASE_URL",
    "AZURE_OPENAI_ENDPOINT", "BASH_ENV", "PERL5OPT", "DOTNET_STARTUP_HOOKS", "GCONV_PATH", "MALLOC_CONF", "",
    "my_level", "LEVELS",
]  # fmt: skip


@pytest.mark.parametrize("name", VARIABLES)
def test_a_run_sets_no_variable_that_the_operator_has_not_allowed(root: Path, name: str) -> None:
    with pytest.raises(InvalidOptionError, match=rf"environment_variables '{name}': .*BATCHFLOW_ALLOWED_VARIABLES"):
        Roots.of(str(root), "MY_*, LEVEL").check(_request(environment_variables={name: "1", "LEVEL": "2"}))


def test_a_run_sets_the_variables_that_the_operator_has_allowed(root: Path) -> None:
    Roots.of(str(root), "MY_*, LEVEL").check(_request(environment_variables={"MY_LEVEL": "1", "LEVEL": "2"}))


KINDS = {
    "code": ["flow"],
    "place": ["data", "more_data", "image_roots", "connections", "storage", "output_dir", "working_dir"],
    "address": ["task_runner_address"],
    "process": ["environment_variables", "init_kwargs"],
    # The name of a run, checked by `check_run_id`.
    "run id": ["run_id", "run", "resume_from"],
    # A name that is looked up in the flow's yaml or among the connections.
    "name": ["variant", "node_connections"],
    # Values for the flow's inputs, and how the run goes on.
    "value": [
        "inputs_mapping", "max_lines_count", "worker_count", "max_concurrency", "line_timeout_sec", "line_memory_mb",
        "batch_timeout_sec", "max_failures", "max_same_errors", "retries", "retry_delay_sec", "retry_backoff", "retry_jitter",
        "retry_on", "granularity", "task_runner", "bad_rows", "line_number_column", "inputs_with_default", "on_change", "rerun",
        "rerun_lines",
    ],
}  # fmt: skip
"""What each parameter of `batch_run` can reach. A new one belongs here, and into `Roots.check` unless it reaches nothing."""


def test_each_parameter_is_classed_by_what_it_reaches() -> None:
    assert sorted(name for names in KINDS.values() for name in names) == sorted(PARAMETERS)


def _given(name: str, place: str) -> dict[str, Any]:
    return {name: {"more_data": {"m": place}, "connections": {"c": place}, "image_roots": [place]}.get(name, place)}


OUTSIDE = [
    "{root}/../outside.jsonl", "{root}/out/outside.jsonl", "{root}/y?/../../outside.jsonl", "{root}/y#/../../outside.jsonl",
    "file://{root}/y?/../../outside", "file://{root}/y#/../../outside", "file://{root}/%2e%2e/outside", "file://host{root}/x",
    "file://localhost{root}/x", "file://../outside", "file://..", "local://{root}/../outside", "local://host/x", "/etc/passwd",
    "file:///etc/passwd", "local:///etc/passwd", "file://{root}/x?y", "file://{root}/x#y", "simplecache::file://{root}/x",
    "file://{root}/x::memory://y", "zip://x::{root}/y", "memory://{root}/x", "memory://x", "sftp://host{root}/x",
    "https://host{root}/x", "http://127.0.0.1/x", "{root}-others/x", "~/x", "{url}/../x", "{url}/%2e%2e/x",
    "{url}/%252e%252e/x", "{url}/.\t./x", "{url}/..\\x", "{url}-others/x", "s3://bucket", "s3a://bucket/data/x",
    "reference::{url}/x",
]  # fmt: skip


@pytest.mark.parametrize("place", OUTSIDE)
@pytest.mark.parametrize("name", KINDS["place"])
def test_every_place_is_checked_as_it_is_opened(root: Path, name: str, place: str) -> None:
    given = place.format(root=root, url=URL_ROOT)
    with pytest.raises(InvalidOptionError, match="not below"):
        Roots.of(f"{root},{URL_ROOT}").check(_request(**_given(name, given)))


@pytest.mark.parametrize("name", [*KINDS["place"], *KINDS["code"]])
def test_every_place_can_be_below_a_root(root: Path, name: str) -> None:
    for place in (f"{root}/flows/x", "flows/x", f"{root}/flows/../flows/x"):
        Roots.of(f"{root},{URL_ROOT}").check(_request(**_given(name, place)))


@pytest.mark.parametrize(
    "given",
    [
        {"model": {"azure_deployment": "d", "azure_endpoint": "https://evil.example"}},
        {"model": {"model": "m", "base_url": " HTTPS://evil.example"}},
        {"url": "https://allowed.example.evil/x"},
        *({"url": url} for url in (
            "https:evil.example", "https:/evil.example", "https:\\\\evil.example", "//evil.example/x", "\\\\evil.example",
            "ht\ttps://evil.example", "\x00https://evil.example", "HTTP:evil.example", "ws:evil.example", " \n//evil.example",
        )),
        {"key": "${env:PREFECT_API_AUTH_STRING}"},
        {"model": {"api_key": "a ${ENV:SECRET} b", "base_url": "https://allowed.example"}},
        {"list": [["${env:X}"]]},
        {"${env:X}": 1},
    ],
    ids=ascii,
)  # fmt: skip
def test_constructor_arguments_name_no_other_service_and_no_variable_of_the_worker(
    root: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(InvalidOptionError, match="init_kwargs"):
        Roots.of(f"{root},https://allowed.example").check(_request(init_kwargs=given))


def test_constructor_arguments_can_name_connections_and_allowed_services(root: Path) -> None:
    given = {
        "ai": "open_ai",
        "m": {"connection": "a", "base_url": "https://allowed.example/v1"},
        "n": 3,
        "t": "see https://a",
    }
    Roots.of(f"{root},https://allowed.example").check(_request(init_kwargs=given))


@pytest.mark.parametrize(
    "url", ["{root}", "{root}/*.jsonl", "{root}/l*", "file://{root}", "local://{root}", "{root}/link.jsonl"]
)
def test_no_link_among_the_files_leads_a_source_out(root: Path, tmp_path: Path, url: str) -> None:
    (root / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    source = open_source(url.format(root=root), name="data", may_read=Roots.of(str(root)).may_read)

    with pytest.raises(InvalidUserData, match=r"link\.jsonl is a link that leads out"):
        list(source.rows())


def test_a_link_that_stays_inside_is_read(root: Path) -> None:
    (root / "link.jsonl").symlink_to(root / "rows.jsonl")
    source = open_source(str(root / "link.jsonl"), name="data", may_read=Roots.of(str(root)).may_read)

    assert [row.values for row in source.rows()] == [{"q": 1}]
    assert source.folder == str(root)


def test_images_beside_a_file_that_is_a_root_itself_are_not_read(root: Path) -> None:
    source = open_source(str(root / "rows.jsonl"), name="data", may_read=Roots.of(str(root / "rows.jsonl")).may_read)

    assert [row.values for row in source.rows()] == [{"q": 1}]
    assert source.folder is None
