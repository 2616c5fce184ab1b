"""What goes wrong at the origin in a chaos run: each kind of fault that the test
hub offers (tests/support/hub_fault.h), with parameters drawn from a seed, and
each case that tests/e2e/test_faults.py puts before a mount of its own.

Every fault here but the "final" ones is one that a read outlives: it waits and
retries. A final one is an answer that no retry can mend; reads that meet it may
fail at once.
"""

import dataclasses
import email.utils
import time

import fault_cases

MIB = 1 << 20
REPO = "chaos/model"


@dataclasses.dataclass
class OriginFault:
    """Orders to the hub's control endpoint."""
    name: str
    orders: list

    def __str__(self):
        return f"{self.name} " + "; ".join(
            " ".join(f"{key}={str(value)[:60]!r}"
                     for key, value in order.items()
                     if key not in ("op", "kind")) for order in self.orders)


def fault(kind, listener="cdn", **what):
    order = {"op": "add_fault", "kind": kind, **what}
    if listener:
        order["listener"] = listener
    return order


# What the hub can do that is not for here, and why.
LEFT_OUT = {
    "flip_bit": "bytes that the origin itself has wrong are what it sent; the "
                "self-test uses it",
    "other_file": "the same: a daemon that was just started has nothing to "
                  "compare it with",
    "callback": "for tests in C++",
}
LEFT_OUT_CASES = {
    "other-file-always": "see other_file", "other-file-heals": "see other_file",
    "retry-after-longer-than-the-read": "it says to wait that long",
    "tree-retry-after-an-hour": "the same", "info-retry-after-an-hour": "the same",
}


def some_of(random, order):
    """Not every request, but some: so that retries meet it again or not."""
    if random.random() < 0.4:
        order["skip"] = random.randrange(4)
    if random.random() < 0.4:
        order["times"] = random.randrange(1, 60)
    return order


def anywhere(random):
    return random.choice(("cdn", "cdn", "cdn", "hub"))


def somewhere_in_body(random):
    return random.choice((0, 1, random.randrange(1000),
                          random.randrange(128 << 10),
                          random.randrange(2 * MIB)))


def status(number, **headers):
    def draw(random):
        return fault("status", anywhere(random), number=number,
                     **({"headers": dict(headers)} if headers else {}))
    return draw


def header(kind, listener, text, value=""):
    return lambda random: fault(kind, listener, text=text, value=value)


