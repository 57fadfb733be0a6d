"""Cohorts: which components stay at home in a round. In the rounds before, none did."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("rounds", sa.Column("home", sa.JSON))
    op.execute("UPDATE rounds SET home = '[]'")


def downgrade() -> None:
    op.drop_column("rounds", "home")
