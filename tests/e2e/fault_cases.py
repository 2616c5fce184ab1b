"""The faults that test_faults.py puts between a mount and its origin, and what
has to come of each: tables only."""

import dataclasses
import typing

FILE = "model.safetensors"
BIG = "big.bin"  # too big to be read whole where a range is ignored
PLAIN = "notes.txt"  # the hub itself gives it
IN_3_SECONDS = "IN 3 SECONDS"  # in a header: a date, made when it is used

MULTIPART = ("--x\r\nContent-Type: application/octet-stream\r\n"
             "Content-Range: bytes {first}-{last}/{size}\r\n\r\n{body}"
             "\r\n--x--\r\n")
RANGE = "Content-Range: bytes {first}-{last}/{size}\r\n"
PARTIAL = "HTTP/1.1 206 Partial Content\r\n" + RANGE


@dataclasses.dataclass
class Case:
    """What goes wrong, and what a reader sees of it."""
    name: str
    faults: list
    ends: str  # "right" or "eio"
    # In the log line of an EIO; a status or what there was instead of one.
    says: str = ""
    at_once: bool = False  # EIO comes without waiting for the deadline
    file: str = FILE
    gap: float = 0  # seconds between the first two requests that failed
    prepare: typing.Callable = None  # (hub) before the read
    timeout: int = 0
    stall: int = 2  # seconds of silence before a connection counts as dead
    requests: int = 2  # of one attempt


def fault(kind, listener="cdn", **what):
    return dict(kind=kind, listener=listener, **what)


def always_and_twice(name, says, kind, *, ends="right", at_once=False, times=2,
                     listener="cdn", file=FILE, requests=2, **what):
    """The fault for good gives EIO; one that heals, the bytes."""
    return [
        Case(f"{name}-always", [fault(kind, listener, **what)], "eio", says,
             at_once=at_once, file=file, requests=requests),
        Case(f"{name}-heals", [fault(kind, listener, times=times, **what)],
             ends, file=file, requests=requests)]


def rate_limit(**headers):
    return {"number": 429, "times": 1, "headers": {
        name.replace("_", "-"): value for name, value in headers.items()}}


