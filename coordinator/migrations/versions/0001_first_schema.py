"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "federations",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("manifest_digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("paused", sa.String(500)),
        sa.Column("stop_requested", sa.Integer, nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("federation", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("enrolled_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float),
        sa.Column("joined_at", sa.Float),
        sa.Column("tasks", sa.JSON),
        sa.Column("owned", sa.JSON),
        sa.Column("away", sa.Integer, nullable=False),
        sa.Column("done_at", sa.Float),
    )
    op.create_table(
        "rounds",
        sa.Column("federation", sa.String(64), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("sampled", sa.JSON, nullable=False),
        sa.Column("contributors", sa.JSON, nullable=False),
        sa.Column("missing", sa.JSON, nullable=False),
        sa.Column("why", sa.String(2000), nullable=False),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("closed_at", sa.Float),
    )
    op.create_table(
        "updates",
        sa.Column("federation", sa.String(64), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("accepted_at", sa.Float, nullable=False),
    )
    op.create_table(
        "update_components",
        sa.Column("federation", sa.String(64), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("device", sa.String(64), primary_key=True),
        sa.Column("component", sa.String(200), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("examples", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(
            ["federation", "round", "device"], ["updates.federation", "updates.round", "updates.device"]
        ),
    )
    op.create_table(
        "component_versions",
        sa.Column("federation", sa.String(64), primary_key=True),
        sa.Column("component", sa.String(200), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("contributors", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    for table in ("component_versions", "update_components", "updates", "rounds", "devices", "federations"):
        op.drop_table(table)
