"""Finds scenes by words, meaning, pictures and people. Every query is scoped by ``user_id`` and sees published
scenes only.

``scope`` filters scenes, ``retrievers`` and ``nearest`` find and compare them by one kind of similarity, ``ranking`` combines
the retrievers into one order, ``details`` fetches the fields of a hit, ``coverage`` counts the searched scenes.
"""

from db.search.coverage import Covered, cover
from db.search.details import describe
from db.search.nearest import Vector
from db.search.ranking import Found, Ranking, find
from db.search.retrievers import Lexical, Match, People, Tuning, Words, exemplar, read_words
from db.search.scope import Scope

__all__ = [
    "Covered",
    "Found",
    "Lexical",
    "Match",
    "People",
    "Ranking",
    "Scope",
    "Tuning",
    "Vector",
    "Words",
    "cover",
    "describe",
    "exemplar",
    "find",
    "read_words",
]
