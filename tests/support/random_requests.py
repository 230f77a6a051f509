"""What random requests are made of."""

PATHS = [
    b"/_synapse/client/rendezvous",
    b"/_synapse/client/rendezvous/msc4108",
    b"/_synapse/client/io.element.msc4388/rendezvous",
]

METHODS = [b"GET"] * 6 + [b"PUT"] * 6 + [b"POST"] * 4 + [b"DELETE", b"DELETE", b"HEAD", b"PATCH", b"OPTIONS", b"BREW"]
FIELDS = [b"If-Match", b"If-None-Match", b"If-Modified-Since", b"If-Unmodified-Since", b"Content-Type", b"Range"]
FIELDS += [b"Sec-Fetch-Mode", b"Sec-Fetch-Dest", b"Accept", b"User-Agent", b"Expect", b"Cookie", b"X-Odd"]
VALUES = [b"*", b'"a"', b'W/"a"', b'"a", "b,c" ,, W/"d"', b'"', b"text/plain", b"text/html; charset=utf-8", b"navigate"]
VALUES += [b"Sun, 06 Nov 1994 08:49:37 GMT", b"Thu, 31 Dec 2099 23:59:59 GMT", b"bytes=0-1", b"empty", b"x" * 300]
