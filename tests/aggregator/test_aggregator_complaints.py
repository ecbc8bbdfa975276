"""Who gets a line in the log, and what becomes of the rest."""

from fedmq.aggregator.complaints import MAX_CLIENTS, WINDOW, Complaints


def test_a_client_gets_one_line_in_a_window_and_the_rest_is_counted() -> None:
    """The count is told once, when the window has ended."""
    complaints = Complaints()
    lines = [complaints.admits("a", 5.0 + i / 1000) for i in range(1000)]
    other = complaints.admits("b", 6.0)
    told = [complaints.take_left_out(now) for now in (5.0 + WINDOW - 0.1, 5.0 + WINDOW, 5.0 + WINDOW)]

    assert [True] + [False] * 999 == lines
    assert other
    assert [0, 999, 0] == told
    assert complaints.admits("a", 5.0 + WINDOW)


def test_many_names_get_no_more_lines_than_one_window_has() -> None:
    """And no more memory."""
    complaints = Complaints()

    assert MAX_CLIENTS == sum(complaints.admits(f"c{number}", 1.0) for number in range(100_000))
    assert MAX_CLIENTS == len(complaints._clients)
    assert 100_000 - MAX_CLIENTS == complaints.take_left_out(1.0 + WINDOW)
