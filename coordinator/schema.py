"""The tables of the coordinator's database. A change here needs a step in `migrations/`; a test compares the two.

It knows columns and keys; what they mean in the course of a federation is `store.py`'s matter.
"""

from sqlalchemy import JSON, BigInteger, Column, Float, ForeignKeyConstraint, Integer, MetaData, String, Table

metadata = MetaData()

federations = Table(
    "federations",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("manifest_digest", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("paused", String(500), doc="Why it is paused; NULL while it runs."),
    Column("stop_requested", Integer, nullable=False, default=0),
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
    Column("missing", JSON, nullable=False),
    Column("why", String(2000), nullable=False, default=""),
    Column("opened_at", Float, nullable=False),
    Column("closed_at", Float),
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
)
