"""Fire times of cron expressions by croniter. Standard input: a JSON array of [expression, zone, begin, end], times in
seconds since 1970; standard output: an array of arrays of such times, begin and end excluded."""

import datetime
import json
import sys
import zoneinfo

from croniter import croniter


def fires(expression, zone, begin, end):
    start = datetime.datetime.fromtimestamp(begin, zoneinfo.ZoneInfo(zone))
    times = croniter(expression, start, second_at_beginning=True)
    while (fire := times.get_next(datetime.datetime).timestamp()) < end:
        yield int(fire)


json.dump([list(fires(*wanted)) for wanted in json.load(sys.stdin)], sys.stdout)
