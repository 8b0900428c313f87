"""Everyday words by subject: what `aggregate` lines are about, and all the simulated model knows.

A line's label is the subject of its one content word; the label itself is never written in the
text. Every word belongs to one subject only, and no label contains one of the words.
"""

from __future__ import annotations

_WORDS = {
    "animal": (
        "otter badger heron lynx marmot pelican gecko bison ferret walrus hedgehog falcon "
        "tortoise weasel antelope puffin raccoon salamander"
    ),
    "food": (
        "lasagna pretzel dumpling omelette biryani gazpacho brisket sorbet falafel "
        "risotto pancake goulash burrito porridge meringue chowder ravioli crumpet"
    ),
    "vehicle": (
        "tractor gondola scooter minivan trolley hovercraft tandem glider bulldozer "
        "ferryboat limousine motorbike tramcar canoe forklift helicopter wagon kayak"
    ),
    "music": (
        "cello bassoon ukulele timpani accordion harp clarinet banjo sitar trombone oboe "
        "mandolin xylophone saxophone lute bagpipe flute marimba"
    ),
    "weather": (
        "drizzle blizzard monsoon hailstorm sleet heatwave fog cyclone squall frost "
        "downpour thunder snowfall hurricane mist drought whirlwind rainbow"
    ),
    "clothing": (
        "cardigan mitten overcoat sandal waistcoat beret kimono trousers pullover scarf "
        "poncho slipper bonnet blouse apron anorak kilt stocking"
    ),
}

SUBJECTS: dict[str, tuple[str, ...]] = {
    subject: tuple(words.split()) for subject, words in _WORDS.items()
}

SUBJECT_OF: dict[str, str] = {
    word: subject for subject, words in SUBJECTS.items() for word in words
}
