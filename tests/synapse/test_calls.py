"""A request stays short enough for a reader to follow; `benchmarks/calls.py` prints the path of each."""

from calls import WarmHomeserver, changes


class CallsTestCase(WarmHomeserver):
    """The second request of a client."""

    def test_a_request_is_short(self) -> None:
        self.record()
        for operation, max_calls, max_changes in (("poll", 16, 10), ("PUT", 24, 10)):
            calls = self.calls[operation]
            self.assertEqual("resource.py", calls[0].file)
            self.assertLessEqual(len(calls), max_calls, calls)
            self.assertLessEqual(changes(calls), max_changes, calls)
