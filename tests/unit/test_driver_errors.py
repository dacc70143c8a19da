"""Error messages of the commands when MongoDB does not answer."""

from pymongo.errors import ServerSelectionTimeoutError

from operations.reading.driver_errors import first_line


def test_the_details_that_the_driver_appends_to_its_error_are_not_shown() -> None:
    said = "127.0.0.1:1: connection refused"
    appended = " (configured timeouts: connectTimeoutMS: 20000.0ms), Timeout: 30s, Topology Description: <...>"
    assert first_line(ServerSelectionTimeoutError(said + appended)) == said
    assert first_line(ServerSelectionTimeoutError(f"{said}\nmore")) == said
