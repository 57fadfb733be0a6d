"""Moments of the server's optimizer, which belong to a component's version. Versions made before have none."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("component_versions", sa.Column("moments", sa.String(64)))


def downgrade() -> None:
    op.drop_column("component_versions", "moments")
