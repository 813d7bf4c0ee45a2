"""When is it high water? A rough answer for our harbour, good enough for walking on the sands.

Two tides a day, each about 12 hours and 25 minutes after the last. Around new and full moon the water comes higher
(spring tide), around the half moons less high (neap tide). This script knows one high water from the printed tables
and counts on from there. After a month it is off by some twenty minutes: take a new reference from the tables then.
"""

import datetime
import math

PERIOD = datetime.timedelta(hours=12, minutes=25.2)
MOON = datetime.timedelta(days=29.53)
REFERENCE = datetime.datetime(2026, 3, 3, 11, 52)  # high water on a day of full moon
MEAN, SPRING = 2.6, 0.7  # metres above chart datum, and how much the moon adds at most


def next_high_waters(now, count=4):
    """The next `count` high waters after `now`, each with its height in metres."""
    passed = math.ceil((now - REFERENCE) / PERIOD)
    for number in range(passed, passed + count):
        at = REFERENCE + number * PERIOD
        phase = 2 * math.pi * ((at - REFERENCE) / MOON)
        yield at, MEAN + SPRING * math.cos(2 * phase)


if __name__ == "__main__":
    for at, height in next_high_waters(datetime.datetime.now()):
        print(f"{at:%a %d %b %H:%M}  {height:.1f} m")
