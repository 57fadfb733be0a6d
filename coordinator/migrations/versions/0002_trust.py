"""Trust and repair: the state's identity, expiring tokens and codes, bounds of a device, norms, operators, audit."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ADDED = {
    "federations": [sa.Column("identity", sa.String(64))],
    "devices": [
        sa.Column("token_expires_at", sa.Float),
        sa.Column("code_sha256", sa.String(64)),
        sa.Column("code_expires_at", sa.Float),
        sa.Column("code_used_at", sa.Float),
        sa.Column("allowed_tasks", sa.JSON),
        sa.Column("max_examples", sa.BigInteger),
        sa.Column("missed", sa.Integer, nullable=False, server_default="0"),
        sa.Column("strikes", sa.Integer, nullable=False, server_default="0"),
    ],
    "update_components": [sa.Column("norm", sa.Float)],
    "component_versions": [sa.Column("norm", sa.Float), sa.Column("withdrawn_at", sa.Float)],
}


def upgrade() -> None:
    for table, columns in _ADDED.items():
        for column in columns:
            op.add_column(table, column)
    op.create_table(
        "operators",
        sa.Column("federation", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("federation", sa.String(64), nullable=False, index=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("act", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )


def downgrade() -> None:
    for table in ("audit", "operators"):
        op.drop_table(table)
    for table, columns in _ADDED.items():
        for column in columns:
            op.drop_column(table, column.name)