def cases():
    made = []
    for status in (500, 502, 503, 504, 408, 429, 507):
        made += always_and_twice(f"status-{status}", f"HTTP {status}",
                                 "status", number=status)
    for status in (500, 503):
        made += always_and_twice(
            f"resolve-{status}", f"HTTP {status}", "status", listener="hub",
            contains="/resolve/", number=status)
        made += always_and_twice(
            f"plain-{status}", f"HTTP {status}", "status", listener="hub",
            contains="/resolve-cache/", number=status, file=PLAIN, requests=2)
    for status in (204, 304, 206, 451):
        made += [Case(f"status-{status}",
                      [fault("status", number=status)], "eio",
                      f"HTTP {status}", at_once=status == 451)]
    made += always_and_twice("status-400", "HTTP 400", "status", number=400,
                             at_once=True, times=1)
    made += always_and_twice("status-416", "HTTP 416", "status", number=416,
                             at_once=True, times=1)

    # The body.
    for kind in ("reset", "close"):
        for where in (0, 1000):
            made += always_and_twice(f"{kind}-at-{where}", "HTTP 206", kind,
                                     number=where)
        # The second attempt goes on where the first one broke.
        made += [Case(f"{kind}-at-70000", [fault(kind, number=70_000)],
                      "right")]
    made += always_and_twice("plain-close", "HTTP 200|HTTP 206", "close",
                             listener="hub", contains="/resolve-cache/",
                             number=100, file=PLAIN)
    made += always_and_twice("long-body", "HTTP 206", "long_body", number=10)
    made += [Case("overrun", [fault("overrun", number=10)], "right")]
    made += always_and_twice("gzip", "HTTP 206", "gzip")
    made += always_and_twice(
        "plain-gzip", "HTTP 20.", "gzip", listener="hub",
        contains="/resolve-cache/", file=PLAIN)
    made += [Case("one-byte-packets",
                  [fault("trickle", number=1, delay_ms=0, times=1)], "right")]
    made += always_and_twice("trickle", "HTTP 206", "trickle", number=1,
                             delay_ms=100, times=1)
    made += always_and_twice("hang", "HTTP 206", "hang", number=1000, times=1)
    made += always_and_twice("no-answer", "no HTTP answer", "no_answer",
                             times=1)
    # However short the deadline is, silence leaves time for another try.
    made += [Case(f"{kind}-near-the-deadline",
                  [fault(kind, times=1, number=9)], "right", timeout=6,
                  stall=10) for kind in ("no_answer", "hang")]
    made += always_and_twice("resolve-no-answer", "no HTTP answer",
                             "no_answer", listener="hub",
                             contains="/resolve/", times=1)

    # What the answer says of itself.
    made += always_and_twice("range-start", "HTTP 206", "range_start",
                             number=1)
    made += always_and_twice("range-total", "HTTP 206", "range_total",
                             number=99_999_999, at_once=True, times=1)
    made += always_and_twice("no-content-range", "HTTP 206", "drop_header",
                             text="Content-Range")
    made += always_and_twice("range-nonsense", "HTTP 206", "set_header",
                             text="Content-Range", value="bytes 0-9")
    made += always_and_twice("two-ranges", "HTTP 206", "add_header",
                             text="Content-Range", value="bytes 0-9/10")
    made += always_and_twice("two-encodings", "HTTP 206", "raw",
                             text=PARTIAL + "Content-Encoding: identity\r\n"
                             "Content-Encoding: br\r\n\r\n{body}")
    made += [Case("ignored-range", [fault("ignore_range")], "right")]
    made += always_and_twice("ignored-range-big", "HTTP 200", "ignore_range",
                             file=BIG)
    made += [Case("plain-chunked", [fault(
        "raw", "hub", contains="/resolve-cache/",
        text="HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
             "7d0\r\n{body}\r\n0\r\n\r\n", ranged=True),
        fault("ignore_range", "hub", contains="/resolve-cache/")],
        "right", file=PLAIN)]
    made += [Case("plain-without-length", [
        fault("ignore_range", "hub", contains="/resolve-cache/"),
        fault("raw", "hub", contains="/resolve-cache/",
              text="HTTP/1.0 200 OK\r\n\r\n{body}")], "right", file=PLAIN)]
    made += [Case("plain-without-length-short", [
        fault("ignore_range", "hub", contains="/resolve-cache/"),
        fault("raw", "hub", contains="/resolve-cache/",
              text="HTTP/1.0 200 OK\r\n\r\nhello")], "eio", "HTTP 200",
        file=PLAIN, requests=3)]  # where it leads to, and again without Range
    etag = "e" * 64
    made += always_and_twice("linked-etag", "HTTP 302", "set_header",
                             listener="hub", contains="/resolve/", times=1,
                             headers={"X-Linked-Etag": f'"{etag}"'},
                             at_once=True)
    made += always_and_twice("linked-size", "HTTP 302", "set_header",
                             listener="hub", contains="/resolve/", times=1,
                             headers={"X-Linked-Size": "77"}, at_once=True)
    made += always_and_twice("commit", "HTTP 302", "set_header",
                             listener="hub", contains="/resolve/", times=1,
                             text="X-Repo-Commit", value="c" * 40,
                             at_once=True)
    made += always_and_twice("plain-etag", "HTTP 20.", "set_header",
                             listener="hub", contains="/resolve-cache/",
                             times=1, text="ETag", value='"%s"' % ("e" * 40),
                             file=PLAIN, at_once=True)
    made += always_and_twice("other-file", "HTTP 206", "other_file")
    made += always_and_twice("changed-etag", "HTTP 206", "set_header",
                             text="ETag", value='"another"')

    # What no HTTP server would send, and what old ones do.
    made += always_and_twice("multipart", "HTTP 206", "raw",
                             text="HTTP/1.1 206 Partial Content\r\n"
                             "Content-Type: multipart/byteranges; "
                             "boundary=x\r\n\r\n" + MULTIPART)
    made += always_and_twice("multipart-with-range", "HTTP 206", "raw",
                             text=PARTIAL + "Content-Type: Multipart/"
                             "byteranges; boundary=x\r\n\r\n" + MULTIPART)
    made += [Case("http-1.0", [fault("raw", text=PARTIAL.replace(
        "HTTP/1.1", "HTTP/1.0") + "\r\n{body}")], "right")]
    made += [Case("without-length",
                  [fault("raw", text=PARTIAL + "\r\n{body}")], "right")]
    made += always_and_twice("without-length-short", "HTTP 206", "raw",
                             text=PARTIAL + "\r\nabc")
    for name, length in (("negative", "-5"), ("huge", "9" * 30),
                         ("list", "5, 5"), ("empty", "")):
        made += always_and_twice(
            f"length-{name}", "HTTP 206|no HTTP answer", "raw",
            text=PARTIAL + f"Content-Length: {length}\r\n\r\n{{body}}")
    made += always_and_twice("bad-chunks", "HTTP 206", "raw", text=PARTIAL +
                             "Transfer-Encoding: chunked\r\n\r\nzz\r\n{body}")
    made += always_and_twice("nonsense", "no HTTP answer", "raw",
                             text="nonsense\r\n\r\n")
    made += always_and_twice("headers-break-off", "no HTTP answer", "raw",
                             text=PARTIAL + "Content-Le")
    made += always_and_twice("headers-too-long", "no HTTP answer", "raw",
                             text=PARTIAL + "X: " + "x" * 200_000 +
                             "\r\n\r\n{body}")
    made += always_and_twice("many-headers", "no HTTP answer", "raw",
                             text=PARTIAL + "X: x\r\n" * 5000 +
                             "\r\n{body}")
    made += always_and_twice("endless-continue", "no HTTP answer", "raw",
                             text="HTTP/1.1 100 Continue\r\n\r\n" * 9000)
    made += [Case("long-header", [fault("set_header", text="X-Long",
                                        value="x" * 60_000)], "right")]
    made += always_and_twice("slow-headers", "no HTTP answer", "raw",
                             text=PARTIAL + "\r\n{body}", delay_ms=100,
                             times=1)

    # Where it sends us.
    resolve = {"listener": "hub", "contains": "/resolve/"}
    for name, target in (
            ("loop", ""), ("no-such-host", "http://no-such-host.invalid/x?y=1"),
            ("refused", "http://127.0.0.1:9/x?y=1"),
            ("ftp", "ftp://127.0.0.1/x"), ("file", "file:///etc/passwd"),
            ("userinfo", "http://user:secret@127.0.0.1:9/x"),
            ("no-url", "http://[::1/x"), ("too-long", "/" + "x" * 40_000)):
        made += always_and_twice(
            f"redirect-{name}", "no HTTP answer|HTTP 302", "redirect",
            number=302, text=target, **resolve)
    made += [Case("redirect-endless", [fault(
        "redirect", number=302, text="/org/model/resolve/main/x?hop={id}",
        **resolve)], "eio", "HTTP 302", requests=22)]
    made += [Case("redirect-without-location",
                  [fault("drop_header", text="Location", **resolve)], "eio",
                  "HTTP 302")]
    made += always_and_twice("cdn-redirect-loop", "HTTP 302", "redirect",
                             number=302)

    # Signatures.
    made += always_and_twice("signature-refused", "HTTP 403",
                             "refuse_signature", requests=4)
    made += [Case("signatures-void", [], "right",
                  prepare=lambda hub: hub.control("rotate_key"))]

    # How long to wait.
    made += [
        Case("retry-after", [fault("status", **rate_limit(Retry_After="2"))],
             "right", gap=2),
        Case("retry-after-date", [fault(
            "status", **rate_limit(Retry_After=IN_3_SECONDS))], "right",
             gap=1.5),
        Case("rate-limit-hub", [fault("status", **rate_limit(
            RateLimit='"api";r=0;t=1',
            RateLimit_Policy='"fixed window";"api";q=500;w=300'))], "right",
             gap=2),
        Case("rate-limit-ietf", [fault("status", **rate_limit(
            RateLimit='"burst";r=0;t=1, "day";r=9;t=5000',
            RateLimit_Policy='"burst";q=100;w=1,"day";q=1000;w=86400'))],
            "right", gap=2),
        Case("rate-limit-draft", [fault("status", **rate_limit(
            RateLimit="limit=100, remaining=0, reset=1"))], "right", gap=2),
        Case("unavailable-for-2-s", [fault(
            "status", "hub", contains="/resolve/",
            **{**rate_limit(Retry_After="2"), "number": 503})],
            "right", gap=2),
        Case("retry-after-absurd", [fault(
            "status", **rate_limit(Retry_After="99999999999"))], "right",
            timeout=15),
        Case("retry-after-nonsense", [fault(
            "status", **rate_limit(Retry_After="soon"))], "right",
            timeout=15),
        Case("retry-after-0", [fault(
            "status", number=503, headers={"Retry-After": "0"})], "eio",
            "HTTP 503"),
        Case("retry-after-longer-than-the-read", [fault(
            "status", number=429, headers={"Retry-After": "60"}, times=1)],
            "eio", "HTTP 429")]
    return made


