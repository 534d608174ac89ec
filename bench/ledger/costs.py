"""Times of the ledger's frequent statements."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sqlalchemy.orm import Session

from db.engine import get_engine, make_engine, set_engine
from tests.support.ledger_statements import statements


@contextmanager
def sessions_on(url: str) -> Iterator[None]:
    """Let this process's sessions use this database."""
    engine = make_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    set_engine(engine)
    try:
        yield
    finally:
        set_engine(None)
        engine.dispose()


def measure(url: str, repeats: int) -> dict[str, float]:
    """95th percentile of each statement, milliseconds."""
    found: dict[str, float] = {}
    with sessions_on(url):
        for name, act in statements().items():
            took: list[float] = []
            for _ in range(repeats + 5):
                with Session(get_engine()) as session:
                    began = time.perf_counter()
                    act(session)
                    took.append(1000 * (time.perf_counter() - began))
                    session.rollback()
            # The first ones fill caches and prepare the statements.
            found[name] = float(np.percentile(took[5:], 95))
    return found
