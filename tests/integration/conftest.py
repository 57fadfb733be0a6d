"""Sites for the tests of whole federations, and the simulation that they must all equal."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from small_federation import TABLES, Oracle, Site


@pytest.fixture(scope="session")
def make_site(
    tmp_path_factory: pytest.TempPathFactory, mini_config: Callable[..., Any], mini_examples: Callable[..., Any]
) -> Iterator[Callable[..., Site]]:
    """Make a site; all sites have the same settings and data, so they all must end with the same bits."""
    sites: list[Site] = []

    def make(**options: Any) -> Site:
        sites.append(Site(tmp_path_factory.mktemp("site"), mini_config(**TABLES), mini_examples, **options))
        return sites[-1]

    os.environ["OMP_NUM_THREADS"] = "1"
    yield make
    for site in sites:
        site.close()


@pytest.fixture(scope="session")
def oracle(make_site: Callable[[], Site]) -> Oracle:
    """The same federation in one process, by `tap simulate`'s own function."""
    from deploy.tap.federations import simulate_federation  # brings torch

    site = make_site()
    rounds: list[dict[str, Any]] = []
    _, result = simulate_federation(site.federation, site.devices, lambda _, outcomes: rounds.append(dict(outcomes)))
    return Oracle(result, rounds)
