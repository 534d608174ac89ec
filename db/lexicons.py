"""Postgres's text search configurations by language: words are reduced to their stems when stored, and queries in the same way."""

from __future__ import annotations

#: Language code -> configuration.
_OF_LANGUAGE = {
    "en": "english", "de": "german", "fr": "french", "es": "spanish", "it": "italian", "pt": "portuguese",
    "nl": "dutch", "ru": "russian", "sv": "swedish", "da": "danish", "fi": "finnish", "no": "norwegian",
    "hu": "hungarian", "ro": "romanian", "tr": "turkish", "ar": "arabic", "el": "greek", "hi": "hindi",
}  # fmt: skip
#: Of scenes without speech, whose on-screen text is of an unknown language.
WITHOUT_LANGUAGE = "english"


def lexicon_of(language: str) -> str:
    """The configuration of a language; words of a language without one are indexed as they are."""
    return _OF_LANGUAGE.get(language[:2], "simple")
