"""Parameters of paths and queries that several routes have."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query

from api.asking import Asking, asking
from api.callers import Caller, caller, operator
from api.idempotency import Once, once
from shared.contracts import ID_PATTERN

Who = Annotated[Caller, Depends(caller)]
Operator = Annotated[Caller, Depends(operator)]
Ask = Annotated[Asking, Depends(asking)]
OnceOnly = Annotated[Once, Depends(once)]

WHOLE_ID = f"^{ID_PATTERN}$"
#: The largest number of a row.
MAX_NUMBER = 2**63 - 1

VideoId = Annotated[str, Path(pattern=WHOLE_ID)]
PersonId = Annotated[str, Path(pattern=WHOLE_ID)]
PhotoId = Annotated[str, Path(pattern=WHOLE_ID)]
EventId = Annotated[int, Path(ge=1, le=MAX_NUMBER)]
AfterId = Annotated[str | None, Query(pattern=WHOLE_ID, description="The previous page's `next_after`")]
AfterNumber = Annotated[int | None, Query(ge=1, le=MAX_NUMBER)]
Limit1000 = Annotated[int, Query(ge=1, le=1000)]
