"""The same simulation, slow and in exact fractions: every event fills all flows anew, from the definition."""

from fractions import Fraction


def fair(routes, capacities):
    """Max-min fair rates: raise all together; what fills up holds its flows."""
    rates = [Fraction(0)] * len(routes)
    free = set(range(len(routes)))
    while free:
        users = {r: [f for f in free if r in routes[f]] for r in range(len(capacities))}
        used = {r: sum(rates[f] for f in range(len(routes)) if r in routes[f]) for r in users}
        room = {r: (capacities[r] - used[r]) / len(flows) for r, flows in users.items() if flows}
        step = min(room.values())
        for f in free:
            rates[f] += step
        free -= {f for r, left in room.items() if left == step for f in users[r]}
    return rates


def port(capacity, degree, epsilon, flows):
    """What a resource carries under so many flows, with incast."""
    return 1 / (1 / capacity + max(0, flows + 1 - degree) * epsilon)


def simulate(programs, messages, resources, together):  # noqa: PLR0912
    """When each message has left and is there, and when each worker ends.

    ``programs``: each worker's operations, ("send", t), ("wait", t) or ("pause", seconds). ``messages``: (source,
    bytes, route, latency). ``resources``: (capacity, degree, epsilon). All numbers are fractions.
    """
    now = Fraction(0)
    at, sleeps = [0] * len(programs), [Fraction(0)] * len(programs)
    left, there, remaining = {}, {}, {}
    ended = [None] * len(programs)
    sending = {}
    while True:
        moved = True
        while moved:
            moved = False
            for w, program in enumerate(programs):
                while at[w] < len(program) and sleeps[w] <= now and (together or w not in sending):
                    kind, what = program[at[w]]
                    if kind == "wait" and (what not in there or there[what] > now):
                        break
                    at[w] += 1
                    moved = True
                    if kind == "pause":
                        sleeps[w] = now + what
                    elif kind == "send":
                        remaining[what] = messages[what][1]
                        if messages[what][1] == 0 or not messages[what][2]:
                            del remaining[what]
                            left[what], there[what] = now, now + messages[what][3]
                        else:
                            sending[w] = what
                over = at[w] == len(program) and sleeps[w] <= now and (together or w not in sending)
                if over and ended[w] is None:
                    ended[w] = now
        active = sorted(remaining)
        routes = [messages[t][2] for t in active]
        limits = [port(c, d, e, sum(r in route for route in routes)) for r, (c, d, e) in enumerate(resources)]
        rates = fair(routes, limits)
        moments = [now + remaining[t] / rate for t, rate in zip(active, rates, strict=True)]
        moments += [moment for moment in (*sleeps, *there.values()) if moment > now]
        if not moments:
            return left, there, ended
        then = min(moments)
        for t, rate in zip(active, rates, strict=True):
            remaining[t] -= rate * (then - now)
            if remaining[t] == 0:
                del remaining[t]
                left[t], there[t] = then, then + messages[t][3]
                sending.pop(messages[t][0], None)
        now = then
