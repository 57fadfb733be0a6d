"""The tables of the coordinator's database. A change here needs a step in `migrations/`; a test compares the two.

It knows columns and keys; what they mean in the course of a federation is `store.py`'s matter.
"""

from sqlalchemy import JSON, BigInteger, Column, Float, ForeignKeyConstraint, Integer, MetaData, String, Table, Text

metadata = MetaData()

federations = Table(
    "federations",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("manifest_digest", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("paused", String(500), doc="Why it is paused; NULL while it runs."),
    Column("stop_requested", Integer, nullable=False, default=0),
    Column("identity", String(64), doc="The same as in the state directory: the two belong together."),
)

devices = Table(
    "devices",
    metadata,
    Column("federation", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("enrolled_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("joined_at", Float, doc="First hello."),
    Column("tasks", JSON, doc="Training examples by task: the manifest of the last hello."),
    Column("owned", JSON, doc="Names of the components it owns."),
    Column("away", Integer, nullable=False, default=0, doc="1: missed a deadline and has not come back."),
    Column("done_at", Float, doc="When it had ended stage 2."),
    Column("token_expires_at", Float, doc="NULL: never."),
    Column("code_sha256", String(64), doc="Of the enrolment code that a device may exchange for a token."),
    Column("code_expires_at", Float),
    Column("code_used_at", Float, doc="When the code was exchanged."),
    Column("allowed_tasks", JSON, doc="Tasks that the device may name; NULL: all."),
    Column("max_examples", BigInteger, doc="Most training examples of one task that it may claim."),
    Column("missed", Integer, nullable=False, default=0, doc="Deadlines missed in a row."),
    Column("strikes", Integer, nullable=False, default=0, doc="Updates rejected since the last one accepted."),
)

rounds = Table(
    "rounds",
    metadata,
    Column("federation", String(64), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("status", String(16), nullable=False, doc="open, committed or failed."),
    Column("sampled", JSON, nullable=False),
    Column("contributors", JSON, nullable=False),
    Column("missing", JSON, nullable=False, doc="While it is open: why by device that is not waited for any more."),
    Column("why", String(2000), nullable=False, default=""),
    Column("opened_at", Float, nullable=False),
    Column("closed_at", Float),
    Column("home", JSON, doc="Components that stay at home, the same in all attempts at a round."),
)

updates = Table(
    "updates",
    metadata,
    Column("federation", String(64), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("accepted_at", Float, nullable=False),
)

update_components = Table(
    "update_components",
    metadata,
    Column("federation", String(64), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("component", String(200), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("examples", BigInteger, nullable=False),
    Column("norm", Float, doc="Norm of its difference from the version that it was trained from."),
    ForeignKeyConstraint(["federation", "round", "device"], ["updates.federation", "updates.round", "updates.device"]),
)

component_versions = Table(
    "component_versions",
    metadata,
    Column("federation", String(64), primary_key=True),
    Column("component", String(200), primary_key=True),
    Column("version", Integer, primary_key=True, doc="0 from tap init; round + 1 for one that a round made."),
    Column("digest", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("contributors", Integer, nullable=False, doc="Devices that it is the mean of."),
    Column("norm", Float, doc="Median of its contributors' update norms; NULL for version 0."),
    Column("moments", String(64), doc="Digest of the server optimizer's moments after it; NULL where there are none."),
    Column("withdrawn_at", Float, doc="When a rollback or a repair took it back; NULL while it counts."),
)

operators = Table(
    "operators",
    metadata,
    Column("federation", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("token_sha256", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False, doc="read or write."),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, doc="NULL: never."),
    Column("revoked_at", Float),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("federation", String(64), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("actor", String(200), nullable=False, doc="Who: an operator, a user of the host, a device or the service."),
    Column("act", String(64), nullable=False),
    Column("subject", String(200), nullable=False, doc="A device, a component, an operator; may be empty."),
    Column("detail", Text, nullable=False),
)