CASES = cases()
assert len({case.name for case in CASES}) == len(CASES)


# --- many readers ---

@dataclasses.dataclass
class Storm:
    """A fault for good, met by many readers at once."""
    name: str
    broken: dict
    says: str


STORMS = [
    Storm("503", fault("status", number=503), "HTTP 503"),
    Storm("retry-after-0", fault(
        "status", number=503, headers={"Retry-After": "0"}), "HTTP 503"),
    Storm("one-byte", fault("close", number=1), "HTTP 206"),
    Storm("403", fault("refuse_signature"), "HTTP 403"),
    Storm("hub-500", fault("status", listener="hub", number=500), "HTTP 500"),
]


@dataclasses.dataclass
class Outage:
    """Of all connections; who waits for the origin outlives it."""
    name: str
    seconds: int
    timeout: int


# The waits between tries are a quarter of the deadline at most, or 10 s.
OUTAGES = [Outage("20-seconds", 20, 120), Outage("half-of-the-limit", 6, 12)]


# --- at mount time ---

@dataclasses.dataclass
class MountCase:
    name: str
    faults: list
    code: int = 0
    says: str = ""
    gap: float = 0
    stall: int = 2


def at_mount(name, code, says, kind, contains="/tree/", times=1, **what):
    return [
        MountCase(f"{name}-always", [fault(
            kind, "hub", contains=contains, **what)], code, says),
        MountCase(f"{name}-heals", [fault(
            kind, "hub", contains=contains, times=times, **what)])]


