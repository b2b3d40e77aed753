"""Scripts that have no spaces between words."""

import unicodedata

# By the first words of their characters' Unicode names. Of the first, nothing has spaces around it, whatever script it
# is in; of the second, phrases have, and foreign words and numbers.
_EASTERN = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "YI ", "VERTICAL KANA")
_SOUTH_EASTERN = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI", "JAVANESE", "BALINESE", "SUNDANESE")


def eastern(char: str) -> bool:
    """Whether a character has no space around it, whatever stands beside it.

    >>> eastern("京"), eastern("。"), eastern("a")
    (True, True, False)
    """
    width, name = unicodedata.east_asian_width(char), unicodedata.name(char, "")
    return name.startswith(_EASTERN) or width == "F" or (width == "W" and unicodedata.category(char).startswith("P"))


def south_eastern(char: str) -> bool:
    """Whether a character is of a script that puts spaces between phrases, and not between words.

    >>> south_eastern("ก"), south_eastern("a")
    (True, False)
    """
    return unicodedata.name(char, "").startswith(_SOUTH_EASTERN)