# Name -> order, drawn from a random.Random. "kind" is the hub's name of it.
PASSING = {
    "status 408": status(408),
    "status 429": status(429),
    "status 429, Retry-After": status(429, **{"Retry-After": "1"}),
    "status 429, RateLimit": status(429, **{
        "RateLimit": '"api";r=0;t=1',
        "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}),
    "status 500": status(500),
    "status 502": status(502),
    "status 503": status(503),
    "status 503, Retry-After": status(503, **{"Retry-After": "1"}),
    "status 504": status(504),
    "reset": lambda r: fault("reset", anywhere(r),
                             number=somewhere_in_body(r)),
    "close": lambda r: fault("close", anywhere(r),
                             number=somewhere_in_body(r)),
    "hang": lambda r: fault("hang", anywhere(r), number=somewhere_in_body(r)),
    "no_answer": lambda r: fault("no_answer", anywhere(r)),
    "long_body": lambda r: fault("long_body", number=1 + r.randrange(5000)),
    "overrun": lambda r: fault("overrun", number=1 + r.randrange(5000)),
    "range_start": lambda r: fault("range_start", number=1 + r.randrange(5000)),
    "ignore_range": lambda r: fault("ignore_range"),
    "trickle": lambda r: fault("trickle", number=1 + r.randrange(20000),
                               delay_ms=1 + r.randrange(200)),
    "delay": lambda r: fault("delay", anywhere(r),
                             delay_ms=1 + r.randrange(1500)),
    "redirect loop": lambda r: fault("redirect", "hub", number=302),
    "redirect elsewhere": lambda r: fault(
        "redirect", text="http://127.0.0.1:9/nobody", number=302),
    "gzip": lambda r: fault("gzip"),
    "body": lambda r: fault("body", text="not what was asked for"),
    "raw": lambda r: fault("raw", anywhere(r),
                           text=r.choice(("", "\r\n", "HTTP/1.1 2",
                                          "no HTTP at all\r\n\r\n"))),
    "refuse_signature": lambda r: fault("refuse_signature"),
    "drop Content-Range": header("drop_header", "cdn", "Content-Range"),
    "bad Content-Range": header("set_header", "cdn", "Content-Range",
                                "bytes lies"),
    "drop Location": header("drop_header", "hub", "Location"),
    "outage": lambda r: {"op": "outage"},
    "rotate_key": lambda r: {"op": "rotate_key"},
}

FINAL = {
    "status 403": lambda r: fault("status", "hub", number=403),
    "status 404": lambda r: fault("status", "hub", number=404),
    "status 410": lambda r: fault("status", "hub", number=410),
    "status 400": lambda r: fault("status", number=400),
    "status 416": lambda r: fault("status", number=416),
    "range_total": lambda r: fault("range_total", number=12345),
    "another commit": header("set_header", "hub", "X-Repo-Commit", "0" * 40),
    "another size": lambda r: fault("set_header", "hub",
                                    headers={"X-Linked-Size": "7"}),
    "another ETag": lambda r: fault(
        "set_header", "hub", headers={"X-Linked-Etag": '"' + "0" * 64 + '"'}),
}

# Those that, held on, leave a read nothing but its deadline.
LASTING = ("hang", "no_answer", "status 503", "reset", "outage")


def of_case(case):
    """A case of test_faults.py, as orders. Both its forms: the one for good ends
    with the fault's time, too."""
    orders = [{"op": "add_fault", **one} for one in case.faults]
    if not orders:
        orders = [{"op": "rotate_key"}]
    for order in orders:
        if "/org/model/" in str(order.get("text")):
            order["text"] = order["text"].replace("org/model", REPO)
    return OriginFault("case " + case.name, orders)


def dated(order):
    """The order, now: a date in it is 3 s ahead."""
    if (order.get("headers", {}).get("Retry-After") !=
            fault_cases.IN_3_SECONDS):
        return dict(order)
    date = email.utils.formatdate(time.time() + 3, usegmt=True)
    return {**order, "headers": {"Retry-After": date}}


# At its end its last hop is asked for as it stands, and there is no such file.
FINAL_AT_THEIR_END = ("redirect-endless",)


def cases(at_once):
    return [case for case in fault_cases.CASES
            if case.name not in LEFT_OUT_CASES
            and (case.at_once or case.name in FINAL_AT_THEIR_END) == at_once]


def passing(random):
    if random.random() < 0.4:
        return of_case(random.choice(cases(at_once=False)))
    if random.random() < 0.1:
        return of_case(random.choice(
            [case for case in fault_cases.MOUNT_CASES
             if isinstance(case.faults, list)
             and case.name not in LEFT_OUT_CASES]))
    name = random.choice(sorted(PASSING))
    order = PASSING[name](random)
    if order["op"] == "add_fault":
        some_of(random, order)
    return OriginFault(name, [order])


def final(random):
    if random.random() < 0.4:
        return of_case(random.choice(cases(at_once=True)))
    name = random.choice(sorted(FINAL))
    return OriginFault(name, [some_of(random, FINAL[name](random))])


def lasting(random):
    """Nothing of the origin works."""
    name = random.choice(LASTING)
    order = PASSING[name](random)
    order.pop("listener", None)
    if name in ("hang", "reset"):
        order["number"] = 0
    return OriginFault(name + ", for long", [order])


def differences(offered):
    """Between the hub's kinds of faults and the tables here."""
    class First:
        """Draws nothing at random."""
        def choice(self, options):
            return options[0]

        def random(self):
            return 0.0

        def randrange(self, *_):
            return 0
    orders = [draw(First()) for draw in (*PASSING.values(), *FINAL.values())]
    orders += [{"op": "add_fault", **one} for case in fault_cases.CASES
               for one in case.faults]
    known = {order["kind"] for order in orders
             if order["op"] == "add_fault"} | set(LEFT_OUT)
    missing = [f"{kind}: in no table of origin_faults.py"
               for kind in sorted(set(offered) - known - {"refuse_signature"})]
    return missing + [f"{kind}: the hub has no such fault"
                      for kind in sorted(known - set(offered) -
                                         {"refuse_signature"})]
