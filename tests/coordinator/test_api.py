"""The HTTP API against its own OpenAPI document: whatever is sent, answers keep what the document promises.

Schemathesis draws the requests, the same ones in continuous integration each time (see how Hypothesis is set up in
tests/conftest.py).
"""

import asyncio
import sys
import threading

import pytest
from hypothesis import HealthCheck, settings

from coordinator.http_guard import OPEN_PAGES, Guard
from coordinator.identity import new_token, token_digest
from coordinator.limits import Failures
from coordinator.operator_access import OperatorAccess
from coordinator.operator_api import make_app
from coordinator.operator_registry import OperatorRegistry

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")

READ, WRITE = "tapop_reading", "tapop_writing"
EXAMPLES = settings(suppress_health_check=list(HealthCheck))


@pytest.fixture
def api(federation, running):
    """The application of a federation under way, and its OpenAPI document as an operator gets it."""
    import schemathesis

    directory, manifest = federation()
    service, loop = running(directory, manifest), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def there(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    there(service.__aenter__())
    store = service.store
    for name, token, role in (("reader", READ, "read"), ("writer", WRITE, "write")):
        OperatorRegistry(store.engine, store.federation).add(name, token_digest(token), role, 1.0, actor="test")
    for device in ("one", "two"):
        store.registry.enroll(device, token_digest(new_token()), 2.0)
    access = OperatorAccess(OperatorRegistry(store.engine, store.federation), failures=Failures(a_minute=10**6))
    app = Guard(make_app(service.federation, service.plane), access, ["testserver"])
    yield schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Authorization": f"Bearer {READ}"})
    there(service.__aexit__(None, None, None))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def each_operation(api):
    operations = [result.ok() for result in api.get_all_operations()]
    assert {operation.path for operation in operations} == {
        "/healthz", "/readyz", "/status", "/metrics", "/devices", "/rounds", "/audit",
        "/pause", "/resume", "/stop", "/devices/{name}/revoke",
    }  # fmt: skip
    return operations


def drawn(operation, check, examples=20):
    """Run ``check(case)`` with requests that the document allows, and with some that it does not."""
    from hypothesis import given
    from schemathesis import GenerationMode

    takes_something = bool(operation.body) or any(len(kind) for kind in (operation.path_parameters, operation.query))
    for mode in (GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if takes_something else [])):
        strategy = operation.as_strategy(generation_mode=mode)
        settings(EXAMPLES, max_examples=examples)(given(case=strategy)(lambda case: check(case)))()


def called(case, authorization):
    for name in [name for name in case.headers if name.lower() == "authorization"]:
        del case.headers[name]
    return case.call(headers={"Authorization": authorization})


@pytest.mark.parametrize("token", [READ, WRITE])
def test_every_answer_is_as_the_document_says(api, token):
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance]
    checks += [response_headers_conformance, response_schema_conformance]
    seen = set()

    def check(case):
        response = called(case, f"Bearer {token}")
        if not (case.path == "/readyz" and response.status_code == 503):  # once /stop has been asked for
            case.validate_response(response, checks=checks)
        if "authorization" not in {name.lower() for name in response.request.headers}:
            assert response.status_code == 401 or case.path in OPEN_PAGES  # it is left out where it is required
            return
        assert response.status_code != 401
        assert (response.status_code == 403) == (token == READ and case.method == "POST")
        seen.add(response.status_code)

    for operation in each_operation(api):
        drawn(operation, check)
    assert {200} < seen and (token == READ or {202, 404, 422} <= seen)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer tapop_wrong"}, {"Authorization": "Basic eDp5"}])
def test_without_a_token_there_is_nothing_but_401(api, headers):
    def check(case):
        response = called(case, headers.get("Authorization", ""))
        assert response.status_code == 401 and list(response.json()) == ["detail"], response.text

    for operation in each_operation(api):
        if operation.path not in OPEN_PAGES:
            drawn(operation, check, examples=3 if "Bearer" in str(headers) else 20)  # a wrong token waits for a look


def test_the_document_names_every_error_as_one_line(api):
    """The application has no page that the document does not have, and no error of another form."""
    schema = api.raw_schema
    for path, page in schema["paths"].items():
        for operation in page.values():
            for status, answer in operation["responses"].items():
                if status.startswith(("4", "5")) and (path, status) != ("/readyz", "503"):
                    assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/Problem"), (path, status)
            assert ("security" in operation) == (path not in OPEN_PAGES)