def mount_cases():
    made = []
    for where, page in (("tree", "/tree/"), ("info", "/revision/")):
        for status in (500, 502, 503, 504, 429, 408):
            made += at_mount(f"{where}-{status}", 5, f"HTTP {status}",
                             "status", page, number=status)
        made += at_mount(f"{where}-garbage", 6, "not JSON", "body", page,
                         times=2, text="<html>Log in!</html>")
        made += at_mount(f"{where}-cut", 6, "not JSON", "body", page,
                         times=2, text=page == "/tree/" and
                         '[{"type":"file","pa' or '{"sha":"')
        made += at_mount(f"{where}-empty", 6, "not JSON", "body", page,
                         text="")
        made += at_mount(f"{where}-other-json", 6, "list of files|the repos",
                         "body", page, text='"hello"')
        made += at_mount(f"{where}-reset", 5, "", "reset", page, number=10)
        made += at_mount(f"{where}-close", 5, "", "close", page, number=10)
        made += at_mount(f"{where}-gzip", 5, "gzip", "gzip", page)
        made += at_mount(f"{where}-loop", 5, "circle", "redirect", page,
                         number=302)
        made += at_mount(f"{where}-ftp", 5, "redirected", "redirect", page,
                         number=302, text="ftp://127.0.0.1/x")
        made += at_mount(f"{where}-no-host", 5, "no-such-host", "redirect",
                         page, number=302, text="http://no-such-host.invalid/")
        made += at_mount(f"{where}-silent", 5, "stalled|not done",
                         "no_answer", page)
        made += [MountCase(f"{where}-silent-near-the-deadline", [fault(
            "no_answer", "hub", contains=page, times=1)], stall=10)]
        made += at_mount(f"{where}-hang", 5, "stalled|not done", "hang", page,
                         number=20)
        made += at_mount(f"{where}-trickle", 5, "stalled|not done", "trickle",
                         page, number=1, delay_ms=100)
        made += at_mount(f"{where}-nonsense", 5, "", "raw", page,
                         text="nonsense\r\n\r\n")
        made += [
            MountCase(f"{where}-retry-after", [fault(
                "status", "hub", contains=page,
                **rate_limit(Retry_After="2"))], gap=2),
            MountCase(f"{where}-retry-after-date", [fault(
                "status", "hub", contains=page,
                **rate_limit(Retry_After=IN_3_SECONDS))], gap=1.5),
            MountCase(f"{where}-rate-limit", [fault(
                "status", "hub", contains=page,
                **rate_limit(RateLimit='"api";r=0;t=1'))], gap=2),
            MountCase(f"{where}-retry-after-absurd", [fault(
                "status", "hub", contains=page,
                **rate_limit(Retry_After="99999999999"))]),
            MountCase(f"{where}-retry-after-an-hour", [fault(
                "status", "hub", contains=page, number=429,
                headers={"Retry-After": "3000"})], 5, "HTTP 429"),
            MountCase(f"{where}-404", [fault(
                "status", "hub", contains=page, number=404)], 3, "HTTP 404"),
            MountCase(f"{where}-418", [fault(
                "status", "hub", contains=page, number=418)], 7, "HTTP 418")]
    made += [
        MountCase("tree-circle", [fault(
            "set_header", "hub", contains="/tree/", text="Link",
            value='</api/models/org/model/tree/x?a=b>; rel="next"')], 6,
            "circle"),
        MountCase("tree-size", [fault(
            "body", "hub", contains="/tree/", text='[{"type":"file","oid":"'
            + "a" * 40 + '","size":-5,"path":"x"}]')], 6, "size"),
        MountCase("tree-path", [fault(
            "body", "hub", contains="/tree/", text='[{"type":"file","oid":"'
            + "a" * 40 + '","size":5,"path":"../x"}]')], 6, "path"),
        MountCase("all-refused", "refused", 5, "connect"),
        MountCase("no-such-endpoint", "no host", 5, "resolve|host"),
    ]
    return made


MOUNT_CASES = mount_cases()
