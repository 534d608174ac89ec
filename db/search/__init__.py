"""Finds scenes by words, meaning, pictures and people. Every query is scoped by ``user_id`` and sees published
scenes only.

``scope`` says which scenes may be found (``filters``: as plug-ins do), ``retrievers`` and ``nearest`` compute one kind of similarity each,
``ranking`` joins the retrievers into one order, ``details`` fetches what a hit shows, ``coverage`` counts what can be searched.
"""

from db.search.coverage import Covered, cover, read_version, version_now
from db.search.details import describe
from db.search.filters import read_filters
from db.search.nearest import Vector
from db.search.ranking import Found, Place, Ranking, find
from db.search.retrievers import (
    Lexical,
    Match,
    People,
    Retriever,
    Tuning,
    Words,
    WordsQuery,
    exemplar,
    read_words,
)
from db.search.scope import Scope

__all__ = [
    "Covered", "Found", "Lexical", "Match", "People", "Place", "Ranking", "Retriever", "Scope", "Tuning", "Vector", "Words", "WordsQuery",
    "cover", "describe", "exemplar", "find", "read_filters", "read_version", "read_words",
    "version_now",
]  # fmt: skip
