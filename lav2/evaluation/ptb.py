"""The tokens COCO scores are computed on: Penn Treebank tokens in lower case, without punctuation.

COCO's evaluation runs Stanford's Java tokenizer (CoreNLP 3.4.1, ``PTBTokenizer -preserveLines -lowerCase``) over all
captions at once and then drops punctuation. BLEU, ROUGE-L and CIDEr depend on each of its choices, so this module makes
the same ones in Python: it is written from the Treebank's conventions and from what that tokenizer answers. Its quirks
are kept because published numbers contain them: "(" becomes "-lrb-" and stays while "-" goes, "22 3/4" is one token
(with a no-break space inside), a caption's last "K." depends on the next caption's first word, the very last "'ll"
comes apart. Not imitated: letters of scripts that Unicode took in after about 2011, which the Java tokenizer deletes.
"""

import re
from collections.abc import Iterable

# Punctuation that COCO's evaluation drops. Lower-cased bracket names ("-lrb-") are not in its list, so they stay.
PUNCTUATION = frozenset(["", "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Abbreviations that keep their period, in any case ...
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif capt cf cie
    cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen
    gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn
    mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte
    ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs
    treas tue tues univ va vs vt wed wis wisc wm wyo"""
# ... those that are words in lower case ("ill.", "mass."), and those that keep it before a number ("no. 5").
_CAPITALIZED = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_NUMBERED = "art ca fig figs no nos op pp prop"
# One letter and a period before one of these words end a sentence ("Lane K. The"); before others they are initials.
_SENTENCE_STARTS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One
    Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You """

# Signs above ASCII that are tokens of their own; other signs (emoji, dingbats beyond the arrows) are deleted.
_SIGN = (
    "\xa1\xa5-\xa9\xac\xae-\xb4\xb6-\xb9\xbf\xd7\xf7\u037e\u0387\u0589\u05be\u060c\u061b\u061f\u06d4\u0964\u0965\u0e3f"
    "\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a4\u2100"
    "\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144"
    "\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    "\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
# How signs are written. Left and right quotation marks need no telling apart: both are punctuation.
_WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "\u2026": "...",
    "\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": "",
    "\xa2": "cents", "\xa3": "#", "\xa4": "$", "\u20a0": "$", "\u20ac": "$",
    **dict.fromkeys('"\xab\xbb\u201c\u201d', "''"), **dict.fromkeys("\u2018\u2019\u201b\u2039\u203a", "'"),
    **dict.fromkeys("\u2013\u2014\u2015", "--"),
}  # fmt: skip


def _any_of(words: str) -> str:
    return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


_LETTER = rf"(?:(?![{_SIGN}\xbc-\xbe\u2150-\u218f])[^\W_])"
_MARK = (  # accents and vowel signs, which only continue a word
    "[\xad\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0375\u0384\u0385\u0483-\u0487\u0591-\u05bd\u05bf"
    "\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06e4\u06e7-\u06ed\u0711\u0730-\u074c"
    "\u07a6-\u07b0\u0900-\u0903\u093c\u093e-\u094e\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]"
)
_WORD = rf"(?:{_LETTER}(?:{_LETTER}|{_MARK})*)"
_HYPHENATED = rf"{_WORD}(?:[-_\u058a\u2010\u2011]{_WORD})*"
_DOTTED = rf"(?![0-9]){_WORD}(?:[.!?](?![0-9]){_WORD})+"
_APOSTROPHE = "['\u2019]"
_CLITIC = rf"(?i:n['\u2019\u2018]t|{_APOSTROPHE}(?:[sdm]|(?:ll|re|ve)(?=.))(?!{_LETTER}))"
_NUMBER = r"(?:[0-9]*(?:[.,:\u066b\u066c][0-9]+)+|[0-9]+)"
_GAP = "[- \xa0]"  # between the parts of one number
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+\."
_ABBREVIATION = rf"(?:(?i:{_any_of(_ABBREVIATIONS)})|{_any_of(_CAPITALIZED + ' ' + _CAPITALIZED.upper())})"
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"  # of a tag or its attribute
_STOP = r"\s\"<>|(){}"  # what no web or mail address contains
_ENDS = rf"(?!{_LETTER})"

# The rules: what a token is, its form, and what must follow it. At each place the rule that matches most text (what
# follows included) wins; among equals, the earlier one.
_RULES = [
    ("tag", rf"<[/!?]?{_NAME}(?: +{_NAME}(?:=(?:\"[^\"\n]*\"|'[^'\n]*'))?)* *[/?]?>|<!--[^\n]*?-->", ""),
    ("entity", "&(?:amp|lt|gt|quot|apos|nbsp|#[0-9]+);", ""),
    ("web address", rf"(?i:https?)://[^{_STOP}]+[^{_STOP}.!?,-]", ""),
    ("domain", rf"(?:[^{_STOP}.!?,;:$/@'=\\_\[\]-]+\.)+(?i:com|net|org|edu)(?:/[^{_STOP}]+[^{_STOP}.!?,-])?", _ENDS),
    ("www", rf"www\.(?:[^{_STOP}.!?,]+\.)+[A-Za-z]{{2,4}}(?:/[^{_STOP}]+[^{_STOP}.!?,-])?", ""),
    ("mail address", rf"[A-Za-z0-9][^{_STOP}]*@(?:[^{_STOP}.]+\.)*[^{_STOP}.]+", ""),
    ("hashtag", rf"\#(?:(?![0-9]){_LETTER})+", ""),
    ("user", r"@[A-Za-z_]\w*", ""),
    ("can|not", "(?i:can(?=not)|gon(?=na)|got(?=ta)|lem(?=me)|gim(?=me)|wan(?=na))", f"(?i:not|na|ta|me){_ENDS}"),
    ("do|n't, it|'s", _WORD, _CLITIC),
    ("n't, 's", _CLITIC, ""),
    ("'t|is", "(?i:'t)", "(?i:is|was)"),
    ("y'|all", f"(?i:y{_APOSTROPHE})", "(?i:all)"),
    ("word", _HYPHENATED, ""),
    ("1,5-inch", rf"(?:[DLOdlo]')?[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{_INITIALS}|(?:[DLOdlo]')?[A-Za-z0-9]+))+", ""),
    ("and/or", r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", ""),
    ("O'Neil, d'or", r"[A-HJ-XZdlno]['\u2019\u2018][A-Za-z]{2,}", ""),
    ("Xi'an", rf"(?:(?![0-9]){_LETTER})+[aeiouyAEIOUY]['\u2019\u2018][aeiouA-Z][A-Za-z]*", ""),
    ("'em", f"(?i:{_APOSTROPHE}(?:em|till?|cause|n(?:{_APOSTROPHE}|(?![.]?{_LETTER}))))", ""),
    ("'90s", rf"{_APOSTROPHE}(?:[0-9]0s|[0-9][0-9](?=\s))", ""),
    ("l'", f"(?i:(?:[djl]|ol|dunkin|somethin){_APOSTROPHE})", ""),
    ("c'mon", "(?i:c'est|c'mon|cap'n|d'ye|e'er|ev'ry|li'l|nat'l|o'o|s'mores)", ""),
    ("AT&T", "[A-Z]+(?:&[A-Z]+)+", ""),
    ("C++", r"[Cc]\+\+|[CcFf]\#", ""),
    ("U.S.", r"[A-Za-z](?:\.[A-Za-z])+\.?|(?i:ed|ph)\.[Dd]\.", _ENDS),
    ("J.", rf"[A-Za-z]\.(?!\s+(?:{_any_of(_SENTENCE_STARTS + _SENTENCE_STARTS.upper())}\s|M[rs]\.\s))", ""),
    ("Dr.", rf"{_ABBREVIATION}\.", ""),
    ("no. 5", rf"(?i:{_any_of(_NUMBERED)})\.", r"\s*[0-9]"),
    ("ab.,", rf"(?:{_HYPHENATED}|{_DOTTED})\.", "[,;:]"),
    ("main.py", _DOTTED, ""),
    ("5.4", rf"[-+]?{_NUMBER}", ""),
    ("22 3/4", rf"(?:[0-9]{{1,4}}{_GAP})?[0-9]{{1,4}}[/\u2044][0-9]{{1,4}}", ""),
    ("1/2-12", "[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}", ""),
    ("555-123-4567", rf"\+{{0,2}}(?:[0-9]{{2,4}}{_GAP})?[0-9]{{2,4}}{_GAP}[0-9]{{3,4}}{_GAP}?[0-9]{{3,5}}", ""),
    ("(555) 123-4567", rf"\([0-9]{{2,3}}\)[ \xa0]?[0-9]{{3,4}}{_GAP}?[0-9]{{3,5}}", ""),
    ("US$", r"(?:[A-Z]|US|HK|CAD|AU|NZ)\$", ""),
    ("runs", r"\^_\^|>_<|-_-|\.{3}|[!?]+|-{5,}|--|\*+|_+|@+|\#+|''|``|[⁰⁴-⁹²³¹]+|[₀-₉]+", ""),
    ("smiley", r"[<>]?[:;=][-o*']?[()DPdpO@|{\[\]\\]|:3", "[^A-Za-z0-9]"),
    ("any character", ".", ""),
]
_TABLE = [re.compile(f"(?P<token>{token})(?:{after})", re.DOTALL) for _, token, after in _RULES]
# A shortcut past the rules for most words.
_PLAIN_WORD = re.compile(r"(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)\s)[A-Za-z]+(?=\s)")
_NOTHING = re.compile(rf"\s|(?!{_LETTER}|{_MARK}|[{_SIGN}])[^\x20-\x7e]")  # emoji and other unknown characters


def tokenize(captions: Iterable[str]) -> list[list[str]]:
    """Split captions into the tokens that COCO scores count.

    Line breaks inside a caption count as spaces. Captions are read as lines of one text, in the order given, as in
    COCO's evaluation (see the module's first lines for what that means at a caption's end).

    Returns:
        For each caption its lower-case tokens without punctuation; an empty list for an empty caption.
    """
    lines = [" ".join(re.split("[\n\r\v\f\x85\u2028\u2029]", caption)) for caption in captions]
    tokens: list[list[str]] = [[] for _ in lines]
    text, position, line = "\n".join(lines), 0, 0
    while position < len(text):
        plain = _PLAIN_WORD.match(text, position)
        token = plain[0] if plain else _longest(text, position)
        position += len(token)
        if token == "\n":
            line += 1
        elif (written := _write(token)) not in PUNCTUATION:
            tokens[line].append(written)
    return tokens


def _longest(text: str, position: int) -> str:
    if text[position].isspace():
        return text[position]
    matches = [match for rule in _TABLE if (match := rule.match(text, position))]
    return max(matches, key=lambda match: match.end())["token"]


def _write(token: str) -> str:
    if token in _WRITTEN:
        return _WRITTEN[token]
    if _NOTHING.fullmatch(token):
        return ""
    if re.fullmatch("(?i:n?[\u2018\u2019](?:[tsdm]|ll|re|ve))", token):
        token = token.replace("\u2019", "'").replace("\u2018", "`")
    return token.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\xa0").replace("\xad", "").lower()
